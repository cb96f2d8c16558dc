"""deploy/textfile: runs in a real node_exporter, judged by the rules in a real Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.demo.programs import Programs, free_ports
from tests.confinement import Unit
from tests.conftest import tool, wait_until
from tests.exporter.exporter_process import RunFileProcess, Scrape

REPOSITORY = Path(__file__).parents[1]
TEXTFILE = REPOSITORY / "deploy" / "textfile"
RULES = REPOSITORY / "prometheus" / "rules"
SERVICE = Unit(TEXTFILE / "trainvitals-textfile.service")
FORWARD = 'trainvitals_phase_seconds_total{phase="forward"}'


class Textfile:
    """The folder of a textfile collector, written to as the unit does, but for a driver, which there is none of."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        self.folder = folder / "textfile"
        self.folder.mkdir()
        self._run_dir = run_dir

    def write(self) -> None:
        settings = dict(value.split("=", 1) for value in SERVICE.all("Environment"))
        variable = "TRAINVITALS_EXPORTER_COLLECTORS"
        settings[variable] = settings[variable].removesuffix(",nvidia")
        (command,) = SERVICE.all("ExecStart")
        _, _, *arguments, file = command.split()
        subprocess.run(
            [sys.executable, "-m", "trainvitals_exporter", *arguments, self.folder / Path(file).name,
             "--run-dir", self._run_dir],
            env={**os.environ, **settings}, check=True, capture_output=True,
        )  # fmt: skip

    @property
    def file(self) -> Path:
        (file,) = self.folder.glob("*.prom")
        return file


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as programs:
        yield programs


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def runs(run_dir: Path) -> Iterator[list[RunFileProcess]]:
    """A healthy run and one that has failed."""
    healthy = RunFileProcess(run_dir, "a1", "rank", "gan", 0).set_state("running")
    failed = RunFileProcess(run_dir, "b1", "rank", "vits", 0).set_state("failed")
    failed.end()
    yield [healthy, failed]
    healthy.end()


def start_prometheus(programs: Programs, folder: Path, node_exporter: str) -> str:
    """A Prometheus that has nothing but that node_exporter, our rules, and the one for the file; at a test's pace."""
    (folder / "rules").mkdir()
    for file in RULES.glob("*.yml"):
        shutil.copy(file, folder / "rules" / file.name)
    own = (TEXTFILE / "rules.yml").read_text()
    assert own.count("> 120") == own.count("for: 1m") == 1
    (folder / "rules" / "textfile.yml").write_text(own.replace("for: 1m", "for: 0s"))
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [{"job_name": "node", "static_configs": [{"targets": [node_exporter]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (port,) = free_ports(1)
    programs.start("prometheus", [
        tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ])  # fmt: skip
    programs.wait_for("prometheus", f"http://127.0.0.1:{port}/-/ready")
    return f"http://127.0.0.1:{port}"


def ask(prometheus: str, expression: str) -> list[dict[str, Any]]:
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=30) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return result


def test_node_exporter_carries_our_metrics_and_rules_judge_them(
    programs: Programs, runs: list[RunFileProcess], run_dir: Path, tmp_path: Path
) -> None:
    healthy, _ = runs
    healthy.set("trainvitals_phase_seconds_total", 1, phase="forward")
    textfile = Textfile(tmp_path, run_dir)
    textfile.write()
    (port,) = free_ports(1)
    node = f"127.0.0.1:{port}"
    programs.start("node_exporter", [
        tool("node_exporter", "prometheus-node-exporter"), f"--collector.textfile.directory={textfile.folder}",
        f"--web.listen-address={node}",
    ])  # fmt: skip
    programs.wait_for("node_exporter", f"http://{node}/metrics")

    # Beside all that node_exporter has of its own, each sample of ours is there as it was written.
    with urllib.request.urlopen(f"http://{node}/metrics", timeout=30) as response:
        served = Scrape(response.read().decode())
    written = Scrape(textfile.file.read_text())
    assert len(written.samples) > 20
    for sample in written.samples:
        assert served.value(sample.name, **sample.labels) == sample.value, sample
    assert served.value("node_textfile_scrape_error") == 0
    ours = {family for family in served.families if family.startswith("trainvitals_")}
    assert ours == set(written.families), "another collector of node_exporter uses one of our names"

    prometheus = start_prometheus(programs, tmp_path, node)
    (alert,) = wait_until(
        lambda: ask(prometheus, 'ALERTS{alertname="TrainingRunFailed",alertstate="firing"}'), "the failed run is told"
    )
    assert (alert["metric"]["job"], alert["metric"]["instance"], alert["metric"]["run"]) == ("node", node, "vits")

    # Counters go on from one file to the next, so rates work.
    healthy.set("trainvitals_phase_seconds_total", 5, phase="forward")
    textfile.write()
    wait_until(lambda: ask(prometheus, f"increase({FORWARD}[1m]) > 3"), "the next file's value is scraped")
    assert ask(prometheus, f"resets({FORWARD}[5m]) > 0") == []

    # A timer that died is noticed; node_exporter serves what it found last.
    assert ask(prometheus, 'ALERTS{alertname="TrainvitalsTextfileOld"}') == []
    old = time.time() - 121
    os.utime(textfile.file, (old, old))
    wait_until(lambda: ask(prometheus, 'ALERTS{alertname="TrainvitalsTextfileOld"}'), "the old file is told")
    assert ask(prometheus, f"{FORWARD} == 5")


def test_the_folder_is_that_of_all_files() -> None:
    (command,) = SERVICE.all("ExecStart")
    folder = str(Path(command.split()[-1]).parent)
    assert SERVICE.all("ReadWritePaths") == [folder]
    assert f"\nd {folder} " in (TEXTFILE / "trainvitals-textfile.tmpfiles.conf").read_text()
    assert Path(command.split()[-1]).name == "trainvitals.prom", "rules.yml knows it by this name"
