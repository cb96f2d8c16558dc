"""NVIDIA GPUs, through the driver's management library (NVML).

`driver` calls it on a thread of its own, `session` knows its GPUs, `readings` says what is read of each and how often.
Here the findings become metrics: counters are checked, XIDs counted, processes joined to runs. docs/gpu.md tells how
all that behaves in trouble.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

from trainvitals import catalogue

from trainvitals_exporter.collectors.nvidia import processes
from trainvitals_exporter.collectors.nvidia.counters import Counters
from trainvitals_exporter.collectors.nvidia.driver import DriverThread
from trainvitals_exporter.collectors.nvidia.owners import Owners
from trainvitals_exporter.collectors.nvidia.release import ReleaseSwitch
from trainvitals_exporter.collectors.nvidia.session import Findings, Session
from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.runner import Incomplete
from trainvitals_exporter.settings import Settings

_COUNTERS: Final = frozenset(m.name for m in catalogue.METRICS if m.scope is catalogue.GPU and m.type == "counter")
_OF_PROCESSES: Final = frozenset({processes.MEMORY, processes.UTILIZATION})
_RELEASED: Final = "trainvitals_exporter_gpu_driver_released"


class Nvidia:
    """Each GPU and MIG instance, its errors and its processes; what a card does not offer is absent."""

    name = "nvidia"
    interval = 2.0

    def __init__(self, owners: Owners, switch: ReleaseSwitch) -> None:
        self._owners = owners
        self._switch = switch
        self._thread = DriverThread(Session)
        self._counters = Counters()
        self._xids: Counter[tuple[str, str, str]] = Counter()
        self._xid_times: dict[tuple[str, str, str], float] = {}

    def collect(self) -> Iterable[Family]:
        """Ask the driver, unless it is to be let go of."""
        out = Families()
        if self._switch.on():
            self._thread.run(Session.close)
            out.add(_RELEASED, 1)
            raise Incomplete("the driver is released, as asked for", out)
        findings = self._thread.run(Session.read)
        out.add(_RELEASED, 0)
        self._add_readings(out, findings)
        self._add_xids(out, findings)
        if findings.troubles:
            raise Incomplete(", ".join(f"GPU {index}: {why}" for index, why in findings.troubles.items()), out)
        return out

    def _add_readings(self, out: Families, findings: Findings) -> None:
        known = self._owners.known()
        for device, reading in findings.readings:
            name, labels = catalogue.PREFIX + reading.name, reading.labels
            if reading.name in _OF_PROCESSES:
                labels = (*labels, *self._owners.of(int(labels[0]), known))
            if name in _COUNTERS and not self._counters.believed((device.uuid, name, labels), reading):
                continue
            out.add(name, reading.value, device.uuid, device.index, *labels)

    def _add_xids(self, out: Families, findings: Findings) -> None:
        """The XIDs since the exporter started, also those of GPUs that have gone because of one."""
        for device, xid in findings.xids:
            self._xids[device.uuid, device.index, str(xid)] += 1
            self._xid_times[device.uuid, device.index, str(xid)] = time.time()
        for labels, count in self._xids.items():
            out.add("trainvitals_gpu_xid_errors_total", count, *labels)
            out.add("trainvitals_gpu_xid_last_timestamp_seconds", self._xid_times[labels], *labels)


def create(settings: Settings) -> Nvidia:
    """The collector. It obeys SIGUSR1 and SIGUSR2."""
    switch = ReleaseSwitch(settings.gpu_release_file)
    switch.listen()
    return Nvidia(Owners(settings.runs, settings.procfs), switch)
