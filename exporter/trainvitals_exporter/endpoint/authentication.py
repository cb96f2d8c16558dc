"""Users and their passwords, by HTTP's basic authentication and bcrypt."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import threading
from collections.abc import Mapping
from typing import Final

_HASH: Final = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_POSSIBLE_COSTS: Final = range(4, 32)
MAX_COST: Final = 16  # some seconds a password; each step doubles that
_PASSWORD_BYTES: Final = 72  # bcrypt reads no more
# Hashing is slow on purpose, and done one at a time. Who guesses passwords fills this queue, and not every thread.
_MAX_WAITING: Final = 4
_REMEMBERED: Final = 100


class Busy(Exception):
    """Too many passwords are being checked at this moment."""


class BasicAuth:
    """Who may read. `users` maps names to bcrypt hashes. May be used from any thread."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = {name.encode(): hashed.encode() for name, hashed in users.items()}
        cost = max(_cost(hashed) for hashed in users.values())
        # Checked for unknown users, so that they take as long as known ones. No password is known to fit.
        self._nobody = b"$2b$%02d$%s" % (cost, b"." * 53)
        self._waiting = threading.BoundedSemaphore(_MAX_WAITING)
        self._one_at_a_time = threading.Lock()
        # Right passwords, as digests under a key that nobody learns; else every scrape would cost a slow hash.
        self._key = secrets.token_bytes(32)
        self._right: set[bytes] = set()
        import bcrypt  # not at the top: most exporters have no users

        self._check = bcrypt.checkpw

    @staticmethod
    def is_hash(text: str) -> bool:
        """Whether the text is a bcrypt hash."""
        return _HASH.fullmatch(text) is not None and _cost(text) in _POSSIBLE_COSTS

    @staticmethod
    def is_quick(hashed: str) -> bool:
        """Whether a password can be checked in the time that a scrape may take."""
        return _cost(hashed) <= MAX_COST

    def allows(self, authorization: str) -> bool:
        """Whether a request with this Authorization header may pass. Raises Busy."""
        name, password = _credentials(authorization)
        if name is None:
            return False
        digest = hashlib.blake2b(b"%d:%s%s" % (len(name), name, password), key=self._key).digest()
        if digest in self._right:
            return True
        if not self._waiting.acquire(blocking=False):
            raise Busy
        try:
            right = self._is_right(name, password)
        finally:
            self._waiting.release()
        if right and len(self._right) < _REMEMBERED:
            self._right.add(digest)
        return right

    def _is_right(self, name: bytes, password: bytes) -> bool:
        hashed = self._users.get(name)
        with self._one_at_a_time:
            try:
                fits = self._check(password, self._nobody if hashed is None else hashed)
            except ValueError:  # a password with a NUL, which some versions of bcrypt refuse
                fits = False
        return fits and hashed is not None


def _cost(hashed: str) -> int:
    match = _HASH.fullmatch(hashed)
    return int(match[1]) if match else 0


def _credentials(authorization: str) -> tuple[bytes | None, bytes]:
    """Name and password of an Authorization header; None where it holds none."""
    scheme, _, encoded = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return None, b""
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None, b""
    return (name if colon else None), password[:_PASSWORD_BYTES]
