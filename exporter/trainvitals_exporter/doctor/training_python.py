"""Would the hooks attach to a Python process of a run?"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import trainvitals
from trainvitals import options, session

from trainvitals_exporter.doctor.findings import Finding, Where, not_checked, ok, problem, warning

_AUTOLOAD: Final = Path(trainvitals.__file__).parent / "autoload"
_OLDEST_PYTHON: Final = (3, 10)
_OLDEST_TORCH: Final = (2, 1)
_SECONDS: Final = 6.0
_NAME_IT: Final = "name the Python that you train with: --python FILE"
# torch is not imported: that takes seconds.
_PROBE: Final = """
import json, sys
from importlib import metadata
try: torch = metadata.version("torch")
except metadata.PackageNotFoundError: torch = None
watching = "trainvitals.imports" in sys.modules
print(json.dumps({"python": sys.version_info[:3], "torch": torch, "watching": watching,
                  "sitecustomize": getattr(sys.modules.get("sitecustomize"), "__file__", None)}))
"""


def check(where: Where) -> Iterator[Finding]:
    """Start that Python as `trainvitals run` does, and see whether the hooks are there."""
    if options.disabled():
        what = f"{options.DISABLED} is set: trainvitals stays away from every run"
        yield problem("hooks", what, f"unset {options.DISABLED}")
    yield from _preloaded()
    try:
        about, said = _probe(where.python)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = "does not answer" if isinstance(error, subprocess.TimeoutExpired) else error.strerror or str(error)
        yield problem("python", f"{where.python}: {why}", _NAME_IT)
        return
    if about is None:
        yield problem("python", f"{where.python} does not run: {said}", _NAME_IT)
        return
    version = ".".join(map(str, about["python"]))
    if tuple(about["python"]) < _OLDEST_PYTHON:
        yield problem("python", f"{where.python} is Python {version}", "train with Python 3.10 or newer")
        return
    yield ok("python", f"{where.python} is Python {version}")
    yield _torch(where, about["torch"])
    if about["watching"]:
        yield ok("hooks", "they attach to what `trainvitals run` starts (not to python -E and -I, which shut them out)")
    else:
        other = f": {about['sitecustomize']} is loaded in their place" if about["sitecustomize"] else ""
        yield problem(
            "hooks", f"they do not get into a Python process of a run{other}",
            "start the script with `trainvitals run -- python …` where nothing sets PYTHONPATH anew in between and "
            "python is called without -E, -I or -S; or call trainvitals.attach() in the script",
        )  # fmt: skip


def _probe(python: str) -> tuple[dict[str, Any] | None, str]:
    """What the probe says in that Python, and the last line on stderr."""
    path = os.pathsep.join([str(_AUTOLOAD), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, session.RUN_ID: "doctor"}
    done = subprocess.run(
        [python, "-c", _PROBE], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_SECONDS, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1]), ""
    except (IndexError, ValueError):
        return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _torch(where: Where, version: str | None) -> Finding:
    if version is None:
        return warning("torch", f"{where.python} has no PyTorch", f"{_NAME_IT}; or install torch")
    try:
        known = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    except ValueError:
        return not_checked("torch", f"version {version} is none that can be compared")
    if known < _OLDEST_TORCH:
        return problem("torch", f"PyTorch {version} is too old for the hooks", "install PyTorch 2.1 or newer")
    return ok("torch", f"PyTorch {version}")


def _preloaded() -> Iterator[Finding]:
    """A library that is preloaded and missing makes the loader complain in every process."""
    named = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    missing = [name for name in named if "/" in name and not Path(name).exists()]
    if missing:
        yield warning("hooks", f"LD_PRELOAD names {missing[0]}, which is not there", "unset LD_PRELOAD, or correct it")
