"""What can go wrong with the stack; each message is for people, and says what to do."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot be looked after as asked: exit code 1."""


class WrongUse(StackError):
    """What was asked for makes no sense: exit code 2."""
