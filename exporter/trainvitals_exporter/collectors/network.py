"""What the host's network cards receive and send."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.runner import NothingToReport
from trainvitals_exporter.settings import Settings


class Network:
    """Interfaces with hardware behind them, or with what a virtual machine takes for hardware.

    Bonds, bridges, VLANs, tunnels and the ends of containers (veth) have none: what they carry to other hosts passes
    through a card and would count twice, and the rest, like that of the loopback, never leaves the host.
    """

    name = "network"
    interval = 5.0

    def __init__(self, procfs: Path, sysfs: Path) -> None:
        self._procfs = procfs
        self._interfaces = sysfs / "class" / "net"

    def collect(self) -> Iterable[Family]:
        """Read the kernel's counters."""
        out = Families()
        for line in self._counters().splitlines()[2:]:
            name, _, fields = line.partition(":")
            interface = name.strip()
            if self._is_card(interface):
                received, *_, sent = fields.split()[:9]
                out.add("trainvitals_host_network_receive_bytes_total", int(received), interface)
                out.add("trainvitals_host_network_transmit_bytes_total", int(sent), interface)
        if not any(out):
            raise NothingToReport("no network card can be seen; a container needs the host's /proc and /sys for it")
        return out

    def _counters(self) -> str:
        """Those of process 1: our own may be those of a container's network."""
        try:
            return (self._procfs / "1" / "net" / "dev").read_text()
        except OSError:
            return (self._procfs / "net" / "dev").read_text()

    def _is_card(self, interface: str) -> bool:
        folder = self._interfaces / interface
        # On Azure, a virtual card leads a real one and counts its traffic as well.
        return (folder / "device").exists() and not (folder / "master" / "device").exists()


def create(settings: Settings) -> Network:
    """The collector."""
    return Network(settings.procfs, settings.sysfs)
