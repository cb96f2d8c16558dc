"""The files that `trainvitals stack` writes, and where this installation holds them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

# Files and folders of the repository. hatch_build.py reads this list, so this module imports nothing of ours.
CONTENTS: Final = (
    "compose.yaml",
    "grafana/dashboards",
    "grafana/dashboards-zh",
    "grafana/import",
    "grafana/provisioning",
    "prometheus/alertmanager/en",
    "prometheus/alertmanager/templates",
    "prometheus/alertmanager/zh",
    "prometheus/prometheus.yml",
    "prometheus/rules",
    "prometheus/targets",
    "prometheus/targets-compose",
    "secrets/README.md",
    # What the exporter's image is built from, with the code of both packages.
    ".dockerignore",
    "LICENSE",
    "README.md",
    "exporter/Dockerfile",
    "exporter/requirements-build.txt",
    "hatch_build.py",
    "pyproject.toml",
    "requirements.lock",
)
_HERE: Final = Path(__file__).resolve().parent
_IN_WHEEL: Final = _HERE / "files"
CHECKOUT: Final = None if _IN_WHEEL.is_dir() else _HERE.parents[2]


class NotPackaged(Exception):
    """This installation holds no files to write; the message says what to do."""


def files() -> dict[str, Path]:
    """What is written, by its path in the folder of the stack, and where it lies here. Raises NotPackaged."""
    root = CHECKOUT or _IN_WHEEL
    if not (root / "compose.yaml").is_file():
        raise NotPackaged("this installation of trainvitals came without its files; install its wheel")
    found = {path.relative_to(root).as_posix(): path for name in CONTENTS for path in _below(root / name)}
    hooks = find_spec("trainvitals")
    assert hooks is not None and hooks.origin is not None  # noqa: S101, PT018  # a part of this same distribution
    for folder, package in (("hooks", Path(hooks.origin).parent), ("exporter", _HERE.parent)):
        for path in _below(package):
            if _IN_WHEEL not in path.parents and path.parent.name != "__pycache__":
                found[f"{folder}/{package.name}/{path.relative_to(package).as_posix()}"] = path
    return found


def _below(path: Path) -> Iterator[Path]:
    return iter([path]) if path.is_file() else (each for each in sorted(path.rglob("*")) if each.is_file())
