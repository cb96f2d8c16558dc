"""The sockets to accept connections on."""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

DEFAULT_LISTEN: Final = "127.0.0.1:10288"
# Connections that the kernel holds until they are accepted; in a flood, those of good clients are among them.
_BACKLOG: Final = 1024


class Address(NamedTuple):
    """Where to listen: a host's name or IP address, and a TCP port; 0 for a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """An address from HOST:PORT or [IPV6]:PORT. Raises ValueError."""
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not bare or not port.isdecimal() or int(port) > 65535 or (":" in bare and bare == host) or "[" in bare:
            raise ValueError(f"{text!r} is not HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:10288")
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen(address: Address) -> socket.socket:
    """A listening socket; of a name with several addresses, the first counts. Raises OSError.

    An IPv6 address means IPv6 only, so that `0.0.0.0` and `[::]` can stand side by side.
    """
    family, _, _, _, found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart has to wait for old connections
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(found)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def shown(listener: socket.socket) -> str:
    """The address of a listening socket, for people; the path of one that has no network address."""
    name = listener.getsockname()
    return str(Address(name[0], name[1])) if isinstance(name, tuple) else f"unix:{name}"


def url(listener: socket.socket, scheme: str) -> str:
    """Where the metrics are, for people."""
    address = shown(listener)
    return address if address.startswith("unix:") else f"{scheme}://{address}/metrics"
