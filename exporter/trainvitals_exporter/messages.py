"""What is said to people, in the log and on the terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text in one line, whatever names of files, runs or keys it quotes."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
