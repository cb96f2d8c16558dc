"""A driver that hangs, and one that is let go of because an operator asked for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from trainvitals_exporter.collectors.nvidia import driver as nvml
from trainvitals_exporter.collectors.nvidia.driver import Driver, DriverThread, Hung

from tests.conftest import wait_until
from tests.exporter.conftest import StartExporter
from tests.exporter.gpu_machine import Machine, of_gpus, readings, success

RELEASED = "trainvitals_exporter_gpu_driver_released"


def test_hung_driver(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    machine = Machine(start_exporter, fake_nvml, tmp_path, gpus=2, arguments=("--collectors", "nvidia,memory"))
    healthy = readings(machine.scrape(), "0")
    machine.say("hang_seconds=600")
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 0, "the hang shows")
    assert of_gpus(scrape) == []
    assert scrape.value("trainvitals_collector_success", collector="memory") == 1
    assert scrape.value("trainvitals_host_memory_total_bytes")
    calls = machine.calls
    time.sleep(5)
    assert machine.calls == calls, "nothing queues up behind the call that hangs"
    assert [line for line in machine.exporter.log if "hangs in the driver" in line]
    machine.say()
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 1, "the call returns")
    assert readings(scrape, "0") == healthy
    assert machine.overlapping_calls == 0
    machine.say("hang_seconds=600")
    machine.exporter.scrape_until(lambda s: success(s) == 0, "it hangs again")
    assert machine.exporter.stop() == 0, "a hung driver does not keep the exporter from ending"


class Calls:
    """A function of pynvml that hangs while it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = threading.Event()
        self.free.set()
        self.made = 0
        monkeypatch.setattr(pynvml, "nvmlOfThisTest", self._call, raising=False)

    def _call(self) -> str:
        self.made += 1
        assert self.free.wait(60)
        return "answer"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    monkeypatch.setattr(nvml, "HUNG_SECONDS", 0.05)
    monkeypatch.setattr(nvml, "_WATCH_SECONDS", 0.01)
    made = Calls(monkeypatch)
    yield made
    made.free.set()


def ask(driver: Driver) -> str:
    return f"{driver.call('nvmlOfThisTest')}, {driver.call('nvmlOfThisTest')}"


def test_hung_thread_is_replaced_when_its_call_returns(calls: Calls) -> None:
    thread = DriverThread(lambda driver: driver)
    assert thread.run(ask) == "answer, answer"
    calls.free.clear()
    with pytest.raises(Hung, match="nvmlOfThisTest hangs"):
        thread.run(ask)
    for _ in range(3):
        with pytest.raises(Hung):
            thread.run(ask)
    assert calls.made == 3, "the driver is left alone while a call hangs"
    calls.free.set()
    wait_until(lambda: calls_answer(thread), "a new thread asks")
    assert calls.made == 5, "the thread that was given up made no other call"


def calls_answer(thread: DriverThread[Driver]) -> bool:
    try:
        return thread.run(ask) == "answer, answer"
    except Hung:
        return False


def test_hung_thread_is_replaced_after_a_while_but_few_pile_up(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(nvml, "_LAST_RETRY_SECONDS", 0.01)
    threads = threading.active_count()
    thread = DriverThread(lambda driver: driver)
    thread._retry_after = 0.01
    calls.free.clear()
    for _ in range(20):
        with pytest.raises(Hung):
            thread.run(ask)
        time.sleep(0.02)
    assert calls.made == 4
    assert threading.active_count() == threads + 4
    calls.free.set()
    wait_until(lambda: calls_answer(thread), "the driver answers")


@pytest.mark.parametrize("how", ["file", "signals"])
def test_release(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path, how: str) -> None:
    machine = Machine(start_exporter, fake_nvml, tmp_path, gpus=2)
    process = machine.exporter.process
    assert machine.scrape().value(RELEASED) == 0
    assert machine.is_open
    if how == "file":
        machine.release_file.touch()
    else:
        process.send_signal(signal.SIGUSR1)
    scrape = machine.exporter.scrape_until(lambda s: s.value(RELEASED) == 1, "the metric says so")
    assert not machine.is_open
    assert success(scrape) == 0
    assert of_gpus(scrape) == []
    calls = machine.calls
    time.sleep(5)
    assert machine.calls == calls, "the driver is left alone"
    if how == "file":
        machine.release_file.unlink()
    else:
        process.send_signal(signal.SIGUSR2)
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 1, "the driver is taken again")
    assert machine.is_open
    assert scrape.value(RELEASED) == 0
    assert readings(scrape, "0")
    assert any("released, as asked for" in line for line in machine.exporter.log)


def test_signals_that_nobody_obeys(start_exporter: StartExporter) -> None:
    """They would end a process by default, and an operator's script sends them to every host."""
    exporter = start_exporter("--collectors", "memory")
    for _ in range(3):
        exporter.process.send_signal(signal.SIGUSR1)
        exporter.process.send_signal(signal.SIGUSR2)
        assert exporter.scrape().value("trainvitals_host_memory_total_bytes")
    [said] = wait_until(lambda: [line for line in exporter.log if "SIGUSR" in line], "the log says so")
    assert "changes nothing: it is for the collector nvidia, which is switched off" in said
    assert exporter.stop() == 0
