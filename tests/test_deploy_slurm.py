"""The scripts for Slurm, run as slurmd would: with its variables, as root, and against users who were there first."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from trainvitals import rundir

from tests.conftest import tool

SCRIPTS = Path(__file__).parents[1] / "deploy" / "slurm"
# An unprivileged user is root in a user namespace of its own, where no other user exists.
IS_ROOT = os.geteuid() == 0
USER = 4242 if IS_ROOT else 0


class Node:
    """A node's folders, and what slurmd does there."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "trainvitals-runs"
        self.ended = folder / "trainvitals-runs-ended"

    def call(self, script: str, uid: int | None = 0, /, **variables: object) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts with these variables and no others, as root or as another user."""
        environment = {"PATH": os.environ["PATH"], "TRAINVITALS_RUNS": str(self.runs)}
        as_root = [] if IS_ROOT or uid is None else [tool("unshare"), "--user", "--map-root-user"]
        return subprocess.run(
            [*as_root, "sh", SCRIPTS / script],
            env=environment | {name: str(value) for name, value in variables.items()},
            user=uid if IS_ROOT else None, capture_output=True, text=True, check=True,
        )  # fmt: skip

    def prolog(self, job: int, user: int = USER) -> str:
        """What it complained of."""
        return self.call("prolog.sh", SLURM_JOB_ID=job, SLURM_JOB_UID=user).stderr

    def epilog(self, job: int) -> str:
        """What it complained of."""
        return self.call("epilog.sh", SLURM_JOB_ID=job).stderr

    def let_pass(self, job: int, hours: int) -> None:
        """Have a job's end be that long ago."""
        subprocess.run(["touch", "-d", f"{hours} hours ago", self.ended / str(job)], check=True)

    def folder(self, job: int) -> Path:
        return self.runs / f"slurm-{job}"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    if IS_ROOT:
        folder = tmp_path
        while folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)  # else the user of the job cannot see the node's folders
            folder = folder.parent
    return Node(tmp_path)


def test_the_folder_is_the_users_own_and_one_that_the_exporter_trusts(node: Node) -> None:
    assert node.prolog(7) == ""
    status = node.folder(7).stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o700, USER if IS_ROOT else os.getuid())
    assert node.prolog(7) == "", "a second step's prolog, or that of a job that was requeued"
    assert list(rundir.read_all([node.folder(7)])) == []


def test_the_exporter_looks_there(tmp_path: Path) -> None:
    node = Node(tmp_path / "run")
    node.runs.parent.mkdir()
    node.prolog(7)
    assert node.folder(7) in rundir.everyone(tmp_path)


def test_the_task_is_told_of_the_folder(node: Node) -> None:
    node.prolog(7)
    told = node.call("task_prolog.sh", USER, SLURM_JOB_ID=7)
    assert told.stdout == f"export TRAINVITALS_RUN_DIR={node.folder(7)}\n"
    chosen = node.call("task_prolog.sh", USER, SLURM_JOB_ID=7, TRAINVITALS_RUN_DIR="/my/own")
    assert chosen.stdout == "", "what the user has set counts"
    assert node.call("task_prolog.sh", USER, SLURM_JOB_ID=8).stdout == "", "without a prolog, the default counts"


def test_a_folder_that_somebody_else_made_is_not_used(node: Node) -> None:
    node.prolog(1)
    node.folder(7).mkdir(mode=0o755)
    assert "made by somebody else" in node.prolog(7)
    if IS_ROOT:  # the folder's owner; who is not root cannot play two users
        assert node.call("task_prolog.sh", USER, SLURM_JOB_ID=7).stdout == ""
        assert node.folder(7).stat().st_uid == 0


def test_an_ended_job_is_kept_for_an_hour_and_its_neighbour_for_as_long_as_it_runs(node: Node) -> None:
    for job in (7, 8):
        node.prolog(job)
        (node.folder(job) / "x.vitals").touch()
    assert node.epilog(7) == ""
    node.prolog(9)
    assert (node.folder(7) / "x.vitals").exists(), "its last values can still be scraped"
    node.let_pass(7, hours=2)
    node.prolog(10)
    assert not node.folder(7).exists()
    assert (node.folder(8) / "x.vitals").exists()
    assert list(node.ended.iterdir()) == []


def test_a_job_that_is_started_again_keeps_its_folder(node: Node) -> None:
    node.prolog(7)
    node.epilog(7)
    node.let_pass(7, hours=2)
    node.prolog(7)
    node.prolog(8)
    assert node.folder(7).exists()


def test_links_are_not_followed_when_a_folder_is_made(node: Node, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    node.prolog(1)
    node.folder(7).symlink_to(victim)
    assert "made by somebody else" in node.prolog(7)
    assert (victim.stat().st_mode & 0o777, victim.stat().st_uid) == (0o755, os.getuid())
    assert node.call("task_prolog.sh", USER, SLURM_JOB_ID=7).stdout == ""


def test_links_are_not_followed_when_a_folder_is_removed(node: Node, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keep").touch()
    for job in (7, 8):
        node.prolog(job)
    for job in (7, 8):
        node.epilog(job)
        node.let_pass(job, hours=2)
    (node.folder(7) / "link").symlink_to(victim)
    node.folder(8).rmdir()
    node.folder(8).symlink_to(victim)
    node.prolog(9)
    assert [path.name for path in node.runs.iterdir()] == ["slurm-9"]
    assert (victim / "keep").exists()


def test_a_link_in_place_of_all_folders_is_refused(node: Node, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    node.runs.symlink_to(tmp_path / "elsewhere")
    assert "have to be folders that belong to root" in node.prolog(7)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("script", ["prolog.sh", "epilog.sh"])
@pytest.mark.parametrize(
    "variables", [{}, {"SLURM_JOB_ID": ""}, {"SLURM_JOB_ID": "../x", "SLURM_JOB_UID": "0"}, {"SLURM_JOB_ID": "7 8"}]
)
def test_without_slurms_variables_nothing_is_done_and_the_node_stays_in_service(
    node: Node, script: str, variables: dict[str, str]
) -> None:
    done = node.call(script, 0, **variables)
    assert "not set" in done.stderr
    assert not node.runs.exists()


def test_not_as_root_nothing_is_made_and_the_node_stays_in_service(node: Node) -> None:
    uid = USER if IS_ROOT else None  # None: without a namespace of its own
    if not IS_ROOT:
        node.runs.parent.chmod(0o500)
    done = node.call("prolog.sh", uid, SLURM_JOB_ID=7, SLURM_JOB_UID=USER)
    assert "belong to root" in done.stderr
    assert "belongs to root" in node.call("epilog.sh", uid, SLURM_JOB_ID=7).stderr
    assert not node.runs.exists()


@pytest.mark.parametrize("script", ["train.sbatch", "train-nodes.sbatch"])
def test_the_example_is_a_batch_script_and_names_the_run(script: str) -> None:
    text = (SCRIPTS / script).read_text()
    subprocess.run([shutil.which("bash") or "bash", "-n", SCRIPTS / script], check=True)
    assert text.startswith("#!/bin/bash\n")
    assert "#SBATCH --ntasks-per-node=1\n" in text, "one launcher a node"
    assert 'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" trainvitals run --name' in text, "srun does not inherit it"
