"""Run files that are damaged, hostile or somebody else's: refused, counted, and harmless to the others."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trainvitals import runfile

from tests.exporter.conftest import StartExporter, StartRunFile

SOMEBODY_ELSE = 12345


def _truncated(path: Path, good: bytes) -> None:
    path.write_bytes(good[:80])


def _empty(path: Path, good: bytes) -> None:
    path.write_bytes(b"")


def _garbage(path: Path, good: bytes) -> None:
    path.write_bytes(os.urandom(5000))


def _damaged_key(path: Path, good: bytes) -> None:
    path.write_bytes(good.replace(b"identity", b"idensity"))


def _from_the_future(path: Path, good: bytes) -> None:
    path.write_bytes(good[:8] + struct.pack("=I", 2) + good[12:])


def _huge(path: Path, good: bytes) -> None:
    path.write_bytes(good)
    os.truncate(path, 1 << 40)  # sparse


def _symlink(path: Path, good: bytes) -> None:
    target = path.with_suffix(".elsewhere")
    target.write_bytes(good)
    path.symlink_to(target)


def _fifo(path: Path, good: bytes) -> None:
    os.mkfifo(path)


def _folder(path: Path, good: bytes) -> None:
    path.mkdir()


def _foreign(path: Path, good: bytes) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file to somebody else")
    path.write_bytes(good)
    os.chown(path, SOMEBODY_ELSE, SOMEBODY_ELSE)


BAD_FILES: dict[str, tuple[Callable[[Path, bytes], None], str]] = {
    "truncated": (_truncated, "truncated"),
    "empty": (_empty, "truncated"),
    "garbage": (_garbage, "not_a_run_file"),
    "damaged key": (_damaged_key, "malformed"),
    "from the future": (_from_the_future, "unknown_version"),
    "huge": (_huge, "too_large"),
    "symlink": (_symlink, "symlink"),
    "fifo": (_fifo, "not_a_file"),
    "folder": (_folder, "not_a_file"),
    "somebody else's": (_foreign, "foreign_owner"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_run_file(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path, kind: str) -> None:
    good = start_run_file("good", "rank").set("trainvitals_iterations_total", 5)
    make, reason = BAD_FILES[kind]
    make(run_dir / "bad.rank.1.vitals", good.path.read_bytes())
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    scrape = exporter.scrape()
    assert scrape.series("trainvitals_exporter_run_files_rejected") == [({"reason": reason}, 1)]
    assert scrape.value("trainvitals_iterations_total", run="good") == 5
    assert scrape.value("trainvitals_collector_success", collector="runs") == 1
    assert [line for line in exporter.log if "bad.rank.1.vitals" in line]


def test_file_that_goes_bad_while_it_is_read(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    start_run_file("good", "rank")
    bad = start_run_file("bad", "rank")
    exporter.scrape_until(lambda s: s.state("good") == s.state("bad") == "running", "both runs are served")
    with bad.path.open("r+b") as file:
        file.write(b"x" * 8)
    scrape = exporter.scrape_until(lambda scrape: scrape.state("bad") is None, "the damaged file is not served")
    assert scrape.value("trainvitals_exporter_run_files_rejected", reason="not_a_run_file") == 1
    assert scrape.state("good") == "running"


def test_folder_that_others_can_write_to(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    start_run_file("good", "rank")
    exporter.scrape_until(lambda scrape: scrape.state("good") == "running", "the run is served")
    run_dir.chmod(0o777)
    scrape = exporter.scrape_until(lambda scrape: scrape.state("good") is None, "the folder is trusted no more")
    assert scrape.value("trainvitals_exporter_run_files_rejected", reason="untrusted_folder") == 1
    run_dir.chmod(0o700)
    exporter.scrape_until(lambda scrape: scrape.state("good") == "running", "the folder is trusted again")


def _run_file_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        writer = runfile.RunFileWriter(Path(folder), runfile.Identity("id", "train", "rank"), rank=0)
        writer.set("trainvitals_iterations_total", 1)
        writer.set("trainvitals_loss", 0.5, optimizer="0")
        content = writer.path.read_bytes()[:1024]
        writer.close()
    return content


WHOLE = _run_file_bytes()


def _patched(changes: list[tuple[int, bytes]]) -> bytes:
    data = bytearray(WHOLE)
    for offset, patch in changes:
        data[offset : offset + len(patch)] = patch
    return bytes(data)


damaged = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=8)), max_size=4).map(_patched)
headed = st.binary(max_size=300).map(lambda rest: WHOLE[:64] + rest)


@settings(max_examples=400, deadline=None)
@given(content=st.one_of(damaged, headed, st.binary(max_size=300)))
@example(content=WHOLE)
@example(content=WHOLE[:64] + struct.pack("=I4x", 2**32 - 8) + WHOLE[72:])
@example(content=WHOLE[:64] + struct.pack("=I4x", 0) + WHOLE[72:])
def test_whatever_the_bytes_a_reader_survives(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{runfile.SUFFIX}"
        path.write_bytes(content)
        with contextlib.suppress(runfile.InvalidRunFile, OSError):
            file = runfile.read(path, os.getuid())
            assert file.identity.run_id
            assert all(isinstance(sample.value, float) for sample in file.samples)
