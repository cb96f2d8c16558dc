"""Where the values come from: exporters over HTTP, the collectors in this process, alerts of a Prometheus.

Each source is asked by a thread of its own, so that one that hangs holds up nothing but itself.
"""

from __future__ import annotations

import base64
import email.utils
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from trainvitals_exporter import rendering, web
from trainvitals_exporter.runner import Runner
from trainvitals_exporter.top.samples import Parser, Samples

PATIENCE_SECONDS: Final = 5.0
ALERTS_INTERVAL: Final = 5.0

T = TypeVar("T")


class SourceError(Exception):
    """A source did not give what it was asked for. The message is for people; `refused` tells that nothing listens."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True)
class Scrape:
    """What an exporter said, and the Unix time by its own clock when it said so."""

    samples: Samples
    clock: float


@dataclass(frozen=True)
class Alert:
    """An alert of Prometheus; `since` is the text that it gives as activeAt."""

    name: str
    state: str
    severity: str
    run: str
    summary: str
    since: str


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The newest value of a source, and when it was had, by the monotonic clock; `error` is empty if that was the
    newest attempt. `value` is None before the first.
    """

    value: T | None = None
    taken: float = 0.0
    error: str = ""


class Source(Protocol):
    """Something that can be asked for a scrape."""

    name: str

    def fetch(self) -> Scrape:
        """Ask now. Raises SourceError."""
        ...


class Poller(Generic[T]):
    """Asks a source again and again, in a thread that ends with the process or with stop()."""

    def __init__(self, fetch: Callable[[], T], interval: float) -> None:
        self._fetch, self._interval = fetch, interval
        self._stop = threading.Event()
        self._begun = time.monotonic()
        self.answer: Answer[T] = Answer(taken=self._begun)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin asking."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more, without waiting for an answer under way."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                self.answer = Answer(self._fetch(), time.monotonic())
            except SourceError as error:
                self.answer = Answer(self.answer.value, self.answer.taken, str(error))
            self._stop.wait(max(self._interval - (time.monotonic() - begun), 0.1))


class HttpSource:
    """An exporter's endpoint. A user and password in the address, else the given ones, are sent as basic auth.

    Raises ValueError for what is no address.
    """

    def __init__(self, url: str, user: str = "", password: str = "") -> None:
        self._url, self._headers = request_parts(url, user, password, "/metrics")
        self._headers["Accept"] = "text/plain;version=0.0.4"
        self.name = urlsplit(self._url).netloc
        self._parser = Parser()

    def fetch(self) -> Scrape:
        """Scrape the endpoint. Raises SourceError."""
        body, date = get(self._url, self._headers)
        try:
            samples = self._parser.parse(body.decode("utf-8", "replace"))
        except (ValueError, IndexError):
            raise SourceError("what answers is no exporter") from None
        if not samples:
            raise SourceError("what answers is no trainvitals exporter")
        return Scrape(samples, _clock(date))


class LocalSource:
    """The collectors, at work in this process."""

    def __init__(self, runner: Runner) -> None:
        self.name = "this host"
        self._runner = runner
        self._parser = Parser()
        runner.start()

    def fetch(self) -> Scrape:
        """What the collectors know now."""
        self._runner.wait_until_ready()
        text = self._runner.render(rendering.TEXT).decode("utf-8", "replace")
        return Scrape(self._parser.parse(text), time.time())


_SEVERITIES = ("critical", "warning", "info")


class Prometheus:
    """The alerts of a Prometheus server. Raises ValueError for what is no address."""

    def __init__(self, url: str, user: str = "", password: str = "") -> None:
        base, self._headers = request_parts(url, user, password, "")
        self._url = base.rstrip("/") + "/api/v1/alerts"

    def fetch(self) -> tuple[Alert, ...]:
        """Pending and firing alerts, the firing and the worst ones first. Raises SourceError."""
        body, _ = get(self._url, self._headers)
        try:
            alerts = [_alert(each) for each in json.loads(body)["data"]["alerts"]]
            alerts = [each for each in alerts if each.severity != "none"]  # Watchdog fires always
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceError("what answers is no Prometheus") from None
        return tuple(sorted(alerts, key=_urgency))


def _urgency(alert: Alert) -> tuple[bool, int, str, str, str]:
    rank = _SEVERITIES.index(alert.severity) if alert.severity in _SEVERITIES else len(_SEVERITIES)
    return alert.state != "firing", rank, alert.since, alert.name, alert.run


def _alert(entry: dict[str, Any]) -> Alert:
    labels, notes = entry["labels"], entry.get("annotations", {})
    return Alert(
        str(labels.get("alertname", "")), str(entry["state"]), str(labels.get("severity", "")),
        str(labels.get("run", "")), str(notes.get("summary", "")), str(entry.get("activeAt", "")),
    )  # fmt: skip


def request_parts(url: str, user: str, password: str, default_path: str) -> tuple[str, dict[str, str]]:
    """The address without its user and password, and the headers that say them. Raises ValueError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname or (parts.port or 1) > 65535:
        raise ValueError(f"{url!r} is no address such as http://127.0.0.1:10288/metrics")
    headers = {}
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    path = parts.path if parts.path not in ("", "/") else default_path
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, parts.query, "")), headers


def get(url: str, headers: dict[str, str]) -> tuple[bytes, str]:
    """Body and Date header of an answer with status 200. Raises SourceError."""
    try:
        answer = web.ask(url, headers=headers, patience=PATIENCE_SECONDS)
    except web.Unanswered as error:
        raise SourceError(str(error), refused=error.refused) from None
    if answer.status != 200:
        raise SourceError(_refusal(answer.status))
    return answer.body, answer.headers.get("Date", "")


def _refusal(status: int) -> str:
    wants_user = status in (401, 403)
    return f"HTTP {status}" + ("; see --help for user and password" if wants_user else "")


def _clock(date: str) -> float:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return time.time()
