"""Fixtures that start and stop the processes of the exporter's tests."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.exporter.exporter_process import ExporterProcess, RunFileProcess

StartExporter = Callable[..., ExporterProcess]
StartRunFile = Callable[..., RunFileProcess]

_FAKE_NVML = Path(__file__).parents[1] / "fake_nvml" / "build.py"


@pytest.fixture
def start_exporter() -> Iterator[StartExporter]:
    """Starts exporters that end with the test."""
    started: list[ExporterProcess] = []

    def start(*arguments: str, env: dict[str, str] | None = None, tls: ssl.SSLContext | None = None) -> ExporterProcess:
        started.append(ExporterProcess(*arguments, env=env, tls=tls))
        return started[-1]

    yield start
    for exporter in started:
        exporter.stop()


@pytest.fixture
def start_run_file(tmp_path: Path) -> Iterator[StartRunFile]:
    """Starts processes that hold a run file in `run_dir`, and end with the test."""
    started: list[RunFileProcess] = []

    def start(run_id: str, kind: str, run: str = "", rank: int = -1) -> RunFileProcess:
        started.append(RunFileProcess(_run_dir(tmp_path), run_id, kind, run, rank))
        return started[-1]

    yield start
    for holder in started:
        holder.end()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory that the exporter trusts."""
    return _run_dir(tmp_path)


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fake NVIDIA driver library, for LD_LIBRARY_PATH."""
    return _build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def fake_old_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without what came after R470."""
    return _build(tmp_path_factory.mktemp("old_nvml"), "-DOLD_DRIVER")


@pytest.fixture(scope="session")
def fake_new_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without what CUDA 14 drops."""
    return _build(tmp_path_factory.mktemp("new_nvml"), "-DNEW_DRIVER")


def _run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _build(folder: Path, *flags: str) -> Path:
    subprocess.run([sys.executable, _FAKE_NVML, folder, *flags], check=True)
    return folder
