"""The processes on a GPU: their memory and their utilisation."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from trainvitals_exporter.collectors.nvidia.device import Device, Reading

MEMORY: Final = "gpu_process_memory_bytes"
UTILIZATION: Final = "gpu_process_utilization_ratio"
# A GPU shared by hundreds of processes is not what is watched here; those with the most memory are shown.
_MOST_PROCESSES: Final = 64
_HIGHEST_BYTES: Final = 2**50


def memory(device: Device) -> Iterable[Reading]:
    """The memory of each process; of one that computes and draws, the larger of both answers, for they are the same."""
    found: dict[int, int] = {}
    if device.memory.get("scrambled_processes"):
        return []
    for kind in ("Compute", "Graphics"):
        listed = device.ask(f"nvmlDeviceGet{kind}RunningProcesses")
        if listed is None:  # drivers before R510
            listed = device.ask(f"nvmlDeviceGet{kind}RunningProcesses_v2")
        for process in listed or ():
            if process.pid and process.usedGpuMemory is not None and process.usedGpuMemory <= _HIGHEST_BYTES:
                found[process.pid] = max(process.usedGpuMemory, found.get(process.pid, 0))
    largest = sorted(found.items(), key=lambda item: -item[1])[:_MOST_PROCESSES]
    return [Reading(MEMORY, used, (str(pid),)) for pid, used in largest]


def utilization(device: Device) -> Iterable[Reading]:
    """Each process's share of the GPU's time, averaged over the driver's samples since the last reading."""
    newest = device.memory.get("newest_process_sample")
    now = int(time.time() * 1e6)
    since = int(now - 10e6) if newest is None or newest > now else newest  # at first; or the clock was set back
    samples = device.ask("nvmlDeviceGetProcessUtilization", varying=(since,)) or ()
    shares: defaultdict[int, list[int]] = defaultdict(list)
    for sample in samples:
        if sample.pid and sample.timeStamp > since and sample.smUtil <= 100:
            shares[sample.pid].append(sample.smUtil)
    device.memory["newest_process_sample"] = max((sample.timeStamp for sample in samples), default=since)
    busiest = sorted(shares.items(), key=lambda item: -sum(item[1]))[:_MOST_PROCESSES]
    return [Reading(UTILIZATION, sum(values) / len(values) / 100, (str(pid),)) for pid, values in busiest]
