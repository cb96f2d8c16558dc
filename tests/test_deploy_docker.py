"""Training in containers: what the kernel does there for real, and files that Docker's own client takes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainvitals import rundir

from tests.conftest import tool, wait_until
from tests.exporter.exporter_process import ExporterProcess, Scrape
from tests.test_compose import compose_client

REPOSITORY = Path(__file__).parents[1]
DOCKER = REPOSITORY / "deploy" / "docker"
TRAINING = """
import sys, time, torch
from torch.utils.data import DataLoader, TensorDataset
net = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
while True:
    for (batch,) in DataLoader(TensorDataset(torch.zeros(64, 8)), batch_size=8):
        optimizer.zero_grad()
        net(batch).mean().backward()
        optimizer.step()
        time.sleep(0.02)
"""
# What sets a container apart for the exporter: its own users, processes, /proc and cgroups.
CONTAINER = ("--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc", "--cgroup")
RUN = (sys.executable, "-m", "trainvitals.cli", "run")


class Container:
    """A command under `trainvitals run`, which is process 1 of namespaces of its own."""

    def __init__(self, run_dir: Path, *command: str) -> None:
        self.outside = subprocess.Popen(
            [tool("unshare"), *CONTAINER, *RUN, "--name", "boxed", "--", *command],
            env={**os.environ, rundir.ENVIRONMENT: str(run_dir)},
        )

    @property
    def launcher(self) -> int:
        """Process 1, as the host calls it."""
        [pid] = children(self.outside.pid)
        return pid

    @property
    def rank(self) -> int:
        """The process that trains, as the host calls it."""
        [pid] = children(self.launcher)
        return pid


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A folder below that which host and containers share."""
    shared = tmp_path / "trainvitals-runs"
    shared.mkdir()
    shared.chmod(0o1777)
    return shared / "1000"


@pytest.fixture
def start(run_dir: Path) -> Iterator[Callable[..., Container]]:
    """Starts containers that end with the test."""
    started: list[Container] = []

    def start(*command: str) -> Container:
        started.append(Container(run_dir, *command))
        return started[-1]

    yield start
    for container in started:
        container.outside.kill()  # and with it, all inside
        container.outside.wait()


def test_exporters_outside_see_a_training_in_a_container(
    start: Callable[..., Container], run_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    container = start(sys.executable, str(script))
    places = ("--run-dir", str(run_dir), "--collectors", "runs,owners,processes")
    exporter = ExporterProcess(*places)
    try:
        scrape = exporter.scrape_until(
            lambda s: (
                s.value("trainvitals_process_threads", run="boxed", rank="0", role="main")
                and s.series("trainvitals_run_owner_info", run="boxed")
            ),
            "the training is seen with its process",
        )
        assert scrape.state("boxed") == "running"
        [(owner, _)] = scrape.series("trainvitals_run_owner_info", run="boxed")
        assert owner["user"] == tmp_path.owner(), "as the host calls who is root in there"

        from_beside = scraped_from_another_container(tmp_path / "scrape.prom", *places)
        assert from_beside.state("boxed") == "running"
        assert from_beside.series("trainvitals_iterations_total", run="boxed")
        assert from_beside.series("trainvitals_run_owner_info") == [], "which no process it sees could tell"
        assert from_beside.series("trainvitals_process_threads") == []

        os.kill(container.rank, signal.SIGKILL)
        scrape = exporter.scrape_until(lambda s: s.state("boxed") != "running", "its end is seen")
        assert scrape.state("boxed") == "killed"
        assert container.outside.wait(60) == 128 + signal.SIGKILL
    finally:
        exporter.stop()


def scraped_from_another_container(file: Path, *arguments: str) -> Scrape:
    """What an exporter tells that does not see the host's processes."""
    exporter = [sys.executable, "-m", "trainvitals_exporter", *arguments, "--once", str(file)]
    subprocess.run([tool("unshare"), *CONTAINER, *exporter], check=True)
    return Scrape(file.read_text())


def test_stopping_the_container_ends_the_training(start: Callable[..., Container], run_dir: Path) -> None:
    container = start("sleep", "600")
    wait_until(lambda: list(run_dir.glob("*.vitals")) and children(container.launcher), "the command has started")
    os.kill(container.launcher, signal.SIGTERM)  # as docker stop does, to process 1
    assert container.outside.wait(60) == 128 + signal.SIGTERM


def configuration(*files: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What Docker's own client makes of these files."""
    arguments = [argument for file in files for argument in ("-f", str(file))]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINVITALS_", "TRAINING_"))}
    return subprocess.run(
        [*compose_client(), *arguments, "config"], env={**environment, **variables}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def services(*files: Path, **variables: str) -> dict[str, Any]:
    done = configuration(*files, **variables)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return content


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Where each folder of the host is to be found in there, and whether it can be changed."""
    found = {}
    for volume in service["volumes"]:
        if isinstance(volume, str):  # as the older client prints it
            source, target, mode = volume.split(":")
            found[source] = target, mode.split(",")[0]
        else:
            found[volume["source"]] = volume["target"], "ro" if volume.get("read_only") else "rw"
    return found


def test_the_training_service_writes_where_the_exporter_looks(tmp_path: Path) -> None:
    train = services(DOCKER / "compose.training.yaml", TRAINING_USER="1000")["train"]
    run_dir = Path(train["environment"][rundir.ENVIRONMENT])
    assert mounts(train) == {str(run_dir.parent): (str(run_dir.parent), "rw")}
    inside = tmp_path / run_dir.relative_to("/")
    rundir.prepare(inside)
    assert inside in rundir.everyone(tmp_path)
    assert train["user"] == run_dir.name == "1000"
    assert str(train["shm_size"]) in ("16gb", str(16 * 2**30)), "the clients differ"
    assert train["cap_drop"] == ["ALL"]
    [[line]] = [re.findall(r"^d (\S+) 1777 root root$", (DOCKER / "trainvitals-runs.conf").read_text(), re.MULTILINE)]
    assert line == str(run_dir.parent)


def test_the_training_service_says_what_it_has_to_be_told() -> None:
    done = configuration(DOCKER / "compose.training.yaml")
    assert done.returncode != 0
    assert "as id -u prints it" in done.stderr


def test_the_stacks_exporter_can_be_shown_the_containers_runs() -> None:
    exporter = services(REPOSITORY / "compose.yaml", DOCKER / "compose.exporter.yaml")["exporter"]
    rootfs = exporter["command"][exporter["command"].index("--rootfs") + 1]
    assert mounts(exporter)["/run/trainvitals-runs"] == (f"{rootfs}/run/trainvitals-runs", "ro")
    assert len(exporter["volumes"]) > 1, "and what it saw before"


def test_the_image_starts_a_run_with_the_packages_version() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    import trainvitals

    assert f"trainvitals=={trainvitals.__version__}\n" in text
    [base] = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+\S*", base), "pinned"
    assert 'ENTRYPOINT ["trainvitals", "run", "--"]' in text
