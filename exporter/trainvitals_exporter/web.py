"""Questions over HTTP to exporters, Prometheus, Alertmanager and Grafana, with little patience."""

from __future__ import annotations

import email.utils
import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, Final

PATIENCE_SECONDS: Final = 2.0
_MOST_BYTES: Final = 64 << 20


class Unanswered(Exception):
    """Nothing answers there as it should; the message is the reason.

    `refused`: nothing listens there. `unknown`: its name is not known here. `tls`: certificates are the matter.
    """

    def __init__(self, reason: str, *, refused: bool = False, unknown: bool = False, tls: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused
        self.unknown = unknown
        self.tls = tls


@dataclass(frozen=True)
class Answer:
    """What a server said. `ahead` is how many seconds its clock is ahead of ours, None where it does not tell."""

    status: int
    headers: Message
    body: bytes
    ahead: float | None

    def json(self) -> Any:
        """The body; None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def good(self) -> bool:
        """Whether the status tells of success."""
        return 200 <= self.status < 300


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        """Where to go on; nowhere with a password, which is for nobody else."""
        return None if req.has_header("Authorization") else super().redirect_request(req, *answer)


# Proxies are for the world outside.
_opener: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Redirects)


def ask(
    url: str,
    parameters: Mapping[str, str] | None = None,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Answer:
    """What is at `url`, whatever its status; with a body, what is said to it. `patience` in seconds.

    Raises Unanswered.
    """
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    try:
        request = urllib.request.Request(url + query, body, dict(headers or {}))  # noqa: S310  # asked by who runs us
        try:
            with _opener.open(request, timeout=patience) as response:
                return _answer(response.status, response.headers, _read(response, 2 * patience))
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.headers, error.read(65536))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLError):
            why = getattr(reason, "verify_message", "") or reason.reason or reason
            raise Unanswered(f"TLS: {why}", tls=True) from None
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        refused, unknown = isinstance(reason, ConnectionRefusedError), isinstance(reason, socket.gaierror)
        raise Unanswered(str(text).lower(), refused=refused, unknown=unknown) from None


def content(url: str) -> bytes:
    """What is at `url`. Raises Unanswered, also where the status does not tell of success."""
    answer = ask(url, patience=5.0)
    if not answer.good:
        raise Unanswered(f"status {answer.status}")
    return answer.body


def field(document: Any, *path: str | int) -> Any:
    """What lies at that path in a JSON document, None where there is nothing."""
    for step in path:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def items(document: Any, *path: str | int) -> list[Any]:
    """The list that lies at that path, [] where there is none."""
    found = field(document, *path)
    return found if isinstance(found, list) else []


def _read(response: http.client.HTTPResponse, seconds: float) -> bytes:
    """The body, of bounded size, within bounded time: a server may send a byte a second."""
    body, deadline = b"", time.monotonic() + seconds
    while chunk := response.read1(1 << 20):
        body += chunk
        if len(body) > _MOST_BYTES or time.monotonic() > deadline:
            raise TimeoutError("its answer does not end")
    return body


def _answer(status: int, headers: Message, body: bytes) -> Answer:
    date = email.utils.parsedate_tz(headers.get("Date", ""))
    # The header has whole seconds, rounded down.
    ahead = None if date is None else email.utils.mktime_tz(date) + 0.5 - time.time()
    return Answer(status, headers, body, ahead)
