"""Asks a chat robot itself: it answers 200 to what it refuses, so Alertmanager takes that for success."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from trainvitals_exporter.messages import printable

_SECONDS: Final = 15
_MOST_BYTES: Final = 1 << 16
# What DingTalk and WeCom, and what Feishu call the number that is 0 when all is well, and the words for it.
_CODES: Final = ("errcode", "code", "StatusCode")
_WORDS: Final = ("errmsg", "msg", "StatusMessage")


class Refused(Exception):
    """The robot did not take the message; why, for people, without the secret."""


def send(url_file: Path, payload: Any, text: str) -> None:
    """Send Alertmanager's payload with `text` in place of its templates to the robot. Raises Refused."""
    url = _address(url_file)
    body = json.dumps(_filled(payload, text)).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
            answer = response.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        raise Refused(f"status {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Errors of other kinds may quote the address.
        raise Refused(f"it cannot be reached: {getattr(error, 'reason', None) or type(error).__name__}") from None
    refusal = _refusal(answer)
    if refusal:
        raise Refused(_without(url, refusal))


def _address(url_file: Path) -> str:
    try:
        url = url_file.read_text().strip()
        parts = urlsplit(url)
    except (OSError, ValueError) as error:
        raise Refused(f"{url_file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or any(each.isspace() for each in url):
        raise Refused(f"{url_file} does not hold the address that the robot was given")
    return url


def _filled(payload: Any, text: str) -> Any:
    if isinstance(payload, dict):
        return {key: _filled(value, text) for key, value in payload.items()}
    if isinstance(payload, list):
        return [_filled(value, text) for value in payload]
    return text if isinstance(payload, str) and "{{" in payload else payload


def _refusal(answer: bytes) -> str | None:
    """Why the robot did not take it; None where it did, or answers nothing that is known."""
    try:
        said = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    code = next((said[name] for name in _CODES if name in said), 0)
    if code in (0, "0"):
        return None
    words = next((said[name] for name in _WORDS if said.get(name)), "without saying why")
    return f"error {code}: {words}"


def _without(url: str, text: str) -> str:
    """The text in one short line, without the parts of the address that are a secret."""
    parts = urlsplit(url)
    secrets = [url, *parts.path.split("/"), *(value.partition("=")[2] for value in parts.query.split("&"))]
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 8:
            text = text.replace(secret, "***")
    return printable(text[:300])
