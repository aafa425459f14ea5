"""The caption page in a real browser: text appears, becomes final, and survives a broken connection."""

import contextlib
import socket
import threading

import pytest
from helpers_browser import Browser, why_none

from whisper_hailo_hf.live import Committed, EndOfPhrase, LiveWord, Partial
from whisper_hailo_hf.live.web import CaptionServer

REASON = why_none()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

COMMITTED = "document.getElementById('committed').textContent"
TENTATIVE = "document.getElementById('tentative').textContent"
PHRASES = "Array.from(document.querySelectorAll('p.phrase'), p => p.textContent)"
STATE = "document.getElementById('state').textContent"


class Wire:
    """A connection to a server that can be cut: it forwards bytes both ways."""

    def __init__(self, port):
        self.target, self.whole = port, True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if not self.whole:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            self.sockets += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source, target):
        try:
            while data := source.recv(65_536):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        self.whole = False
        self._end()

    def mend(self):
        self.whole = True

    def _end(self):
        for end in self.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.sockets = []

    def close(self):
        self.listener.close()
        self._end()


@pytest.fixture
def server():
    made = CaptionServer()
    yield made
    made.close()


@pytest.fixture
def wire(server):
    made = Wire(server.port)
    yield made
    made.close()


def say(server, *texts, at=0.0):
    server(Committed(at, tuple(LiveWord(f" {text}", at, at, 0.9) for text in texts)))


def test_captions_appear_become_final_and_survive_a_reconnect(server, wire, tmp_path):
    with Browser(f"http://127.0.0.1:{wire.port}/") as page:
        page.wait(f"{STATE} === 'live'")
        server(Partial(0.5, " one too"))
        page.wait(f"{TENTATIVE} === ' one too'")
        assert page.run(COMMITTED) == ""
        say(server, "one", "two")
        server(Partial(1.0, " three"))
        page.wait(f"{COMMITTED} === ' one two' && {TENTATIVE} === ' three'")
        style = "(id) => { const s = getComputedStyle(document.getElementById(id)); return [s.color, s.fontStyle]; }"
        final, tentative = (page.run(f"({style})('{name}')") for name in ("committed", "tentative"))
        assert final[0] != tentative[0]
        assert (final[1], tentative[1]) == ("normal", "italic")
        wire.cut()
        page.wait(f"{STATE} === 'reconnecting'")
        # while the page is away
        say(server, "three", at=1.5)
        server(EndOfPhrase(2.0, 0.0, 1.5, "one two three"))
        say(server, "<b>four</b>", at=3.0)
        wire.mend()
        page.wait(f"{STATE} === 'live'")
        page.wait(f"{COMMITTED} === ' <b>four</b>'")
        say(server, "five", at=3.5)
        server(EndOfPhrase(4.0, 3.0, 3.5, "<b>four</b> five"))
        # nothing missing, nothing twice, and text is text
        page.wait(f"{PHRASES}.length === 2 && {COMMITTED} === ''")
        assert page.run(PHRASES) == ["one two three", "<b>four</b> five"]
        assert page.run("document.querySelectorAll('main b').length") == 0
        page.picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 3_000


def test_the_page_is_readable_on_a_phone_in_light_and_in_dark(server):
    for i in range(30):
        say(server, *(["a caption of some words"] * 3), at=float(i))
        server(EndOfPhrase(i + 0.5, float(i), i + 0.2, ""))
    with Browser(server.url, (360, 640)) as page:
        page.wait(f"{PHRASES}.length === 30")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run("parseFloat(getComputedStyle(document.getElementById('captions')).fontSize)") >= 24
        small = "Array.from(document.querySelectorAll('button:not([hidden]), nav a'), e => e.getBoundingClientRect())"
        assert page.run(f"{small}.every(r => r.width >= 44 && r.height >= 44 && r.right <= innerWidth)")
        # the newest line is in view; a reader who has scrolled back is left where he is
        bottom = "(m => m.scrollHeight - m.scrollTop - m.clientHeight)(document.getElementById('captions'))"
        assert page.run(bottom) < 60
        page.run("document.getElementById('captions').scrollTo(0, 0)")
        page.wait("!document.getElementById('latest').hidden")
        say(server, "new", at=40.0)
        page.wait(f"{COMMITTED} === ' new'")
        assert page.run("document.getElementById('captions').scrollTop") == 0
        page.run("document.getElementById('latest').click()")
        assert page.run(bottom) < 60
        seen = set()
        for _ in range(2):
            page.run("document.getElementById('theme').click()")
            paper, ink = (
                page.run(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
                for name in ("backgroundColor", "color")
            )
            assert abs(sum(paper) - sum(ink)) > 600  # black on white or the other way round
            seen.add(tuple(paper))
        assert len(seen) == 2
        page.run("document.getElementById('larger').click()")
        assert page.run("localStorage.getItem('size')").endswith("px")


def test_the_end_is_shown(server):
    other = CaptionServer()
    with Browser(other.url) as page:
        say(other, "one")
        page.wait(f"{COMMITTED} === ' one'")
        other.close()
        page.wait(f"{STATE} === 'ended'")
        assert page.run(COMMITTED) == " one"
