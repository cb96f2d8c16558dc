"""One file per source of metrics.

A file `NAME.py` here is the collector NAME. It defines `create(settings)`, which returns a
`trainvitals_exporter.runner.Collector`. Nothing else has to be registered.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Final

from trainvitals_exporter.runner import Collector
from trainvitals_exporter.settings import Settings

# The name for all those whose place node_exporter can take.
HOST: Final = "host"
OF_HOST: Final = ("cpu", "disks", "filesystems", "memory", "network", "pressure")


def known() -> list[str]:
    """The names of all collectors."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def create(name: str, settings: Settings) -> Collector:
    """The collector of that name."""
    collector: Collector = importlib.import_module(f"{__name__}.{name}").create(settings)
    return collector
