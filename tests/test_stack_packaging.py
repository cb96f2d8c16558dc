"""What the wheel, the sdist and the exporter's image are made of."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
IN_WHEEL = "trainvitals_exporter/stack/files/"
# What `trainvitals stack` needs, named without the list in packaged.py, so that nothing is forgotten there.
NEEDED = [
    "compose.yaml", ".dockerignore", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "requirements.lock",
    "secrets/README.md",
    "exporter/Dockerfile", "exporter/*.txt", "prometheus/*.yml", "prometheus/rules/**/*", "prometheus/targets*/**/*",
    "prometheus/alertmanager/??/*", "prometheus/alertmanager/templates/**/*", "grafana/provisioning/**/*",
    "grafana/dashboards*/**/*", "grafana/import/**/*",
]  # fmt: skip


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a wheel or an sdist of the project in `source`, without network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def needed() -> set[str]:
    paths = [path for pattern in NEEDED for path in REPOSITORY.glob(pattern) if path.is_file()]
    return {path.relative_to(REPOSITORY).as_posix() for path in paths}


def test_the_wheel_holds_what_the_stack_writes(wheel: Path) -> None:
    held = {name.removeprefix(IN_WHEEL) for name in names(wheel) if name.startswith(IN_WHEEL)}
    assert held == needed()
    with zipfile.ZipFile(wheel) as archive:
        for name in held:
            assert archive.read(IN_WHEEL + name) == (REPOSITORY / name).read_bytes(), name


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    packages = (REPOSITORY / "hooks" / "trainvitals", REPOSITORY / "exporter" / "trainvitals_exporter")
    code = {
        path.relative_to(package.parent).as_posix()
        for package in packages
        for path in package.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    assert {name for name in names(wheel) if not name.startswith(IN_WHEEL) and ".dist-info/" not in name} == code


def test_a_wheel_built_from_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", REPOSITORY, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert names(build("wheel", source, tmp_path / "wheel")) == names(wheel)
    for folder in ("tests", "docs", "deploy", "examples", "benchmarks"):
        assert (source / folder).is_dir(), folder
    assert [path.name for path in (source / "secrets").iterdir()] == ["README.md"]


def test_a_missing_file_is_no_wheel(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY, tmp_path / "source", ignore=shutil.ignore_patterns(
        ".git", ".venv", "tests", "docs", "node_modules", "rules", "__pycache__", ".*_cache", ".hypothesis",
    ))  # fmt: skip
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    done = subprocess.run(command, cwd=tmp_path / "source", capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "prometheus/rules" in done.stderr


def test_the_image_can_be_built_from_its_context(wheel: Path, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        path = REPOSITORY / line.removeprefix("!")
        if line.startswith("!") and path.is_dir():
            shutil.copytree(path, context / path.name)
        elif line.startswith("!"):
            shutil.copy(path, context)
    copied = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (REPOSITORY / "exporter" / "Dockerfile").read_text(), re.MULTILINE
    )
    for name in " ".join(copied).split():
        assert (context / name).exists(), name
    held = {name for name in names(wheel) if not name.startswith(IN_WHEEL)}
    assert names(build("wheel", context, tmp_path / "wheel")) == held


def test_the_image_is_built_from_pinned_packages_that_satisfy_ours() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    wanted = [Requirement(text) for text in re.findall(
        r'^  "([^"]+)"', pyproject.split("\ndependencies = [")[1].split("\n]")[0], re.MULTILINE)]  # fmt: skip
    pinned = {}
    for name in ("requirements.lock", "exporter/requirements-build.txt"):
        text = (REPOSITORY / name).read_text()
        found = re.findall(r"^([\w.-]+)==(\S+)(?: ; .+)? \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
        assert len(found) == len(re.findall(r"^[^#\s]", text, re.MULTILINE)), f"{name}: a line without a hash"
        pinned.update({package.lower(): version for package, version in found})
    assert len(wanted) >= 5
    for requirement in wanted:
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement
    assert "hatchling" in pinned
