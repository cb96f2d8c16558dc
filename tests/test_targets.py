"""`trainvitals targets`: hosts by name, from a file and from Slurm, on standard output, in a file and over HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo.programs import Programs
from tests.conftest import wait_until

TARGETS = [sys.executable, "-m", "trainvitals.cli", "targets"]
# As sinfo of Slurm 22.05 answers: a node shows once for each of its partitions.
SINFO = "node01 idle\nnode01 idle\nnode02 mixed*\nnode03 idle~\nnode04 down*\n"


def run(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": str(path)} if path else None
    return subprocess.run([*TARGETS, *map(str, arguments)], capture_output=True, text=True, check=False, env=env)


def groups(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)
    return found


@pytest.fixture
def sinfo(tmp_path: Path) -> Path:
    """The folder of a program that answers as sinfo does, with what the file `nodes` beside it holds."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nodes").write_text(SINFO)
    program = folder / "sinfo"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$*" = "--noheader --Node --format=%n %T" ] || { echo "sinfo: what is $*?" >&2; exit 1; }\n'
        f'while IFS= read -r line; do echo "$line"; done < {folder}/nodes\n'
    )
    program.chmod(0o755)
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as programs:
        yield programs


def test_hosts_by_name() -> None:
    done = run(
        "gpu[08-11],login", "r[1-2]n[3,5]:99", "::1", "[::2]:5", "gpu08", "--label", "cluster=lab", "--port", "7"
    )
    assert done.returncode == 0, done.stderr
    (group,) = groups(done.stdout)
    assert group["labels"] == {"cluster": "lab"}
    assert group["targets"] == [
        "gpu08:7", "gpu09:7", "gpu10:7", "gpu11:7", "login:7",
        "r1n3:99", "r1n5:99", "r2n3:99", "r2n5:99", "[::1]:7", "[::2]:5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ([], "which hosts?"),
        (["node[3-1]"], "'3-1' in 'node[3-1]' is not a range"),
        (["node[1-3"], "a bracket that nothing closes"),
        (["node[1-999999999]"], "more than 100,000 hosts"),
        (["http://node"], "is not a host"),
        (["node:99999"], "is not a host"),
        (["node", "--label", "1=x"], "is not K=V"),
        (["node", "--port", "0"], "'0' is not a port"),
        (["node", "--listen", "10289"], "is not HOST:PORT"),
        (["node", "--web-config", "x"], "--web-config is for --listen"),
        (["node", "--listen", "127.0.0.1:0", "--web-config", "/nowhere"], "/nowhere cannot be read"),
    ],
)
def test_usage_errors(arguments: list[str], wrong: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert wrong in done.stderr
    assert "Traceback" not in done.stderr


def test_hosts_of_a_file_are_written_for_prometheus(tmp_path: Path) -> None:
    hosts, made = tmp_path / "hosts.txt", tmp_path / "made.json"
    hosts.write_text("# the old rack\nnode[01-02]  # two\n\nlogin node03:1\n")
    made.write_text("[]")
    made.chmod(0o600)
    reader = made.open()
    done = run("--file", hosts, "--write", made)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert groups(made.read_text())[0]["targets"] == ["node01:10288", "node02:10288", "login:10288", "node03:1"]
    assert reader.read() == "[]", "the file was changed in place: a reader may see half of it"
    assert made.stat().st_mode & 0o777 == 0o644, "Prometheus runs as another user"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts.txt", "made.json"]


@pytest.mark.parametrize("content", ["# nobody\n", "what is this?\n", None], ids=["empty", "wrong", "missing"])
def test_without_a_list_the_file_stays(content: str | None, tmp_path: Path) -> None:
    hosts, made = tmp_path / "hosts.txt", tmp_path / "made.json"
    if content is not None:
        hosts.write_text(content)
    made.write_text("old")
    done = run("--file", hosts, "--write", made)
    assert done.returncode == 1
    assert f"{made} stays as it is" in done.stderr
    assert "Traceback" not in done.stderr
    assert made.read_text() == "old"


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    done = run("node01", "--write", tmp_path / "missing" / "made.json")
    assert done.returncode == 1
    assert "made.json: No such file or directory" in done.stderr


def test_nodes_of_slurm(sinfo: Path) -> None:
    done = run("--slurm", path=sinfo)
    assert done.returncode == 0, done.stderr
    # Once each, without the one that is powered off. A node that is down stays: that is what an alert is for.
    assert groups(done.stdout)[0]["targets"] == ["node01:10288", "node02:10288", "node04:10288"]


def test_slurm_that_does_not_answer(sinfo: Path, tmp_path: Path) -> None:
    (sinfo / "sinfo").write_text("#!/bin/sh\necho 'slurm_load_partitions: Unable to contact controller' >&2\nexit 1\n")
    done = run("--slurm", path=sinfo)
    assert (done.returncode, done.stdout) == (1, "")
    assert "sinfo failed: slurm_load_partitions: Unable to contact controller" in done.stderr
    assert "there is no sinfo on PATH" in run("--slurm", path=tmp_path).stderr


def test_served_over_http(sinfo: Path, programs: Programs) -> None:
    env = {**os.environ, "PATH": f"{sinfo}:{os.environ['PATH']}"}
    programs.start("targets", [*TARGETS, "--slurm", "--listen", "127.0.0.1:0"], env)
    log = programs.log("targets")
    url = wait_until(lambda: next(iter(re.findall(r"http://\S+", log.read_text())), None), "the list is served")

    def get(address: str) -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, "", error.read().decode()

    status, kind, body = get(url)
    assert (status, kind) == (200, "application/json")
    assert groups(body)[0]["targets"] == ["node01:10288", "node02:10288", "node04:10288"]
    # It is asked anew each time, and an empty answer is no list.
    (sinfo / "nodes").write_text("node09 idle\n")
    assert groups(get(url)[2])[0]["targets"] == ["node09:10288"]
    (sinfo / "nodes").write_text("")
    assert get(url)[::2] == (503, "there is no host in the list\n")
    assert get(url)[0] == 503
    assert log.read_text().count("no list: there is no host in the list") == 1
    assert get(url.removesuffix("/targets"))[0] == 404
    # Many at once are all answered.
    (sinfo / "nodes").write_text("node09 idle\n")
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(get(url)[0])) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {200, 503}
    assert answers.count(200) >= 8
