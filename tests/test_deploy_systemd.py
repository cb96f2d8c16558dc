"""deploy/systemd and deploy/textfile: what systemd says of the units, and the exporter under what they allow it.

There is no running systemd here: its mounts, device and address lists are not in force, the rest is.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.demo.programs import Programs, free_ports
from tests.confinement import Unit
from tests.conftest import tool, wait_until
from tests.exporter.exporter_process import RunFileProcess, Scrape

REPOSITORY = Path(__file__).parents[1]
SYSTEMD = REPOSITORY / "deploy" / "systemd"
TEXTFILE = REPOSITORY / "deploy" / "textfile"
UNITS = [SYSTEMD / "trainvitals-exporter.service", TEXTFILE / "trainvitals-textfile.service"]
ALL = [*UNITS, SYSTEMD / "trainvitals-exporter.socket", TEXTFILE / "trainvitals-textfile.timer"]
DROP_INS = sorted((SYSTEMD / "drop-ins").glob("*.conf"))
# The score of systemd-analyze, of 10; a service that says nothing about itself has 9.6.
HIGHEST_SCORE = 2.2
# Whoever this is, no account of the exporter's tests.
SOMEBODY_ELSE = 65534


@pytest.fixture(autouse=True)
def _needs_systemd() -> None:
    tool("systemd-analyze")


def verify(folder: Path, units: list[Path], *drop_ins: Path, change: Callable[[str], str] = str) -> str:
    """What systemd has to say of the units, on a machine on which all they start is installed; "" of good ones."""
    root = folder / "root"
    system = root / "etc" / "systemd" / "system"
    shutil.copytree("/lib/systemd/system", root / "lib" / "systemd" / "system", symlinks=True)
    (system / f"{UNITS[0].name}.d").mkdir(parents=True)
    for drop_in in drop_ins:
        shutil.copy(drop_in, system / f"{UNITS[0].name}.d")
    for unit in units:
        (system / unit.name).write_text(change(unit.read_text()))
    program = root / "opt" / "trainvitals" / "bin" / "trainvitals"
    program.parent.mkdir(parents=True)
    shutil.copy("/bin/true", program)
    names = [f"/etc/systemd/system/{unit.name}" for unit in units]
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", f"--root={root}", *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    assert verify(tmp_path, ALL, *DROP_INS) == ""


def test_systemd_would_say_what_is_wrong(tmp_path: Path) -> None:
    said = verify(tmp_path, UNITS[:1], change=lambda text: text.replace("WatchdogSec=60", "WatchdogSek=60"))
    assert "WatchdogSek" in said


def test_systemd_takes_the_user_unit(tmp_path: Path) -> None:
    program = tmp_path / ".local" / "bin" / "trainvitals"
    program.parent.mkdir(parents=True)
    shutil.copy("/bin/true", program)
    env = {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [tool("systemd-analyze"), "--user", "--man=no", "verify", str(SYSTEMD / "user" / UNITS[0].name)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_units_are_hardened(unit: Path) -> None:
    command = [tool("systemd-analyze"), "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    score = re.search(r"Overall exposure level for .*: (?:\x1b\[[\d;]*m)?([\d.]+)", said)
    assert score, said
    assert float(score[1]) <= HIGHEST_SCORE, said


def test_users_and_folders_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for program, *arguments in (
        ("systemd-sysusers", SYSTEMD / "trainvitals.sysusers.conf"),
        ("systemd-tmpfiles", "--create", TEXTFILE / "trainvitals-textfile.tmpfiles.conf"),
    ):
        subprocess.run([tool(program), f"--root={tmp_path}", *arguments], check=True, capture_output=True)
    (account,) = re.findall(r"^trainvitals:.*$", (tmp_path / "etc" / "passwd").read_text(), re.MULTILINE)
    assert account.endswith("/nologin")
    group = int(account.split(":")[3])
    folder = (tmp_path / "var" / "lib" / "prometheus" / "node-exporter").stat()
    assert (folder.st_gid, folder.st_mode & 0o777) == (group, 0o775)


def test_nothing_hides_where_runs_are() -> None:
    """Settings that would hide other users' runs, processes or GPUs, or that systemd makes of others."""
    for unit in map(Unit, UNITS):
        for setting in ("PrivateTmp", "PrivateUsers", "PrivateDevices", "DynamicUser", "ProtectProc", "ProcSubset"):
            assert unit.all(setting) == [], setting
        assert unit.all("ProtectHome") == ["read-only"]
        assert unit.all("DeviceAllow") == ["char-nvidia* rw"]


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as programs:
        yield programs


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A folder with a run of the user of this test, closed to all others."""
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o700)
    holder = RunFileProcess(folder, "a1", "rank", "gan", 0).set_state("running").set("trainvitals_epoch", 7)
    yield folder
    holder.end()


def confined(files: list[Path], *arguments: str | Path) -> list[str | Path]:
    """The exporter as another user, with what these files of one unit allow it."""
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: only root can start a program as another user")
    tool("setpriv")
    units = ":".join(map(str, files))
    return [sys.executable, "-m", "tests.confinement", units, str(SOMEBODY_ELSE),
            sys.executable, "-m", "trainvitals_exporter", *arguments]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)) + os.pathsep + str(REPOSITORY)}


@pytest.mark.parametrize("more", [False, True], ids=["by default", "with processes.conf"])
def test_the_exporter_works_under_its_unit(more: bool, run: Path, programs: Programs) -> None:
    """Every system call that it makes is allowed: one that is not would end it here."""
    closed = ["setpriv", f"--reuid={SOMEBODY_ELSE}", "--clear-groups", "ls", str(run)]
    (port,) = free_ports(1)
    unit = [UNITS[0], *([SYSTEMD / "drop-ins" / "processes.conf"] if more else [])]
    command = confined(unit, "--listen", f"127.0.0.1:{port}", "--run-dir", run)
    assert subprocess.run(closed, capture_output=True, check=False).returncode != 0
    process = programs.start("exporter", command, environment())
    url = f"http://127.0.0.1:{port}"
    programs.wait_for("exporter", f"{url}/-/ready")

    def scrape() -> Scrape:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
            return Scrape(response.read().decode())

    found = wait_until(
        lambda: s if (s := scrape()).state("gan") == "running" else None, "the run of another user is seen"
    )
    assert found.value("trainvitals_epoch", run="gan", rank="0") == 7
    wait_until(lambda: scrape().series("trainvitals_process_resident_bytes", run="gan"), "its processes are seen")
    of_processes = ("trainvitals_process_read_bytes_total", "trainvitals_process_proportional_bytes")
    if more:
        wait_until(lambda: all(scrape().series(name, run="gan") for name in of_processes), "they are looked into")
    else:
        assert not any(scrape().series(name, run="gan") for name in of_processes)
    failed = [labels["collector"] for labels, value in scrape().series("trainvitals_collector_success") if not value]
    assert set(failed) <= {"nvidia", "pressure", "network", "disks", "pss"}, programs.last_words("exporter")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, programs.last_words("exporter")


def test_the_textfile_unit_writes(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    os.chown(folder, -1, SOMEBODY_ELSE)
    folder.chmod(0o775)
    tmp_path.chmod(0o755)
    command = confined(UNITS[1:], "--once", folder / "trainvitals.prom", "--run-dir", run)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Scrape((folder / "trainvitals.prom").read_text()).state("gan") == "running"
