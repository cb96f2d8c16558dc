"""The bytes of one client's connection, each read and write under a deadline."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import time
from typing import Any, Final

# Seconds. All are far above what a scrape over a bad line takes.
HANDSHAKE: Final = 10.0
HEAD: Final = 10.0  # from a request's first byte, or from the first moment of a connection, to the end of its headers
IDLE: Final = 120.0  # between two requests; longer than usual scrape intervals, so that Prometheus keeps its connection
ANSWER: Final = 15.0
LINGER: Final = 1.0  # for what a client still sends after its last answer; closing at once could destroy that answer

_MAX_HEAD: Final = 32768  # bytes of request line and headers
_MAX_LINGER: Final = 1 << 20  # bytes
_LINGER_BUFFER: Final = 8192


class HeadTooLong(Exception):
    """The client has sent more than a request's head may have."""


class Channel(io.RawIOBase):
    """A connection's bytes. Reading and writing raise TimeoutError at the deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.waiting_since: float | None = time.monotonic()  # for the client; None while it is our turn
        self.has_been_answered = False
        self.is_answering = False
        self.timed_out = False
        self._deadline = 0.0
        self._limit = 0
        self._head_begun = False

    def expect(self, seconds: float) -> None:
        """Give the client this long from now."""
        self.waiting_since = time.monotonic()
        self._deadline = self.waiting_since + seconds

    def expect_request(self) -> None:
        """Give the client as long as it may take until its next request, and for its head once that has begun."""
        self.expect(IDLE if self.has_been_answered else HEAD)
        self._limit = _MAX_HEAD
        self._head_begun = not self.has_been_answered

    def start_tls(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Make it a TLS connection. Raises OSError, of which ssl.SSLError is one."""
        self.expect(HANDSHAKE)
        encrypted = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.socket = encrypted
        self._set_timeout()
        encrypted.do_handshake()  # the timeout is for all of it
        return encrypted

    def readable(self) -> bool:
        """Part of io's interface."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, up to the buffer's size. Raises HeadTooLong, too."""
        if self._limit <= 0:
            raise HeadTooLong
        self._set_timeout()
        try:
            count = self.socket.recv_into(buffer)
        except TimeoutError:
            self.timed_out = self._head_begun  # being idle is nothing wrong
            raise
        self._limit -= count
        if count and not self._head_begun:
            self._head_begun = True
            self.expect(HEAD)
        return count

    def writable(self) -> bool:
        """Part of io's interface."""
        return True

    def write(self, data: Any) -> int:
        """Write all of it."""
        self.expect(ANSWER)
        self.is_answering = True
        rest = memoryview(data)
        try:
            while rest:
                self._set_timeout()
                rest = rest[self.socket.send(rest) :]
        except TimeoutError:
            self.timed_out = True
            raise
        finally:
            self.is_answering = False
        return len(data)

    def drop(self) -> None:
        """Cut the connection. May be called from any thread; the one that serves it will notice, and end."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # that of ssl is not made for several threads

    def finish(self, linger: bool) -> None:
        """Close it; with `linger`, only after the client had time to read the answer and to stop sending."""
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self.socket, ssl.SSLSocket):
                self.socket.settimeout(0)
                with contextlib.suppress(OSError):
                    self.socket.unwrap()  # says goodbye, and does not wait for theirs
            if linger:
                self._linger()
        self.socket.close()

    def _linger(self) -> None:
        # Below TLS: what comes now is of no interest, and its end is that of the connection.
        self.expect(LINGER)
        socket.socket.shutdown(self.socket, socket.SHUT_WR)
        buffer, total = bytearray(_LINGER_BUFFER), 0
        while total < _MAX_LINGER:
            self._set_timeout()
            count = socket.socket.recv_into(self.socket, buffer)
            if not count:
                return
            total += count

    def _set_timeout(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            self.timed_out = self._head_begun
            raise TimeoutError
        self.socket.settimeout(remaining)
