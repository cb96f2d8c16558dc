"""The service manager's side of things: sockets that it opened for us, and telling it how we are.

https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html and sd_notify.html
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

_FIRST_DESCRIPTOR: Final = 3


def activated_sockets() -> list[socket.socket]:
    """The listening sockets that were handed to this process; [] without any. Can be asked once only.

    Raises OSError for one that is not listening for a stream.
    """
    process, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)
        handed = socket.socket(fileno=descriptor)
        if handed.type != socket.SOCK_STREAM or not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(f"socket {descriptor} is not listening for a stream; ListenStream= and Accept=no are needed")
        sockets.append(handed)
    return sockets


class ServiceManager:
    """Tells the service manager that started this process how it is; without one, does nothing."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        timeout, process = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        asked = bool(self._address) and timeout.isdecimal() and int(timeout) > 0 and process == str(os.getpid())
        # Half of the time that it grants, as its manual advises; None where it asks for nothing.
        self.watchdog_seconds = int(timeout) / 2e6 if asked else None
        self._next = 0.0

    def ready(self, status: str) -> None:
        """Say that clients are served from now on."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog when it is due. To be called by the loop whose standstill it is to notice."""
        now = time.monotonic()
        if self.watchdog_seconds is not None and now >= self._next:
            self._next = now + self.watchdog_seconds / 2
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notice:
                notice.connect(address)
                notice.send(message.encode())
        except OSError:
            self._address = ""  # it went away; there is nobody to tell
