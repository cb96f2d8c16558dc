"""The web configuration file: TLS, users, headers and a rate limit, in the format of Prometheus's exporter toolkit.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md

What the format allows but cannot be done here is an error, never ignored.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainvitals_exporter import yaml_files
from trainvitals_exporter.endpoint import tls
from trainvitals_exporter.endpoint.authentication import MAX_COST, BasicAuth
from trainvitals_exporter.endpoint.rate_limit import RateLimit
from trainvitals_exporter.yaml_files import Unusable

# The headers that may be set, and the values that may be given to them where the format lists them.
_HEADERS: Final[dict[str, tuple[str, ...]]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_MAX_INTERVAL: Final = 86400.0  # seconds
_MAX_BURST: Final = 1 << 30
_RETRY_SECONDS: Final = 5.0
_SECTIONS: Final = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)")

_log = logging.getLogger(__name__)

_Signature = list[tuple[int, ...]]


@dataclass(frozen=True)
class WebConfig:
    """What a web configuration file asks for. The defaults are those of no file: plain HTTP for everyone."""

    tls: tls.Tls | None = None
    users: BasicAuth | None = None
    rate_limit: RateLimit | None = None
    headers: tuple[tuple[str, str], ...] = ()
    files: tuple[Path, ...] = ()

    @classmethod
    def load(cls, path: Path) -> WebConfig:
        """Read the file, and the certificates that it names. Raises Unusable."""
        content = yaml_files.read_mapping(path)
        try:
            yaml_files.check_keys(content, _SECTIONS)
            section = yaml_files.section_of(content, "tls_server_config")
            made = tls.create(section, path.parent) if section else None
            users = _users(yaml_files.section_of(content, "basic_auth_users"))
            return cls(
                made,
                BasicAuth(users) if users else None,
                _rate_limit(yaml_files.section_of(content, "rate_limit")),
                tuple(_headers(yaml_files.section_of(content, "http_server_config")).items()),
                (path, *(made.files if made else ())),
            )
        except Unusable as error:
            raise Unusable(f"{path}: {error}") from None

    @property
    def protections(self) -> frozenset[str]:
        """What keeps strangers out."""
        held = {
            "TLS": self.tls is not None,
            "client certificates": self.tls is not None and self.tls.verifies_clients,
            "names of client certificates": self.tls is not None and bool(self.tls.client_allowed_sans),
            "users": self.users is not None,
        }
        return frozenset(name for name, is_held in held.items() if is_held)

    def followed_by(self, path: Path) -> WebConfig:
        """The file's new content. Raises Unusable, also where it would take protection away."""
        fresh = WebConfig.load(path)
        lost = self.protections - fresh.protections
        if lost:
            raise Unusable(f"{path} would switch off {', '.join(sorted(lost))}, which takes a restart")
        return fresh


class WebConfigFile:
    """A web configuration file that is read again whenever it, or a certificate that it names, has changed.

    A file that is no good leaves everything as it is. So does one that would take protection away: it may be one that
    is only half written, and a restart is not much to ask of someone who means it. Raises Unusable for a first file
    that is no good. Without a path, nothing is read and there is no protection.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._config = WebConfig.load(path) if path else WebConfig()
        self._signature = _signature(self._config.files)
        self._trouble = ""
        self._retry_at = math.inf
        self.reloads = {"success": 0, "failure": 0}

    def current(self) -> WebConfig:
        """What counts now. May be called from any thread; while one reads the file, the others get what counted."""
        if self._path is not None and self._lock.acquire(blocking=False):
            try:
                self._reload_if_changed(self._path)
            finally:
                self._lock.release()
        return self._config

    def _reload_if_changed(self, path: Path) -> None:
        signature = _signature(self._config.files)
        if signature == self._signature and time.monotonic() < self._retry_at:
            return
        self._signature = signature  # taken before reading: a change while it is read is seen the next time
        try:
            fresh = self._config.followed_by(path)
        except Unusable as error:
            self._keep_old(str(error))
            return
        self._trouble, self._retry_at = "", math.inf
        self.reloads["success"] += 1
        _log.info("web configuration has changed and was read again: %s", path)
        if fresh.files != self._config.files:
            self._signature = _signature(fresh.files)
        self._config = fresh

    def _keep_old(self, trouble: str) -> None:
        # What is missing may be a file that only the new configuration names, and so is not watched.
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        if trouble != self._trouble:
            self._trouble = trouble
            self.reloads["failure"] += 1
            _log.error("web configuration has changed, but what counted before still counts: %s", trouble)


def _signature(files: Iterable[Path]) -> _Signature:
    """What changes when a file is edited, replaced, or a symlink on the way to it is moved."""
    found: _Signature = []
    for file in files:
        try:
            status = file.stat()
            found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(())
    return found


def _users(section: dict[str, Any]) -> dict[str, str]:
    for name, hashed in section.items():
        if not name or ":" in name:
            raise Unusable(f"basic_auth_users: {name!r} cannot be a user's name: it is empty or holds a colon")
        if not isinstance(hashed, str) or not BasicAuth.is_hash(hashed):
            raise Unusable(f"basic_auth_users: the password of {name} is no bcrypt hash; `htpasswd -nB` makes one")
        if not BasicAuth.is_quick(hashed):
            raise Unusable(
                f"basic_auth_users: the bcrypt cost of {name} is above {MAX_COST}: slower than a scrape may be"
            )
    return section


def _headers(section: dict[str, Any]) -> dict[str, str]:
    yaml_files.check_keys(section, ("http2", "headers"), "http_server_config.")
    http2 = section.get("http2", False)
    if http2 is not False:
        what = "HTTP/2 is not supported here; leave it out, or say false" if http2 is True else "expected true or false"
        raise Unusable(f"http_server_config.http2: {what}")
    headers = yaml_files.section_of(section, "headers")
    yaml_files.check_keys(headers, _HEADERS, "http_server_config.headers.")
    for name, value in headers.items():
        allowed = _HEADERS[name]
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise Unusable(f"http_server_config.headers.{name}: expected printable ASCII text")
        if allowed and value not in allowed and value:
            raise Unusable(f"http_server_config.headers.{name}: expected {' or '.join(allowed)}, got {value}")
    return {name: value for name, value in headers.items() if value}  # a blank one is unset


def _rate_limit(section: dict[str, Any]) -> RateLimit | None:
    yaml_files.check_keys(section, ("interval", "burst"), "rate_limit.")
    interval, burst = _duration(section.get("interval", 0)), section.get("burst", 0)
    if interval == 0:
        return None
    if isinstance(burst, bool) or not isinstance(burst, int) or not 1 <= burst <= _MAX_BURST:
        raise Unusable("rate_limit.burst: expected a whole number from 1; with less, nobody would be served")
    return RateLimit(interval, burst)


def _duration(value: object) -> float:
    """Seconds of a duration as Go spells it, such as 1m30s; 0 needs no unit. Raises Unusable."""
    text = str(value).strip() if isinstance(value, str | int | float) else type(value).__name__
    if text == "0":
        return 0.0
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise Unusable(f"rate_limit.interval: {text!r} is not a duration, such as 500ms or 1s")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds > _MAX_INTERVAL:
        raise Unusable("rate_limit.interval: more than a day is no limit, but a closed door")
    return seconds
