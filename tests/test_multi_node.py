"""One training over several hosts: each has its own launcher, run files and exporter, and the rules see one training.

Two hosts are played on this machine: two launchers with run directories of their own, and an exporter for each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from trainvitals import rundir

from benchmarks.faultbench.compression import compress_folder
from examples.demo.programs import Programs, free_ports
from tests.conftest import Launcher, run_files, tool, wait_until
from tests.dashboard_queries import get, instant_values
from tests.hooks.together import PRELUDE

PROMETHEUS = Path(__file__).parents[1] / "prometheus"
# How much faster time passes in the rules: their 10 minutes are 10 seconds.
FACTOR = 60.0
# Torch takes its time to be imported, on a busy machine more.
PATIENCE = 240.0
LOOPBACK = "127.0.0.1"

# A network that is all collectives, and a rank that can be told to compute for longer than the other one.
TRAINING = """
import os, sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
torch.set_num_threads(1)
dist.init_process_group("gloo")
net = DistributedDataParallel(torch.nn.Linear(8, 8)); optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
for x in DataLoader(torch.randn(1 << 20, 8), batch_size=8):
    if dist.get_rank() == 1 and os.path.exists("slow"):
        time.sleep(0.1)
    time.sleep(0.02)
    loss = net(x).square().mean(); loss.backward(); optimizer.step(); optimizer.zero_grad()
"""


def worlds(launcher: Launcher, *environments: Mapping[str, str]) -> list[str | None]:
    """What each of these ranks, started by itself and all at once, says that its world is."""
    script = launcher.script(PRELUDE + "loss_of(*next(iter(loader()))).backward()")
    ranks = []
    for number, environment in enumerate(environments):
        launcher.environment[rundir.ENVIRONMENT] = str(launcher.directory / f"runs{number}")
        variables = [f"{name}={value}" for name, value in environment.items()]
        ranks.append(launcher.popen("env", *variables, sys.executable, str(script)))
    told = []
    for number, rank in enumerate(ranks):
        _, stderr = rank.communicate(timeout=PATIENCE)
        assert rank.returncode == 0, stderr
        (file,) = [f for f in run_files(launcher.directory / f"runs{number}") if f.identity.kind == "rank"]
        labels = file.labels("trainvitals_world_info")
        told.append(labels[0]["world"] if labels else None)
    return told


def test_ranks_that_meet_at_one_address_have_a_world_in_common(launcher: Launcher) -> None:
    """Launchers on several hosts know nothing of each other; their ranks do."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "10.1.2.3", "MASTER_PORT": "29500"}
    first, second, other, alone = worlds(
        launcher,
        {**meeting, "RANK": "0"},
        {**meeting, "RANK": "1"},
        {**meeting, "RANK": "0", "MASTER_PORT": "29501"},
        {**meeting, "RANK": "0", "WORLD_SIZE": "1"},
    )
    assert first == second
    assert first not in (None, other)
    assert "10.1.2.3" not in str(first), "a label is no place for addresses"
    assert alone is None


@contextmanager
def monitored(work: Path, hosts: int) -> Iterator[tuple[Programs, str, list[str]]]:
    """So many hosts' exporters and a Prometheus: programs, its address, and the hosts' instances."""
    *ports, port = free_ports(hosts + 1)
    instances = [f"{LOOPBACK}:{each}" for each in ports]
    compress_folder(PROMETHEUS, work / "configuration", FACTOR)
    settings = yaml.safe_load((work / "configuration" / "prometheus.yml").read_text())
    # A fifth of a second, as the interval would be, is also the time a scrape may take: too short on a busy machine.
    settings["global"]["scrape_interval"] = "1s"
    settings["scrape_configs"] = [{"job_name": "trainvitals", "static_configs": [{"targets": instances}]}]
    del settings["alerting"]
    (work / "configuration" / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with Programs(work) as programs:
        for number, instance in enumerate(instances):
            runs = work / f"runs{number}"
            runs.mkdir(mode=0o700)
            programs.start(f"exporter{number}", [
                sys.executable, "-m", "trainvitals_exporter", "--listen", instance, "--run-dir", runs,
                "--collectors", "runs",
            ])  # fmt: skip
        programs.start("prometheus", [
            tool("prometheus"), f"--config.file={work / 'configuration' / 'prometheus.yml'}",
            f"--storage.tsdb.path={work / 'data'}", f"--web.listen-address={LOOPBACK}:{port}",
        ])  # fmt: skip
        programs.wait_for("prometheus", f"http://{LOOPBACK}:{port}/-/ready")
        yield programs, f"http://{LOOPBACK}:{port}", instances


def start_node(programs: Programs, work: Path, number: int, port: int) -> subprocess.Popen[bytes]:
    """`trainvitals run -- torchrun` as it is started on each node, with one rank there."""
    return programs.start(
        f"node{number}",
        [
            sys.executable, "-m", "trainvitals.cli", "run", "--name", "wide", "--",
            "env", "-C", work, sys.executable, "-m", "torch.distributed.run",
            "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number),
            "--master-addr", LOOPBACK, "--master-port", str(port), work / "train.py",
        ],
        {**os.environ, rundir.ENVIRONMENT: str(work / f"runs{number}")},
    )  # fmt: skip


def seen(url: str, expr: str, *labels: str) -> list[tuple[str, ...]]:
    """The values of these labels in the result of a query, sorted."""
    now = get(url, "query", {"query": "time()"})["result"][0]
    return sorted(tuple(found.get(label, "") for label in labels) for found, _ in instant_values(url, expr, float(now)))


def firing(url: str, *labels: str) -> list[tuple[str, ...]]:
    """All alerts that fire, but for the watchdog and advice."""
    return seen(url, 'ALERTS{alertstate="firing", alertname!="Watchdog", severity!="info"}', "alertname", *labels)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_on_two_hosts_is_one(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING)
    (master,) = free_ports(1)
    with monitored(tmp_path, 2) as (programs, url, (first, second)):
        nodes = [start_node(programs, tmp_path, number, master) for number in (0, 1)]
        wait_until(lambda: len(seen(url, "trainvitals_iterations_total > 50", "rank")) == 2, "both nodes", PATIENCE)
        assert seen(url, "trainvitals_world_info", "instance", "rank") == sorted([(first, "0"), (second, "1")])
        assert len(seen(url, "count by (world) (trainvitals_world_info)", "world")) == 1
        assert len({file.identity.run_id for n in (0, 1) for file in run_files(tmp_path / f"runs{n}")}) == 2

        wait_until(lambda: len(seen(url, "run:trainvitals_own_work:median", "instance")) == 2, "the middle rank", 60)
        assert ("TrainingRankStraggling",) not in firing(url)
        (tmp_path / "slow").touch()
        straggling = 'ALERTS{alertname="TrainingRankStraggling", alertstate="firing"}'
        found = wait_until(lambda: seen(url, straggling, "instance", "run", "rank"), "the straggler", PATIENCE)
        assert found == [(second, "wide", "1")]

        # The whole node at once, as when it loses power, but that its exporter lives to tell.
        node = psutil.Process(nodes[1].pid)  # torchrun's ranks are in process groups of their own
        for process in (node, *node.children(recursive=True)):
            process.kill()
        assert nodes[0].wait(PATIENCE) != 0
        ended = 'ALERTS{alertname=~"TrainingRunFailed|TrainingRunVanished|TrainingStalled", alertstate="firing"}'
        both = wait_until(lambda: len(told := seen(url, ended, "instance", "state")) == 2 and told, "the ends", 60)
        assert both == sorted([(first, "failed"), (second, "killed")])
