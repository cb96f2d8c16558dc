"""Who pushes. Secrets come from files or the environment: a command line can be read by everyone on the machine."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

USERNAME: Final = "TRAINVITALS_PUSH_USERNAME"
PASSWORD: Final = "TRAINVITALS_PUSH_PASSWORD"  # noqa: S105 (the name of a variable)
BEARER_TOKEN: Final = "TRAINVITALS_PUSH_BEARER_TOKEN"  # noqa: S105


@dataclass(frozen=True)
class Secret:
    """A text, or the file that holds it, which may change while we run."""

    text: str = ""
    file: Path | None = None

    def read(self) -> str:
        """The secret. Raises ValueError, which never quotes it."""
        if self.file is None:
            return self.text
        try:
            text = self.file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {self.file}: {getattr(error, 'strerror', None) or 'not text'}") from None
        if not text:
            raise ValueError(f"{self.file} is empty")
        return text


@dataclass(frozen=True)
class Credentials:
    """A user with a password, or a token, or neither."""

    username: str = ""
    password: Secret | None = None
    token: Secret | None = None

    @classmethod
    def read(
        cls, username: str | None, password_file: Path | None, token_file: Path | None, environment: Mapping[str, str]
    ) -> Credentials:
        """What was given, else what the environment says. Raises ValueError for what is no good."""
        found = cls(
            username or environment.get(USERNAME, ""),
            _secret(password_file, environment.get(PASSWORD, "")),
            _secret(token_file, environment.get(BEARER_TOKEN, "")),
        )
        if found.token and (found.username or found.password):
            raise ValueError("a bearer token and a user were given; choose one")
        if bool(found.username) != bool(found.password):
            raise ValueError("a user and a password belong together: --username and --password-file")
        if ":" in found.username:
            raise ValueError("a user's name cannot contain a colon")
        found.authorization()
        return found

    def authorization(self) -> tuple[str, tuple[str, ...]]:
        """The header's value, empty where there is none, and what must never be shown. Raises ValueError."""
        if self.token:
            token = self.token.read()
            if not re.fullmatch(r"[\x21-\x7e]+", token):
                raise ValueError("the bearer token has spaces, line breaks or letters that no token has")
            return f"Bearer {token}", (token,)
        if self.password:
            password = self.password.read()
            encoded = base64.b64encode(f"{self.username}:{password}".encode()).decode()
            return f"Basic {encoded}", (encoded, password)
        return "", ()


def _secret(file: Path | None, text: str) -> Secret | None:
    return Secret(text, file) if file or text else None
