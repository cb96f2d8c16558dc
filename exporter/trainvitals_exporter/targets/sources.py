"""Where the hosts are known: the command line, a file, Slurm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainvitals_exporter.messages import printable
from trainvitals_exporter.targets import hosts

# Prometheus gives up on a list after its refresh interval, a minute by default.
_SINFO_SECONDS: Final = 20.0
# Host name and state of each node: https://slurm.schedmd.com/sinfo.html
_SINFO: Final = ("sinfo", "--noheader", "--Node", "--format=%n %T")
_POWERED_OFF: Final = "~"


class Unavailable(Exception):
    """The hosts cannot be told now. The message is for people, one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class Targets:
    """Which hosts to name, and how; asked anew each time."""

    named: tuple[str, ...]
    file: Path | None
    slurm: bool
    port: int
    labels: Mapping[str, str]

    def render(self) -> bytes:
        """The list as Prometheus reads it, from files and over HTTP alike. Raises Unavailable, also for an empty list.

        https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
        """
        found = [*self.named, *(_in_file(self.file) if self.file else ()), *(_nodes_of_slurm() if self.slurm else ())]
        try:
            targets = list(dict.fromkeys(hosts.target(host, self.port) for host in found))
        except ValueError as error:
            raise Unavailable(str(error)) from None
        if not targets:
            raise Unavailable("there is no host in the list")
        return (json.dumps([{"targets": targets, "labels": dict(self.labels)}], indent=2) + "\n").encode()


def _in_file(file: Path) -> list[str]:
    """The hosts that the file names. Raises Unavailable."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [host for line in lines for host in hosts.expand(line.partition("#")[0])]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Unavailable(f"{file} cannot be used: {reason}") from None


def _nodes_of_slurm() -> list[str]:
    """All nodes but those that Slurm has switched off to save power. Raises Unavailable."""
    try:
        done = subprocess.run(_SINFO, capture_output=True, text=True, timeout=_SINFO_SECONDS, check=True)
    except FileNotFoundError:
        raise Unavailable("there is no sinfo on PATH; --slurm is for a host of a Slurm cluster") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"sinfo did not answer within {_SINFO_SECONDS:.0f} seconds") from None
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise Unavailable(f"sinfo failed: {said[-1] if said else error}") from None
    nodes = [line.split() for line in done.stdout.splitlines()]
    return [node[0] for node in nodes if node and not node[-1].endswith(_POWERED_OFF)]
