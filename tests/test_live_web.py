"""The caption page's server: numbered events, reconnection without gaps or doubles, and who may read."""

import http.client
import json
import threading

import pytest

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.live import Committed, EndOfPhrase, LiveWord, Notice, Partial
from whisper_hailo_hf.live import web as web_module
from whisper_hailo_hf.live.web import CaptionServer


@pytest.fixture
def server():
    made = CaptionServer()
    yield made
    made.close()


def committed(*texts, at=0.0):
    words = (LiveWord(f" {text}", at + 0.2 * i, at + 0.2 * i + 0.1, 0.9) for i, text in enumerate(texts))
    return Committed(at + 1.0, tuple(words))


class Reader:
    """A browser's side of `/events`: (kind, id, data) one after the other."""

    def __init__(self, server, last=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        self.connection.request("GET", "/events", headers={"Last-Event-ID": last} if last else {})
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        assert self.response.getheader("Content-Type").startswith("text/event-stream")

    def next(self):
        found = {}
        while True:
            line = self.response.readline().decode().rstrip("\n")
            if line.startswith(":"):
                continue
            if not line and found:
                return found["event"], found.get("id"), json.loads(found["data"])
            if line and not line.startswith("retry:"):
                name, _, value = line.partition(": ")
                found[name] = value

    def until(self, kind, count=1):
        events = []
        while sum(event[0] == kind for event in events) < count:
            events.append(self.next())
        return events

    def close(self):
        self.connection.close()
        self.response.close()


def get(server, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_events_come_as_they_happen_and_again_after_a_reconnect(server):
    reader = Reader(server)
    assert reader.next()[0] == "reset"
    server(Partial(0.5, " one"))
    first = reader.next()
    if first == ("partial", None, {"text": ""}):  # unless the new one was there before it was sent
        first = reader.next()
    assert first == ("partial", None, {"text": " one"})
    server(committed("one"))
    server(Partial(1.0, " two"))
    kind, number, data = reader.until("caption")[-1]
    assert (kind, data["words"][0]["text"]) == ("caption", " one")
    reader.close()
    # while nobody looks
    server(committed("two", "three", at=1.0))
    server(EndOfPhrase(2.5, 0.0, 2.0, "one two three"))
    server(Notice(2.6, "of no interest to the page"))
    again = Reader(server, number)
    events = again.until("caption", 2)
    assert [event[0] for event in events] == ["caption", "caption"]  # no reset: what is shown stays
    assert [word["text"] for word in events[0][2]["words"]] == [" two", " three"]
    assert events[1][2]["event"] == "end_of_phrase"
    assert again.next() == ("partial", None, {"text": ""})
    again.close()


def test_a_page_of_another_run_begins_anew(server):
    server(committed("one"))
    for last in ("0123abcd.0", "nonsense", f"{server.log.run}.x"):
        reader = Reader(server, last)
        events = reader.until("caption")
        assert [event[0] for event in events] == ["reset", "caption"]
        reader.close()
    # and one opened late gets the last events only
    for i in range(5):
        server(committed(f"word{i}", at=float(i)))
    original, web_module._REPLAYED = web_module._REPLAYED, 2
    try:
        reader = Reader(server)
        texts = [event[2]["words"][0]["text"] for event in reader.until("caption", 2)[1:]]
        reader.close()
    finally:
        web_module._REPLAYED = original
    assert texts == [" word3", " word4"]


def test_many_readers_get_the_same_while_it_is_written(server):
    found = [[] for _ in range(4)]

    def read(into):
        reader = Reader(server)
        into += [event[1] for event in reader.until("caption", 50) if event[0] == "caption"]
        reader.close()

    threads = [threading.Thread(target=read, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for i in range(50):
        server(committed(f"word{i}", at=float(i)))
    for thread in threads:
        thread.join(20)
    wanted = [f"{server.log.run}.{i}" for i in range(50)]
    assert found == [wanted] * 4


def test_the_text_can_be_downloaded(server):
    server(committed("one", "zwölf"))
    server(EndOfPhrase(2.0, 0.0, 0.3, "one zwölf"))
    server(committed("three", at=3.0))
    response, body = get(server, "/transcript.txt")
    assert body.decode() == "one zwölf\nthree\n"
    assert "attachment" in response.getheader("Content-Disposition")
    response, body = get(server, "/transcript.json")
    phrases = json.loads(body)["phrases"]
    assert [phrase["text"] for phrase in phrases] == ["one zwölf", "three"]
    assert phrases[0]["words"][1] == {"text": " zwölf", "start": 0.2, "end": pytest.approx(0.3), "confidence": 0.9}


def test_the_page_is_for_this_machine_only(server):
    for host in ("127.0.0.1", f"localhost:{server.port}", f"[::1]:{server.port}"):
        assert get(server, "/", Host=host)[0].status == 200
    for host in ("evil.example", "127.0.0.1.evil.example", f"192.168.1.5:{server.port}"):
        response, body = get(server, "/events", Host=host)
        assert (response.status, body) == (403, b"this page is for this machine only\n")
    response, page = get(server, "/")
    assert "default-src 'none'" in response.getheader("Content-Security-Policy")
    assert b"http" not in page.replace(b"http-equiv", b"")  # nothing from elsewhere
    for path in ("/captions.css", "/captions.js"):
        assert get(server, path)[0].status == 200
    assert get(server, "/../web.py")[0].status == 404
    assert get(server, "/events/x")[0].status == 404


def test_pages_without_end_are_refused(server, monkeypatch):
    readers = [Reader(server) for _ in range(16)]
    response, _ = get(server, "/events")
    assert response.status == 503
    for reader in readers:
        reader.close()


def test_the_end_is_told_and_a_taken_port_is_named(server):
    with pytest.raises(RequestError, match=rf"port {server.port} .*choose another"):
        CaptionServer(server.port)
    with pytest.raises(RequestError, match="port 99999"):
        CaptionServer(99_999)
    other = CaptionServer()
    reader = Reader(other)
    other(committed("one"))
    other.close()
    assert [event[0] for event in reader.until("end")].count("caption") == 1
    reader.close()
