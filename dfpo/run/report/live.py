"""``dfpo report --live``: the page of runs at work, made anew for whoever asks on this machine."""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dfpo.config import ConfigError
from dfpo.run.report.data import gather
from dfpo.run.report.page import render

HERE = "127.0.0.1"
SECONDS = 10  # between two loads of an open page


class Page(BaseHTTPRequestHandler):
    """One page at /, and nothing else. Writes no file."""

    server: LiveServer

    def do_GET(self) -> None:
        # A name of another machine that leads here is a page of theirs that wants to read ours.
        if self.headers.get("Host") not in self.server.names:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self.answer()

    def answer(self) -> None:
        try:
            page = render(gather(self.server.runs) | {"live": SECONDS}).encode()
        except ConfigError as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain=str(error))
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody asked who looks."""


class LiveServer(ThreadingHTTPServer):
    """Listens on this machine alone. Raises ConfigError for what is no run, and where the port is
    taken."""

    daemon_threads = True

    def __init__(self, runs: list[Path], port: int) -> None:
        gather(runs)
        self.runs = runs
        try:
            super().__init__((HERE, port), Page)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"port: is {port}, must be a free one: {error}") from None
        self.names = {f"{name}:{self.server_port}" for name in (HERE, "localhost")}

    @property
    def address(self) -> str:
        return f"http://{HERE}:{self.server_port}/"


def serve(runs: list[Path], port: int) -> None:
    """Until Ctrl-C."""
    with LiveServer(runs, port) as server, suppress(KeyboardInterrupt):
        print(f"{server.address} shows them as they are; Ctrl-C ends it", flush=True)
        server.serve_forever()
