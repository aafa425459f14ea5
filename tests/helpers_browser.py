"""A real browser without a screen, in a process of its own: Chromium as Qt WebEngine brings it.

pip install 'whisper-hailo-hf[browser]'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_FLAGS = "--no-sandbox --disable-gpu --disable-dev-shm-usage"


def why_none() -> str | None:
    """Why there is no browser here; None if there is one."""
    if find_spec("PyQt6") is None or find_spec("PyQt6.QtWebEngineWidgets") is None:
        return "no headless browser: pip install 'whisper-hailo-hf[browser]'"
    try:
        with Browser("about:blank"):
            return None
    except RuntimeError as error:  # libraries that Chromium needs may be missing: libnss3, libxkbcommon0, ...
        return f"the headless browser does not start: {error}"


class Browser:
    """Opens an address; runs JavaScript in the page and takes pictures of it."""

    def __init__(self, url: str, size: tuple[int, int] = (1000, 700)) -> None:
        environment = os.environ | {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": _FLAGS}
        self._process = subprocess.Popen(
            [sys.executable, __file__, url, *map(str, size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if self._answer() is not True:
            self.close()
            raise RuntimeError(f"{url} does not load")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"exit status {code}")
        return json.loads(line)

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self._ask(script=script)

    def wait(self, script: str, timeout: float = 20.0) -> Any:
        """Wait until an expression is true; its value."""
        until = time.monotonic() + timeout
        while not (found := self.run(script)):
            if time.monotonic() > until:
                raise AssertionError(f"never came: {script}; the page says {self.run('document.body.innerText')!r}")
            time.sleep(0.1)
        return found

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, in CSS pixels."""
        self._ask(resize=[width, height])

    def picture(self, path: Path) -> None:
        """Write what is to be seen as PNG."""
        self._ask(picture=str(path))

    def close(self) -> None:
        """End the browser."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _main(url: str, width: int, height: int) -> None:
    import threading

    from PyQt6.QtCore import QObject, QTimer, QUrl, pyqtSignal
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    app = QApplication(sys.argv[:1])
    view = QWebEngineView()
    view.resize(width, height)

    def say(answer: Any) -> None:
        print(json.dumps(answer), flush=True)

    class Requests(QObject):
        came = pyqtSignal(str)

    def serve(line: str) -> None:
        request = json.loads(line)
        if "script" in request:
            page = view.page()
            assert page is not None
            page.runJavaScript(f"JSON.stringify({request['script']})", lambda text: say(json.loads(text or "null")))
        elif "resize" in request:
            view.resize(*request["resize"])
            QTimer.singleShot(300, lambda: say(None))
        else:
            QTimer.singleShot(500, lambda: say(view.grab().save(request["picture"])))

    requests = Requests()
    requests.came.connect(serve)

    def read() -> None:
        for line in sys.stdin:
            requests.came.emit(line)
        app.exit()

    loaded = False

    def begin(good: bool) -> None:
        nonlocal loaded
        if not loaded:
            loaded = True
            say(good)
            threading.Thread(target=read, daemon=True).start()

    view.loadFinished.connect(begin)
    view.load(QUrl(url))
    view.show()
    app.exec()
    os._exit(0)  # Chromium's own threads may still wait for the page


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
