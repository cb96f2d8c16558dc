"""File descriptors in a process that is not ours: a script may close them all (a daemon does) and open its own."""

from __future__ import annotations

import os


class Descriptor:
    """A file descriptor, and how to tell that its number still stands for the file it was opened for."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._file = _file(number)

    def is_ours(self) -> bool:
        """Whether nobody closed it behind our back: a number given to another file must not be written to or closed."""
        return _file(self.number) == self._file

    def close(self) -> None:
        """Close it if it is still ours."""
        if self.is_ours():
            os.close(self.number)


def _file(number: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino
