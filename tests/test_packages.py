"""Wheel and sdist hold what they must, and work where nothing but they are installed; what they need is pinned."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import tool

REPOSITORY = Path(__file__).parents[1]
LOCK = REPOSITORY / "requirements.lock"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
PACKAGES = {"trainvitals": "hooks/trainvitals/", "trainvitals_exporter": "exporter/trainvitals_exporter/"}


def output_of(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    return output_of("git", "ls-files", "--cached").splitlines()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist of the files that git knows, as they are now, twice over: `first` and `second`."""
    folder = tmp_path_factory.mktemp("packages")
    checkout = folder / "checkout"
    for name in tracked():
        if (REPOSITORY / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((REPOSITORY / name).read_bytes())
    for name in ("first", "second"):
        output_of(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / name, checkout)
    return folder


def test_the_packages_hold_what_git_holds(built: Path) -> None:
    (wheel,) = (built / "first").glob("*.whl")
    (sdist,) = (built / "first").glob("*.tar.gz")
    files = [name for name in tracked() if (REPOSITORY / name).is_file()]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    expected = {name.removeprefix(f"{folder.split('/')[0]}/") for folder in PACKAGES.values()
                for name in files if name.startswith(folder)}  # fmt: skip
    assert expected <= set(names)
    extra = {name for name in names if ".dist-info/" not in name and "/stack/files/" not in name} - expected
    assert extra == set(), "in the wheel, but not in git"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)

    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames()}
    assert set(files) - {name for name in files if name.startswith(".")} <= held
    assert held - set(files) == {"PKG-INFO"}


def test_building_twice_gives_the_same_bytes(built: Path) -> None:
    for path in (built / "first").iterdir():
        assert path.read_bytes() == (built / "second" / path.name).read_bytes(), path.name


# What it needs


def locked() -> dict[str, str]:
    """Name and version of each pinned package."""
    text = LOCK.read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))


def test_every_dependency_is_locked_with_hashes() -> None:
    text = LOCK.read_text(encoding="utf-8")
    entries = re.findall(r"^[a-z0-9._-]+==(?:.*\\\n)+.*", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"==", text.replace("python_full_version ==", "")))
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text, "no index is named"
    versions = locked()
    for text in metadata.requires("trainvitals") or []:
        requirement = Requirement(text)
        if requirement.marker is None or re.search(r"'(top|push)'|\"(top|push)\"", str(requirement.marker)):
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert versions.get(name) is not None, f"{name}: run make lock"
            assert requirement.specifier.contains(versions[name]), f"{text}: run make lock"


def test_licences_are_those_of_the_lock() -> None:
    page = (REPOSITORY / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z0-9._-]+) \| ([^|]+) \|", page, re.MULTILINE))
    assert rows.keys() - {"package", "---"} == set(locked())
    for name, licence in list(rows.items())[2:]:
        if not any(metadata.distributions(name=name)):
            continue  # of another Python version or system
        about = message_from_string(metadata.distribution(name).read_text("METADATA") or "")
        said = about.get("License-Expression") or about.get("License") or " ".join(about.get_all("Classifier") or [])
        assert licence.split("-")[0].lower() in said.lower(), f"{name}: {said}"


# In a clean environment

# What imports torch cannot be imported where there is none.
IMPORT_EVERYTHING = """
import importlib, pkgutil, trainvitals, trainvitals_exporter
for package in (trainvitals, trainvitals_exporter):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        last = module.name.split(".")[-1]
        if ".instruments" not in module.name and last not in ("lightning", "transformers", "__main__"):
            importlib.import_module(module.name)
"""


def python(version: str) -> str:
    """The path of that Python: on PATH, or one that pyenv has."""
    known = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    return str(known[-1]) if known else tool(f"python{version}")


@pytest.mark.packages
@pytest.mark.parametrize("version", VERSIONS)
def test_installed_in_a_clean_environment(built: Path, tmp_path: Path, version: str) -> None:
    (wheel,) = (built / "first").glob("*.whl")
    environment = tmp_path / "environment"
    output_of(python(version), "-m", "venv", environment)
    pip: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    output_of(*pip, "--require-hashes", "-r", LOCK)
    output_of(*pip, "--no-deps", wheel)
    command = environment / "bin" / "trainvitals"
    assert output_of(command, "--version").startswith("trainvitals ")
    assert "trainvitals_collector_success" in output_of(command, "exporter", "--once", cwd=tmp_path)
    assert "trainvitals_loss" in output_of(command, "metrics", cwd=tmp_path)
    assert "fine" in output_of(command, "run", "--", "python3", "-c", "print('fine')", cwd=tmp_path)
    output_of(environment / "bin" / "python", "-W", "error", "-c", IMPORT_EVERYTHING, cwd=tmp_path)
