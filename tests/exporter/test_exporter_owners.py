"""Whose a rank is: users, containers, pods and Slurm jobs of made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exporter.conftest import StartExporter, StartRunFile
from tests.exporter.exporter_process import Scrape
from tests.exporter.frozen_proc import FrozenProc

CONTAINER, OUTER = "0123456789abcdef" * 4, "fedcba9876543210" * 4
POD = "6c8a1b2e-90af-4c1d-8e7b-0a1b2c3d4e5f"
SLICE = POD.replace("-", "_")
STATIC_POD = "0f" * 16
USERS = "root:x:0:0::/root:/bin/sh\nanna:x:1000:1000:Anna,,,:/home/anna:/bin/bash\nbroken\nbob:x:1001\n"
ANNA = 1000

# What a rank's cgroup, user id and environment are, and what its labels then are.
CASES: dict[str, tuple[str, int, dict[str, str], dict[str, str]]] = {
    "desktop": ("0::/user.slice/user-1000.slice/session-3.scope", ANNA, {"HOME": "/home/anna"}, {"user": "anna"}),
    "user-without-account": ("0::/", 7777, {}, {"user": "7777"}),
    "docker-v1": (
        f"12:memory:/docker/{CONTAINER}\n11:cpu,cpuacct:/docker/{CONTAINER}\n1:name=systemd:/docker/{CONTAINER}", 0, {},
        {"user": "root", "container_id": CONTAINER},
    ),
    "docker-v2": (f"0::/system.slice/docker-{CONTAINER}.scope", 0, {}, {"user": "root", "container_id": CONTAINER}),
    "docker-in-docker": (f"0::/docker/{OUTER}/docker/{CONTAINER}", 0, {}, {"user": "root", "container_id": CONTAINER}),
    "podman-rootless": (
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{CONTAINER}.scope/container", ANNA, {},
        {"user": "anna", "container_id": CONTAINER},
    ),
    "beside-a-container": (f"0::/machine.slice/libpod-conmon-{CONTAINER}.scope", 0, {}, {"user": "root"}),
    "containerd-v2": (
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice/cri-containerd-{CONTAINER}.scope",
        0, {"POD_NAME": "told-otherwise"},
        {"user": "root", "container_id": CONTAINER, "kubernetes_pod_uid": POD,
         "kubernetes_namespace": "speech", "kubernetes_pod": "train-0.x"},
    ),
    "containerd-as-a-service": (
        f"0::/system.slice/containerd.service/kubepods-besteffort-pod{SLICE}.slice:cri-containerd:{CONTAINER}", 0, {},
        {"user": "root", "container_id": CONTAINER, "kubernetes_pod_uid": POD,
         "kubernetes_namespace": "speech", "kubernetes_pod": "train-0.x"},
    ),
    "crio-from-another-cgroup-namespace": (
        f"0::/../../kubepods-pod{SLICE[:-1]}0.slice/crio-{CONTAINER}.scope/x", 0,
        {"POD_NAME": "train-7", "POD_NAMESPACE": "lab"},
        {"user": "root", "container_id": CONTAINER, "kubernetes_pod_uid": POD[:-1] + "0",
         "kubernetes_namespace": "lab", "kubernetes_pod": "train-7"},
    ),
    "kubernetes-without-systemd-from-another-cgroup-namespace": (
        f"0::/../../../besteffort/pod{POD}/{CONTAINER}", 0, {},
        {"user": "root", "container_id": CONTAINER, "kubernetes_pod_uid": POD,
         "kubernetes_namespace": "speech", "kubernetes_pod": "train-0.x"},
    ),
    "kubernetes-v1": (
        f"4:memory:/kubepods/burstable/pod{POD}/{CONTAINER}", 0, {},
        {"user": "root", "container_id": CONTAINER, "kubernetes_pod_uid": POD,
         "kubernetes_namespace": "speech", "kubernetes_pod": "train-0.x"},
    ),
    "static-pod": (
        f"4:memory:/kubepods/pod{STATIC_POD}/{CONTAINER}", 0, {},
        {"user": "root", "container_id": CONTAINER, "kubernetes_pod_uid": STATIC_POD},
    ),
    "slurm-v1": (
        "9:memory:/slurm/uid_1000/job_123/step_0/task_0\n5:freezer:/slurm/uid_1000/job_123", ANNA, {},
        {"user": "anna", "slurm_job": "123"},
    ),
    "slurm-v1-many-slurmd": (
        "9:memory:/slurm_n17/uid_1000/job_124/step_0", ANNA, {},
        {"user": "anna", "slurm_job": "124"},
    ),
    "slurm-v2": (
        "0::/system.slice/slurmstepd.scope/job_125/step_0/user/task_0", ANNA, {"SLURM_JOB_ID": "999"},
        {"user": "anna", "slurm_job": "125"},
    ),
    "slurm-v2-many-slurmd": (
        "0::/system.slice/n17_slurmstepd.scope/job_126/step_batch/user/task_special", ANNA, {},
        {"user": "anna", "slurm_job": "126"},
    ),
    "slurm-sluid": (
        "0::/system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_0/user/task_0", ANNA,
        {"SLURM_JOB_ID": "127", "SLURM_ARRAY_JOB_ID": "120", "SLURM_ARRAY_TASK_ID": "7"},
        {"user": "anna", "slurm_job": "127", "slurm_array_task": "120_7"},
    ),
    "slurm-container": (
        f"0::/system.slice/slurmstepd.scope/job_128/step_0/user/libpod-{CONTAINER}.scope/container", ANNA, {},
        {"user": "anna", "slurm_job": "128", "container_id": CONTAINER},
    ),
    # Hostile: an array's number alone, what is no number or name, a job and a pod that somebody made up in a path.
    "odd-values": (
        f"0::/a b/{CONTAINER} c\n::\n\n0::/home/slurm/uid_0/job_1\n0::/podcast/pod{POD}\n0::/../user.slice/pod{POD}/x\n"
        f"0::/pod{POD}/x\n0::/slurmstepd.scope/job_x",
        ANNA,
        {"SLURM_JOB_ID": "1 2", "SLURM_ARRAY_JOB_ID": "3", "POD_NAME": 'a\n"b', "POD_NAMESPACE": "a" * 300},
        {"user": "anna"},
    ),
    "long-environment": ("0::/", ANNA, {"X": "x" * 2**20, "SLURM_JOB_ID": "130"}, {"user": "anna", "slurm_job": "130"}),
}  # fmt: skip


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for name in (f"speech_train-0.x_{POD}", f"speech_other_{POD[:-1]}1", "odd", f"Bad_Name_{STATIC_POD}"):
        (folder / "var" / "log" / "pods" / name).mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "etc" / "passwd").write_text(USERS)
    return folder


@pytest.fixture
def proc(tmp_path: Path) -> FrozenProc:
    return FrozenProc(tmp_path / "proc")


def owner(scrape: Scrape, run: str) -> dict[str, str]:
    """What is known of who started a run's only rank."""
    [(labels, value)] = scrape.series("trainvitals_run_owner_info", run=run)
    assert value == 1
    return {label: text for label, text in labels.items() if text and label not in ("run", "rank")}


