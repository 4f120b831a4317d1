"""The live page's server, asked over HTTP: no browser."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from orchestrator import Study
from orchestrator.collector import serving as module
from orchestrator.collector.serving import Snapshot, address_of, serving
from orchestrator.record import InvalidInput

AddTrial = Callable[..., None]


class Asked:
    """A server of a study, in a thread, and a way to ask it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(
        self, path: str, host: str | None = None, method: str = "GET", **headers: str
    ) -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", f"127.0.0.1:{self.port}" if host is None else host)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text, answer.headers


@contextmanager
def served(study: Study) -> Iterator[Asked]:
    with serving(study) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield Asked(server.server_port)
        server.shutdown()
        thread.join()


def until(holds: Callable[[], bool]) -> None:
    """Asks again until it holds; gives up after a while."""
    pause = threading.Event()
    for _ in range(600):
        if holds():
            return
        pause.wait(0.05)
    pytest.fail("it never came to hold")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)


def test_the_page_and_its_data(full_study: Study) -> None:
    with served(full_study) as ask:
        status, text, headers = ask("/")
        assert (status, text[:15]) == (200, "<!doctype html>")
        assert 'data-page="live"' in text
        assert "connect-src 'self'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        status, text, headers = ask("/data.json")
        assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
        assert json.loads(text)["points"]["total"] == 13
        assert ask("/data.json", If_None_Match=headers["ETag"])[:2] == (304, "")
        assert ask("/", method="HEAD")[:2] == (200, "")
        assert ask("/study.json")[0] == 404
        assert ask("/../../etc/passwd")[0] == 404
        assert ask("/", method="POST")[0] == 501


def test_only_who_means_this_server_is_answered(full_study: Study) -> None:
    with served(full_study) as ask:
        for host in ("evil.example", f"evil.example:{ask.port}", "127.0.0.1", "", f"127.0.0.1:{ask.port + 1}"):
            status, text, _ = ask("/data.json", host=host)
            assert (status, text) == (421, "this server answers to 127.0.0.1 and localhost alone\n")
        assert ask("/data.json", host=f"localhost:{ask.port}")[0] == 200


def test_what_is_new_is_served_without_a_restart(full_study: Study, add_trial: AddTrial) -> None:
    with served(full_study) as ask:
        tag = ask("/data.json")[2]["ETag"]
        add_trial(full_study.store, 1e-3, 0.2)
        until(lambda: json.loads(ask("/data.json")[1])["points"]["total"] == 16)
        assert ask("/data.json", If_None_Match=tag)[0] == 200


def test_a_study_that_cannot_be_read_for_a_while(full_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(full_study) as ask:
        whole = module.page_data

        def away(study: Study) -> dict[str, object]:
            raise InvalidInput("the storage\nis away")

        monkeypatch.setattr(module, "page_data", away)
        until(lambda: ask("/data.json")[:2] == (503, "the storage is away"))
        assert ask("/")[0] == 200  # with what was last known
        monkeypatch.setattr(module, "page_data", whole)
        until(lambda: ask("/data.json")[0] == 200)


def test_an_answer_is_given_again_while_it_is_fresh(full_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 1.0)
    snapshot = Snapshot(full_study, clock=lambda: 0.5)
    first, threads = snapshot.data, threading.active_count()
    snapshot.ask()
    assert threading.active_count() == threads
    assert snapshot.data is first


def test_its_end_waits_for_what_is_being_read(full_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, ended = threading.Event(), threading.Event()

    def slow(study: Study) -> dict[str, Any]:
        reading.set()
        ended.wait(1.0)  # nobody sets it before: it is what takes time
        ended.set()
        return {}

    with served(full_study) as ask:
        monkeypatch.setattr(module, "page_data", slow)
        ask("/data.json")
        assert reading.wait(30)
    assert ended.is_set()


def test_a_port_that_is_taken(full_study: Study) -> None:
    with serving(full_study) as server:
        port = server.server_port
        assert address_of(server) == f"http://127.0.0.1:{port}/"
        complaint = rf"--port {port}: cannot be listened on \(Address already in use\); --port 0 takes a free one"
        with pytest.raises(InvalidInput, match=complaint), serving(full_study, port):
            pytest.fail("two servers on one port")
