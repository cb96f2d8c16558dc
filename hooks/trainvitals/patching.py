"""Replacing a library's function by a wrapper of ours, and putting it back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Patches:
    """The functions that are replaced right now. Undone in reverse order, each only if nobody replaced it after us."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def wrap(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace ``owner.name`` by ``make(original)``, keeping its name, signature and documentation.

        Does nothing where `owner` has no such attribute: libraries differ by version.
        """
        original = getattr(owner, name, None)
        if original is None:
            return
        inherited = name not in vars(owner)
        wrapper = functools.wraps(original)(make(original))
        setattr(owner, name, wrapper)

        def put_back() -> None:
            if vars(owner).get(name) is not wrapper:
                return
            if inherited:
                delattr(owner, name)
            else:
                setattr(owner, name, original)

        self._undo.append(put_back)

    def on_undo(self, action: Callable[[], None]) -> None:
        """Also do this when the patches are undone."""
        self._undo.append(action)

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()
