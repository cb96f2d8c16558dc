"""The HTTP endpoint: /metrics, a landing page, and two health checks."""

from __future__ import annotations

import gzip
import logging
import socket
import socketserver
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import gzip_accepted

from trainvitals_exporter import rendering
from trainvitals_exporter.runner import Runner

_log = logging.getLogger(__name__)

_LANDING_PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><title>trainvitals exporter</title></head>
<body><h1>trainvitals exporter</h1><p><a href="/metrics">Metrics</a></p></body></html>
"""


class Server(ThreadingHTTPServer):
    """Serves what a runner has found, one thread per connection. Raises OSError when it cannot listen there."""

    daemon_threads = True
    request_queue_size = 128  # the default of 5 turns clients away when several scrape at once

    def __init__(self, host: str, port: int, runner: Runner) -> None:
        self.address_family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.runner = runner
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind without the reverse DNS look-up of the standard library, which can take long."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong in one line; a client that went away is nothing to log."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            _log.error("request of %s failed: %s: %s", client_address[0], type(error).__name__, error)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "trainvitals"
    sys_version = ""
    timeout = 60  # an idle or stuck connection; longer than usual scrape intervals, so that Prometheus keeps its own
    wbufsize = -1  # headers and body in as few packets as possible
    disable_nagle_algorithm = True  # else the body can wait 40 ms for the client to acknowledge the headers

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            content_type = rendering.content_type(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, content_type, self.server.runner.render(content_type))
        elif path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", _LANDING_PAGE)
        elif path == "/-/healthy":
            self._answer_line(HTTPStatus.OK, "healthy")
        elif path == "/-/ready":
            ready = self.server.runner.ready()
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer_line(status, "ready" if ready else "the first collections are under way")
        else:
            self._answer_line(HTTPStatus.NOT_FOUND, "not found; the metrics are at /metrics")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _refuse(self) -> None:
        self.close_connection = True  # the request's body has not been read
        self._answer_line(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed", ("Allow", "GET, HEAD"))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815 (the names that http.server calls)

    def _answer_line(self, status: HTTPStatus, line: str, *headers: tuple[str, str]) -> None:
        self._answer(status, "text/plain; charset=utf-8", f"{line}\n".encode(), *headers)

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        if gzip_accepted(self.headers.get("Accept-Encoding", "")):
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""
