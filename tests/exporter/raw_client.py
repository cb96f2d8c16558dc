"""A client that sends the bytes it is told to, for what no well-behaved client would send."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import NamedTuple

from tests.exporter.exporter_process import DEADLINE, ExporterProcess

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class Answer(NamedTuple):
    """An HTTP answer."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """One TCP connection to an exporter, or to the address of a server."""

    def __init__(self, server: ExporterProcess | tuple[str, int], tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection(address(server), timeout=DEADLINE)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.file = self.socket.makefile("rb")

    def ask(self, request: bytes, has_body: bool = True) -> Answer | None:
        """The answer to a request; None when the connection was closed without."""
        self.send(request)
        return self.answer(has_body)

    def send(self, data: bytes) -> None:
        """Send, whether it arrives or not."""
        try:
            self.socket.sendall(data)
        except ConnectionError:
            return

    def answer(self, has_body: bool = True) -> Answer | None:
        """The next answer; None when there is none."""
        try:
            line = self.file.readline()
            if not line:
                return None
            version, status, phrase = line.decode("latin-1").split(" ", 2)
            assert phrase.strip()
            headers = {}
            while (line := self.file.readline().rstrip(b"\r\n")) != b"":
                name, _, value = line.decode("latin-1").partition(": ")
                assert name not in headers
                headers[name] = value
            body = self.file.read(int(headers["Content-Length"])) if has_body else b""
        except ConnectionError:
            return None
        return Answer(version, int(status), headers, body)

    def is_closed(self) -> bool:
        """Whether the server has ended the connection, and all that it said was read; without TLS, does not wait."""
        try:
            return bool(select.select([self.socket], [], [], 0)[0]) and not self.socket.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return True

    def wait_until_closed(self) -> None:
        """Return when the server has ended the connection, having said nothing more."""
        with contextlib.suppress(ConnectionError):
            assert self.file.read() == b""

    def close(self) -> None:
        """Leave."""
        self.file.close()
        self.socket.close()


def address(server: ExporterProcess | tuple[str, int]) -> tuple[str, int]:
    """Where the server listens."""
    if isinstance(server, tuple):
        return server
    host, _, port = server.url.partition("://")[2].rpartition(":")
    return host.strip("[]"), int(port)
