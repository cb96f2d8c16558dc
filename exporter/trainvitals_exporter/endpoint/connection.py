"""One client's connection: TLS handshake, requests, answers.

The request line and the headers are read by the standard library. A request's body is never read: who sends one gets
an answer, and then the connection is closed.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from trainvitals_exporter import rendering
from trainvitals_exporter.endpoint.authentication import Busy
from trainvitals_exporter.endpoint.channel import Channel, HeadTooLong
from trainvitals_exporter.endpoint.web_config import WebConfig

if TYPE_CHECKING:
    from trainvitals_exporter.endpoint.server import Server

_MAX_FIELDS: Final = 200  # parts of a query
_READ_SIZE: Final = 8192

_HEALTH_PATHS: Final = ("/-/healthy", "/-/ready")
_LANDING_PAGE: Final = b"""<!DOCTYPE html>
<html lang="en"><head><title>trainvitals exporter</title></head>
<body><h1>trainvitals exporter</h1><p><a href="/metrics">Metrics</a></p></body></html>
"""


class Requests(BaseHTTPRequestHandler):
    """One client's requests. All happens in the constructor, as in the base class.

    It serves the client until it leaves, errs, or is too slow, and raises OSError where the connection breaks. What
    lies at which path is decided by `answer_page`.
    """

    server: Server  # type: ignore[assignment]  # that of the standard library's is not used
    protocol_version = "HTTP/1.1"

    def __init__(self, channel: Channel, peer: Any, server: Server) -> None:
        self._channel = channel
        self._unread = False
        self._web = WebConfig()
        super().__init__(channel.socket, peer, server)  # type: ignore[arg-type]

    def setup(self) -> None:
        """Part of the base class's interface."""
        self.rfile = io.BufferedReader(self._channel, _READ_SIZE)
        self.wfile = self._channel  # type: ignore[assignment]  # the base class flushes it, and no more

    def handle(self) -> None:
        """Part of the base class's interface."""
        if self._is_let_in():
            super().handle()

    def finish(self) -> None:
        """Part of the base class's interface."""
        if self._channel.timed_out:
            self.server.count_dropped("timeout")
        self._channel.finish(self._unread)

    def _is_let_in(self) -> bool:
        """Do what comes before the first request."""
        self._web = self.server.web.current()
        if self._channel.socket.family != socket.AF_UNIX:
            # Else the rest of an answer can wait 40 ms for the client to acknowledge what came before.
            self._channel.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._web.tls is None:
            return True
        try:
            if self._web.tls.allows(self._channel.start_tls(self._web.tls.context)):
                return True
        except OSError as error:
            if getattr(error, "reason", "") == "HTTP_REQUEST":
                self._say_that_it_is_https()
        self.server.count_dropped("handshake")
        return False

    def _say_that_it_is_https(self) -> None:
        answer = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nthis port speaks HTTPS\n"
        with contextlib.suppress(OSError):
            socket.socket.send(self._channel.socket, answer)  # below TLS
        self._unread = True

    def handle_one_request(self) -> None:
        """Part of the base class's interface."""
        self._channel.expect_request()
        self.command, self.request_version = "", self.protocol_version
        try:
            super().handle_one_request()
        except HeadTooLong:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def parse_request(self) -> bool:
        """Part of the base class's interface."""
        if not super().parse_request():
            return False
        self._channel.waiting_since = None  # all that was to come has come
        self._web = self.server.web.current()
        if self._is_malformed():
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        tokens = {token.strip().lower() for token in self.headers.get("Connection", "").split(",")}
        lengths = self.headers.get_all("Content-Length", [])
        self._unread = "Transfer-Encoding" in self.headers or any(length.strip() != "0" for length in lengths)
        self.close_connection = self.close_connection or self._unread or "close" in tokens
        return True

    def _is_malformed(self) -> bool:
        """Whether the head, which the standard library has understood, should not have been.

        It takes a bare CR for the end of a line, and so one before a line's end for the end of the head: what a proxy
        takes for the rest of the head, such as the length of a body, is a payload then.
        """
        hosts = self.headers.get_all("Host", [])
        return (
            self.request_version == "HTTP/0.9"
            or bool(self.headers.defects)
            or bool(self.headers.get_payload())
            or any("\r" in value or "\n" in value for value in self.headers.values())  # HTTP has no long lines any more
            or len(hosts) > 1
            or (not hosts and self.request_version != "HTTP/1.0")
        )

    def handle_expect_100(self) -> bool:
        """Part of the base class's interface."""
        return True  # the body that the client offers to send is not wanted

    def do_GET(self) -> None:
        """Part of the base class's interface."""
        try:
            target = urlsplit(self.path)
            query = parse_qs(target.query, max_num_fields=_MAX_FIELDS)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        path = unquote(target.path) or "/"
        if path in _HEALTH_PATHS:
            self._answer_health(path)
        elif self._may_read():
            self.answer_page(path, query)

    def do_HEAD(self) -> None:
        """Part of the base class's interface."""
        self.do_GET()

    def _answer_health(self, path: str) -> None:
        """Answer a prober, who has no password, and must not be held back by the limit for others."""
        if path == "/-/healthy":
            self.answer_line(HTTPStatus.OK, "healthy")
        elif self.server.runner.ready():
            self.answer_line(HTTPStatus.OK, "ready")
        else:
            self.answer_line(HTTPStatus.SERVICE_UNAVAILABLE, "the first collections are under way")

    def _may_read(self) -> bool:
        """Whether this request may be answered; what it lacks is answered at once."""
        if self._web.rate_limit and not self._web.rate_limit.allows():
            self.answer_line(HTTPStatus.TOO_MANY_REQUESTS, "too many requests", ("Retry-After", "1"))
            return False
        try:
            if self._web.users is None or self._web.users.allows(self.headers.get("Authorization", "")):
                return True
        except Busy:
            self.answer_busy()
            return False
        challenge = ("WWW-Authenticate", 'Basic realm="trainvitals", charset="UTF-8"')
        self.answer_line(HTTPStatus.UNAUTHORIZED, "a user and a password are needed", challenge)
        return False

    def answer_page(self, path: str, query: dict[str, list[str]]) -> None:
        """Answer a client who may read."""
        if path == "/metrics":
            self._answer_metrics(query)
        elif path == "/":
            self.answer(HTTPStatus.OK, "text/html; charset=utf-8", _LANDING_PAGE)
        else:
            self.answer_line(HTTPStatus.NOT_FOUND, "not found; the metrics are at /metrics")

    def _answer_metrics(self, query: dict[str, list[str]]) -> None:
        collectors = frozenset(query.get("collect[]", ()))
        unknown = collectors.difference(self.server.runner.collectors)
        if unknown:
            running = ", ".join(self.server.runner.collectors)
            self.answer_line(HTTPStatus.BAD_REQUEST, f"collect[]: no such collector; there are: {running}")
            return
        # The answer is written outside: who is slow to read it must not keep others from theirs.
        with self.server.scrape_slot() as is_free:
            if is_free:
                content_type = rendering.content_type(self.headers.get("Accept", ""))
                body = self.server.render(content_type, frozenset(query.get("name[]", ())), collectors)
                compressed = _accepts_gzip(self.headers.get("Accept-Encoding", ""))
                body = gzip.compress(body, compresslevel=1) if compressed else body
        if not is_free:
            self.answer_busy()
            return
        encoding = [("Content-Encoding", "gzip")] if compressed else []
        self.answer(HTTPStatus.OK, content_type, body, *encoding, ("Vary", "Accept, Accept-Encoding"))

    def answer_busy(self) -> None:
        """Send away a client for whom there was no turn."""
        self.answer_line(HTTPStatus.SERVICE_UNAVAILABLE, "too many at once; try again", ("Retry-After", "1"))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that was not understood, as the base class asks for, and then close."""
        self.close_connection = self._unread = True
        if code == HTTPStatus.NOT_IMPLEMENTED:  # what the base class says to a method that has no do_… here
            allow = ("Allow", "GET, HEAD")
            self.answer_line(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed", allow)
        else:
            self.answer_line(HTTPStatus(code), HTTPStatus(code).phrase.lower())

    def answer_line(self, status: HTTPStatus, line: str, *headers: tuple[str, str]) -> None:
        """Answer with a line for people."""
        self.answer(status, "text/plain; charset=utf-8", f"{line}\n".encode(), *headers)

    def answer(self, status: HTTPStatus, content_type: str, body: bytes, *headers: tuple[str, str]) -> None:
        """Answer with this body."""
        fields = {
            "Date": self.date_time_string(),
            "Server": "trainvitals",
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
            **dict(headers),
            **dict(self._web.headers),
        }
        if self.close_connection:
            fields["Connection"] = "close"
        elif self.request_version == "HTTP/1.0":
            fields["Connection"] = "keep-alive"  # not the rule there, so it has to be said
        head = "".join(_lines(status, fields)).encode("latin-1")
        self.server.count_answer(status)
        self.wfile.write(head if self.command == "HEAD" else head + body)  # in as few packets as possible
        self._channel.has_been_answered = True

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged; they are counted."""


def _lines(status: HTTPStatus, fields: dict[str, str]) -> Iterable[str]:
    yield f"HTTP/1.1 {status.value} {status.phrase}\r\n"
    for name, value in fields.items():
        yield f"{name}: {value}\r\n"
    yield "\r\n"


def _accepts_gzip(accept_encoding: str) -> bool:
    for offer in accept_encoding.split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip().lower() == "gzip":
            return weight.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
