"""The caption page: one page on the loopback address, fed by server-sent events.

Committed words and ends of phrases are numbered and kept in a file without a name, days of them in little memory; a
browser that was away names the last number it has (`Last-Event-ID`, HTML Living Standard, section 9.2) and gets what
came after it, once. Tentative text has no number: only the newest is worth anything.
"""

from __future__ import annotations

import importlib.resources
import json
import secrets
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.live.events import Committed, EndOfPhrase, Event, Partial

LOOPBACK = "127.0.0.1"
_NAMES = {"localhost", LOOPBACK, "::1"}
_FILES = {
    "/": ("captions.html", "text/html"),
    "/captions.css": ("captions.css", "text/css"),
    "/captions.js": ("captions.js", "text/javascript"),
}
_READERS = 16
# How many events a page gets that is opened late; the downloads have all of them.
_REPLAYED = 2000
# A line now and then, without meaning, tells a browser that has gone from one that waits.
_ALIVE_S = 10.0
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class CaptionLog:
    """All that was committed, by number, and the newest tentative text; many threads may wait for what comes next."""

    def __init__(self) -> None:
        # Numbers begin anew with each run: the name of the run keeps a browser from mixing two.
        self.run = secrets.token_hex(4)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # as long-lived as this object
        self._ends = array("Q")
        self._partial = ""
        self._updates = 0
        self._closed = False
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        with self._changed:
            if isinstance(event, Committed | EndOfPhrase):
                data = json.dumps(event.to_dict(), ensure_ascii=False).encode()
                self._file.seek(0, 2)
                self._file.write(data)
                self._ends.append(self._file.tell())
            if isinstance(event, Partial):
                self._partial = event.text
            elif isinstance(event, EndOfPhrase):
                self._partial = ""
            elif not isinstance(event, Committed):
                return
            self._updates += 1
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        """The event of that number, counted from 0, as JSON."""
        with self._changed:
            start = self._ends[number - 1] if number else 0
            self._file.seek(start)
            return self._file.read(self._ends[number] - start)

    def wait(self, seen: int, timeout: float) -> tuple[int, int, str, bool]:
        """Wait for an update after the one `seen`: (updates, events, tentative text, whether the log is closed)."""
        with self._changed:
            self._changed.wait_for(lambda: self._updates != seen or self._closed, timeout)
            return self._updates, len(self._ends), self._partial, self._closed

    def phrases(self) -> Iterator[dict[str, Any]]:
        """Phrase after phrase: `start`, `end`, `text`, `words`; the last one may not have ended yet."""
        words: list[dict[str, Any]] = []
        for number in range(len(self)):
            event = json.loads(self[number])
            words += event.get("words", [])
            if event["event"] == EndOfPhrase.kind and words:
                yield _phrase(words)
                words = []
        if words:
            yield _phrase(words)

    def close(self) -> None:
        """Nothing more will come: who waits is told so."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def remove(self) -> None:
        """Let go of the file."""
        with self._changed:
            self._file.close()


def _phrase(words: list[dict[str, Any]]) -> dict[str, Any]:
    text = "".join(word["text"] for word in words).strip()
    return {"start": words[0]["start"], "end": words[-1]["end"], "text": text, "words": words}


class CaptionServer:
    """Serves the page on the loopback address until it is closed.

    Args:
        port: 0 takes a free one; `url` says which.

    Raises:
        RequestError: the port is taken.
    """

    def __init__(self, port: int = 0) -> None:
        self.log = CaptionLog()
        handler = type("Handler", (_Handler,), {"log": self.log, "places": threading.BoundedSemaphore(_READERS)})
        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), handler)
        except (OSError, OverflowError) as error:
            self.log.remove()
            raise RequestError(f"cannot serve the caption page on port {port} ({error}): choose another") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://{LOOPBACK}:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="captions", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        self.log(event)

    def close(self) -> None:
        """Tell the browsers that this is the end, and stop."""
        self.log.close()
        time.sleep(0.2)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.log.remove()


class _Handler(BaseHTTPRequestHandler):
    log: CaptionLog
    places: threading.BoundedSemaphore
    server_version, sys_version = "whisper-hailo", ""
    timeout = 30  # for a request to come in

    def do_GET(self) -> None:
        # Only this machine's own names: a page from elsewhere must not read along through a name of its own.
        host = urlsplit(f"//{self.headers.get('Host', '')}")
        if host.hostname not in _NAMES:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this page is for this machine only\n")
            return
        path = urlsplit(self.path).path
        try:
            if path in _FILES:
                name, kind = _FILES[path]
                page = importlib.resources.files("whisper_hailo_hf.live").joinpath("page", name).read_bytes()
                self._answer(HTTPStatus.OK, kind, page)
            elif path == "/events":
                self._stream()
            elif path == "/transcript.txt":
                text = "".join(phrase["text"] + "\n" for phrase in self.log.phrases())
                self._answer(HTTPStatus.OK, "text/plain", text.encode(), "captions.txt")
            elif path == "/transcript.json":
                data = json.dumps({"phrases": list(self.log.phrases())}, ensure_ascii=False, indent=1)
                self._answer(HTTPStatus.OK, "application/json", data.encode(), "captions.json")
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing of that name\n")
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the browser has gone

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, download: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if download:
            self.send_header("Content-Disposition", f'attachment; filename="{download}"')
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        if not self.places.acquire(blocking=False):
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"too many pages are open\n")
            return
        try:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"retry: 1000\n\n")  # milliseconds until the browser asks again
            self._send_events()
        finally:
            self.places.release()

    def _send_events(self) -> None:
        run, _, last = self.headers.get("Last-Event-ID", "").partition(".")
        known = int(last) + 1 if run == self.log.run and last.isdigit() else 0
        if not known:
            self._send("reset", b"{}")  # what the page may show is of another run, or of none
            known = max(0, len(self.log) - _REPLAYED)
        seen, shown = -1, None
        while True:
            updates, count, partial, closed = self.log.wait(seen, _ALIVE_S)
            for number in range(known, count):
                self._send("caption", self.log[number], f"{self.log.run}.{number}")
            known = max(known, count)
            if partial != shown:
                self._send("partial", json.dumps({"text": partial}, ensure_ascii=False).encode())
                shown = partial
            elif updates == seen:
                self.wfile.write(b": still here\n\n")
            if closed:
                self._send("end", b"{}")
                return
            seen = updates

    def _send(self, kind: str, data: bytes, number: str | None = None) -> None:
        name = f"id: {number}\n" if number else ""
        self.wfile.write(f"{name}event: {kind}\ndata: ".encode() + data + b"\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""