def write(proc: FrozenProc, pid: int, cgroup: str, uid: int, environment: dict[str, str]) -> None:
    proc.write(pid, "cgroup", cgroup + "\n").write(pid, "status", f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    variables = {"API_KEY": "sesame", **environment, "NO_VALUE": "", "SLURM_JOB_ID_X": "sesame"}
    proc.write(pid, "environ", "".join(f"{name}={text}\0" for name, text in variables.items()) + "sesame\0\0")


def test_who_started_a_rank(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path, proc: FrozenProc, rootfs: Path
) -> None:
    for name, (cgroup, uid, environment, _) in CASES.items():
        write(proc, start_run_file(name, "rank").pid, cgroup, uid, environment)
    start_run_file("nothing-known", "rank")
    places = ("--procfs", str(proc.path), "--rootfs", str(rootfs), "--run-dir", str(run_dir))
    scrape = start_exporter("--collectors", "runs,owners", *places).scrape()
    assert {name: owner(scrape, name) for name in CASES} == {name: labels for name, (*_, labels) in CASES.items()}
    assert scrape.series("trainvitals_run_owner_info", run="nothing-known") == []
    assert "sesame" not in scrape.text
    assert scrape.value("trainvitals_collector_success", collector="owners") == 1


def test_the_owner_outlives_the_rank_and_goes_with_the_run(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path, proc: FrozenProc, rootfs: Path
) -> None:
    rank = start_run_file("train", "rank", rank=0)
    write(proc, rank.pid, "0::/system.slice/slurmstepd.scope/job_5/step_0", ANNA, {})
    places = ("--procfs", str(proc.path), "--rootfs", str(rootfs), "--run-dir", str(run_dir), "--keep-ended", "6")
    exporter = start_exporter("--collectors", "runs,owners", *places)
    assert owner(exporter.scrape(), "train") == {"user": "anna", "slurm_job": "5"}
    rank.end()
    proc.end(rank.pid)
    scrape = exporter.scrape_until(lambda scrape: scrape.state("train") == "killed", "the run ends")
    assert owner(scrape, "train") == {"user": "anna", "slurm_job": "5"}
    info = "trainvitals_run_owner_info"
    exporter.scrape_until(lambda scrape: not scrape.series(info) and scrape.state("train") is None, "the run vanishes")


def test_user_of_a_real_process(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path) -> None:
    rank = start_run_file("train", "rank", rank=0)
    scrape = start_exporter("--collectors", "owners", "--run-dir", str(run_dir)).scrape()
    assert owner(scrape, "train")["user"] == Path(f"/proc/{rank.pid}").owner()
