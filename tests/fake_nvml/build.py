"""Compiles the fake NVIDIA library: `python tests/fake_nvml/build.py DIRECTORY [COMPILER FLAG]…`.

DIRECTORY then belongs into LD_LIBRARY_PATH. Needs a C compiler, `cc`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def build(directory: Path, *flags: str) -> None:
    """Compile `libnvidia-ml.so.1` into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("fake_nvml.c")
    warnings = ("-Wall", "-Wextra", "-Werror")
    output = directory / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", *warnings, *flags, "-o", output, source], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]), *sys.argv[2:])
