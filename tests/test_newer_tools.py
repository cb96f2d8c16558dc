"""`make newer-tools`: takes the newest of a mirror, and nothing that the index does not vouch for."""

from __future__ import annotations

import hashlib
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.newer_tools import PACKAGES


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror with versions 9 and 10 of each package, of which only the newer ones can be fetched."""
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    root, entries = tmp_path / "mirror", []
    (root / "pool").mkdir(parents=True)
    for package in PACKAGES:
        tree = tmp_path / package
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr" / "bin").mkdir(parents=True)
        (tree / "usr" / "bin" / package).write_text("10")
        (tree / "DEBIAN" / "control").write_text(
            f"Package: {package}\nVersion: 10-1\nArchitecture: {architecture}\nMaintainer: me\nDescription: x\n"
        )
        deb = root / "pool" / f"{package}.deb"
        subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, capture_output=True)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        # 9 after 10, and a package whose name begins alike
        entries.append(
            f"Package: {package}\nVersion: 10-1\nFilename: pool/{package}.deb\nSHA256: {digest}\nTag: a::b\n c::d\n"
        )
        entries.append(f"Package: {package}\nVersion: 9-1\nFilename: pool/none.deb\nSHA256: {digest}\n")
        entries.append(f"Package: {package}-more\nVersion: 99-1\nFilename: pool/none.deb\nSHA256: {digest}\n")
    index = root / "dists" / "testing" / "main" / f"binary-{architecture}" / "Packages.xz"
    index.parent.mkdir(parents=True)
    index.write_bytes(lzma.compress("\n".join(entries).encode(), preset=0))
    return root


def fetch(mirror: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.newer_tools", folder], cwd=Path(__file__).parents[1], text=True,
        env={**os.environ, "TRAINVITALS_DEBIAN_MIRROR": mirror}, capture_output=True, check=False,
    )  # fmt: skip


def test_takes_the_newest(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "newer"
    assert fetch(mirror.as_uri(), folder).returncode == 0
    assert [(folder / "usr" / "bin" / package).read_text() for package in PACKAGES] == ["10"] * len(PACKAGES)
    # once is enough
    assert fetch("file:///nowhere", folder).returncode == 0


def test_refuses_what_the_index_does_not_vouch_for(mirror: Path, tmp_path: Path) -> None:
    deb = mirror / "pool" / f"{PACKAGES[0]}.deb"
    deb.write_bytes(deb.read_bytes() + b"!")
    done = fetch(mirror.as_uri(), tmp_path / "newer")
    assert done.returncode == 1
    assert f"pool/{PACKAGES[0]}.deb is not what the index of" in done.stderr
    assert not (tmp_path / "newer" / "usr").exists()


def test_says_how_to_do_without(tmp_path: Path) -> None:
    done = fetch("file:///nowhere", tmp_path / "newer")
    assert done.returncode == 1
    assert 'TRAINVITALS_TEST_WITHOUT="newer-tools"' in done.stderr
    assert "Traceback" not in done.stderr
