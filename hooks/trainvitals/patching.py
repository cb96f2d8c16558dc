"""Replacing a library's function by a wrapper of ours, and putting it back."""

from __future__ import annotations

import functools
import inspect
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
        before = vars(owner).get(name)  # None where it is inherited
        wrapper: Any = functools.wraps(original)(make(original))
        if not hasattr(original, "__code__"):  # written in C and known by another place, where pickles would look
            wrapper.__module__, wrapper.__qualname__ = _place(owner, name)
        if isinstance(inspect.getattr_static(owner, name), staticmethod):
            wrapper = staticmethod(wrapper)
        setattr(owner, name, wrapper)

        def put_back() -> None:
            if vars(owner).get(name) is not wrapper:
                return
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self._undo.append(put_back)

    def on_undo(self, action: Callable[[], None]) -> None:
        """Also do this when the patches are undone."""
        self._undo.append(action)

    def undo(self) -> None:
        """Put everything back. Where that fails, the rest is put back all the same, and then the first error raised."""
        first: Exception | None = None
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


def _place(owner: Any, name: str) -> tuple[str, str]:
    """The module, and the qualified name in it, by which ``owner.name`` is found."""
    if inspect.ismodule(owner):
        return owner.__name__, name
    return owner.__module__, f"{owner.__qualname__}.{name}"
