"""A study's page on this machine's loopback interface, kept up to date while a search runs.

Two things are served: / is the page, /data.json what report.page_data() says now. Only requests that name this server
as their host are answered: a page from elsewhere whose name was made to lead to 127.0.0.1 (DNS rebinding) gets nothing.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from orchestrator.collector.page import html_of, policy
from orchestrator.collector.query import Study
from orchestrator.collector.report import page_data
from orchestrator.record import InvalidInput

LOOPBACK = "127.0.0.1"
SETTLING_SECONDS = 30.0  # storage that is away is not waited for longer
FRESH_SECONDS = 1.0  # for so long an answer is given again before the study is looked at anew
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": f"{policy(live=True)}; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Snapshot:
    """What a study last had to show, taken again in the background when somebody asks and it is no longer fresh."""

    def __init__(self, study: Study, clock: Callable[[], float] = time.monotonic) -> None:
        self._study, self._clock = study, clock
        self._busy = threading.Lock()
        self._taken = 0.0
        self.data: dict[str, Any] = {}
        self.tag = ""  # changes with what there is to see
        self.problem: str | None = None  # why the study cannot be read at the moment
        self._take()

    def ask(self) -> None:
        """Has it taken again where it is time; does not wait for that."""
        if self._clock() - self._taken >= FRESH_SECONDS and self._busy.acquire(blocking=False):
            threading.Thread(target=self._take_and_release, daemon=True).start()

    def settle(self) -> None:
        """Lets what is being taken come to its end, and nothing be taken again.

        An interpreter that ends while one of its threads reads with pyarrow may hang for ever.
        """
        self._busy.acquire(timeout=SETTLING_SECONDS)

    def _take_and_release(self) -> None:
        try:
            self._take()
            self.problem = None
        except (InvalidInput, OSError) as error:
            self.problem = " ".join(str(error).split())
        finally:
            self._taken = self._clock()
            self._busy.release()

    def _take(self) -> None:
        data = page_data(self._study)
        text = json.dumps({name: value for name, value in data.items() if name != "made"}, sort_keys=True)
        tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
        if tag != self.tag:
            self.data, self.tag = data, tag


@contextmanager
def serving(study: Study, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server of the study's page on loopback, for its caller to run; port 0 takes a free one.

    Raises InvalidInput where the port is taken, and where the study cannot be read.
    """
    snapshot = Snapshot(study)
    try:
        server = _Server((LOOPBACK, port), _Handler)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInput(f"--port {port}: cannot be listened on ({reason}); --port 0 takes a free one") from error
    server.snapshot = snapshot
    with server:
        try:
            yield server
        finally:
            snapshot.settle()


def address_of(server: ThreadingHTTPServer) -> str:
    """Where a browser finds the page."""
    return f"http://{LOOPBACK}:{server.server_port}/"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    snapshot: Snapshot


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "orchestrator", ""
    timeout = 30
    server: _Server

    def do_GET(self) -> None:
        if not self._meant_for_this_server():
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to 127.0.0.1 and localhost alone\n")
            return
        answers = {"/": self._page, "/data.json": self._data}
        answer = answers.get(self.path.partition("?")[0])
        if answer is None:
            self._answer(HTTPStatus.NOT_FOUND, "there is / and /data.json\n")
        else:
            answer()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _meant_for_this_server(self) -> bool:
        port = self.server.server_port
        return self.headers.get("Host", "") in {f"{host}:{port}" for host in (LOOPBACK, "localhost")}

    def _page(self) -> None:
        self.server.snapshot.ask()
        self._answer(HTTPStatus.OK, html_of(self.server.snapshot.data, live=True), "text/html")

    def _data(self) -> None:
        snapshot = self.server.snapshot
        snapshot.ask()
        data, tag, problem = snapshot.data, snapshot.tag, snapshot.problem
        if problem is not None:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, problem)
        elif self.headers.get("If-None-Match") == tag:
            self._answer(HTTPStatus.NOT_MODIFIED, "", ETag=tag)
        else:
            self._answer(HTTPStatus.OK, json.dumps(data, allow_nan=False), "application/json", ETag=tag)

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain", **headers: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": f"{kind}; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who watches wants to see the study, not the requests."""
