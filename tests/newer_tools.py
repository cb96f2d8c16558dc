"""Puts newer monitoring programs than the distribution's into a folder: ``python -m tests.newer_tools DIR``.

They are those of Debian's testing branch, whose files hold all that the programs need. Nothing is installed. A mirror
other than Debian's own is taken from the environment variable TRAINVITALS_DEBIAN_MIRROR.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Final

MIRROR: Final = "http://deb.debian.org/debian"
# amtool comes with Alertmanager, vmalert with VictoriaMetrics; kubectl builds what Kustomize describes.
PACKAGES: Final = ("prometheus", "promtool", "prometheus-alertmanager", "victoria-metrics", "kubectl")
_SECONDS: Final = 60


def main(folder: Path) -> None:
    """Fetch and unpack what is not there yet; programs then lie in usr/bin of the folder."""
    done = folder / ".done"
    if done.exists() and done.read_text().split() == list(PACKAGES):
        return
    mirror = os.environ.get("TRAINVITALS_DEBIAN_MIRROR", MIRROR).rstrip("/")
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    index = _fetch(f"{mirror}/dists/testing/main/binary-{architecture}/Packages.xz")
    entries = lzma.decompress(index).decode()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package in PACKAGES:
        entry = _newest(entries, package)
        content = _fetch(f"{mirror}/{entry['Filename']}")
        if hashlib.sha256(content).hexdigest() != entry["SHA256"]:
            sys.exit(f"newer tools: {entry['Filename']} is not what the index of {mirror} says")
        with tempfile.NamedTemporaryFile(suffix=".deb") as file:
            file.write(content)
            file.flush()
            subprocess.run(["dpkg-deb", "--extract", file.name, folder], check=True)
        print(f"{package} {entry['Version']} is in {folder}")
    done.write_text(" ".join(PACKAGES))


def _newest(index: str, package: str) -> dict[str, str]:
    """The fields of the package's newest version."""
    newest: dict[str, str] = {}
    for paragraph in re.findall(rf"^Package: {re.escape(package)}\n(?:.+\n)+", index, re.MULTILINE):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[\w-]+: ", line))
        newer = ["dpkg", "--compare-versions", fields["Version"], "gt", newest.get("Version", "0")]
        if not newest or subprocess.run(newer, check=False).returncode == 0:
            newest = fields
    if not newest:
        sys.exit(f"newer tools: Debian has no {package}")
    return newest


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as response:
            content: bytes = response.read()
    except OSError as error:
        sys.exit(
            f"newer tools: {url} cannot be had ({error}); name another mirror in TRAINVITALS_DEBIAN_MIRROR, or do "
            'without: TRAINVITALS_TEST_WITHOUT="newer-tools"'
        )
    return content


if __name__ == "__main__":
    main(Path(sys.argv[1]))
