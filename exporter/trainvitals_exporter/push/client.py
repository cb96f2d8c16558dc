"""One push over HTTP, and what became of it."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from trainvitals_exporter.messages import printable
from trainvitals_exporter.push.credentials import Credentials

REQUEST_SECONDS: Final = 10.0  # for a whole request, however slowly the server takes it or answers
MAX_RETRY_AFTER_SECONDS: Final = 300.0
_SHOWN: Final = 300  # characters of what a server says
_HINTS: Final = {
    401: "see --username, --password-file and --bearer-token-file",
    403: "see --username, --password-file and --bearer-token-file",
    404: "is the address right, and remote write enabled? Prometheus needs --web.enable-remote-write-receiver",
    405: "is the address right?",
    413: "the server, or a proxy before it, takes no requests of this size",
}


@dataclass(frozen=True)
class Push:
    """One request; `samples` is how many are lost if it is never sent."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str]
    samples: int


class Refused(Exception):
    """The server will never take this; the message says why, and what to do."""


class TryAgain(Exception):
    """It may work later, after `seconds` if the server says so."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET without a body, and takes the password along to wherever it is sent."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """Sends pushes, each over a connection of its own; by the proxies of the environment."""

    def __init__(self, credentials: Credentials, tls: ssl.SSLContext, headers: Mapping[str, str]) -> None:
        self._credentials = credentials
        self._headers = headers
        self._socket: socket.socket | None = None
        self._opener = urllib.request.build_opener(_NoRedirects, *_handlers(self._connected, tls))

    def send(self, push: Push) -> None:
        """Returns when the server has taken it. Raises Refused or TryAgain."""
        try:
            authorization, secrets = self._credentials.authorization()
        except ValueError as error:  # a file that is being replaced
            raise TryAgain(str(error)) from None
        headers = {**push.headers, **self._headers, **({"Authorization": authorization} if authorization else {})}
        request = urllib.request.Request(push.url, push.body or None, headers, method=push.method)  # noqa: S310  # checked
        # The timeout of a socket starts anew with each byte.
        alarm = threading.Timer(REQUEST_SECONDS, self._hang_up)
        alarm.daemon = True
        alarm.start()
        try:
            with self._opener.open(request, timeout=REQUEST_SECONDS) as response:
                response.read(_SHOWN)
        except urllib.error.HTTPError as error:
            with error:
                _judge(error, secrets)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a name that IDNA refuses
            raise TryAgain(_reason(error)) from None
        finally:
            alarm.cancel()

    def _connected(self, connection: socket.socket) -> None:
        self._socket = connection

    def _hang_up(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already


def _handlers(connected: Any, tls: ssl.SSLContext) -> tuple[urllib.request.BaseHandler, ...]:
    """Those of http and https, whose connections tell their socket."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            connected(self.sock)

    class Encrypted(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            connected(self.sock)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class EncryptedHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Encrypted, req, context=tls)

    return PlainHandler(), EncryptedHandler()


def _judge(error: urllib.error.HTTPError, secrets: tuple[str, ...]) -> None:
    """Raises what an answer other than success means."""
    said = f"{error.code} {error.reason}"
    with contextlib.suppress(OSError, http.client.HTTPException):  # the status says enough
        said += f": {error.read(_SHOWN).decode('utf-8', 'replace').strip()}"
    for secret in secrets:  # a server may echo what it was sent
        said = said.replace(secret, "…")
    if error.code == 429 or error.code >= 500:
        raise TryAgain(printable(said), _retry_after(error.headers.get("Retry-After", "")))
    if 300 <= error.code < 400:
        raise Refused(f"{error.code}: it redirects to {shown(error.headers.get('Location', ''))}; give that address")
    raise Refused("; ".join(filter(None, [printable(said).rstrip(":; "), _HINTS.get(error.code, "")])))


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    return printable(str(getattr(cause, "strerror", None) or cause or type(cause).__name__))


def _retry_after(text: str) -> float | None:
    """The header's seconds; it may also name a date."""
    if text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def shown(url: str) -> str:
    """The address as it may be told: without a user, and without the query, which may hold a key."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "another address"
    return printable(f"{parts.scheme}://{parts.hostname}{port}{parts.path}" if parts.hostname else parts.path)
