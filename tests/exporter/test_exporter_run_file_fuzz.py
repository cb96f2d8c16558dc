"""Run files made by chance, or by malice: the reader says no in its own words, and what is served stays sound."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import stat
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from trainvitals import catalogue, runfile
from trainvitals_exporter import rendering
from trainvitals_exporter.collectors.runs import Runs
from trainvitals_exporter.run_table import RunTable

from tests.conftest import wait_until
from tests.exporter.conftest import StartExporter, StartRunFile
from tests.exporter.exporter_process import Scrape

HEADER = struct.Struct("=8sIIii40x")
VERSION_AT, COMMITTED_AT = 8, 12
REJECTED = "trainvitals_exporter_run_files_rejected"
LARGEST = 4 * runfile.CAPACITY


def run_file(*entries: tuple[bytes, float], rank: int = 0, committed: int | None = None) -> bytes:
    """A run file's bytes; keys need not make sense."""
    body = b""
    for key, value in entries:
        padded = key + b" " * (-len(key) % 8)
        body += struct.pack("=I4x", len(padded)) + padded + struct.pack("=d", value)
    size = HEADER.size + len(body) if committed is None else committed
    return HEADER.pack(runfile.MAGIC, runfile.VERSION, size, rank, 1) + body


def key(name: object, labels: object) -> bytes:
    return json.dumps([name, labels]).encode()


def identity(run: str = "train", run_id: str = "id", kind: str = "rank") -> bytes:
    return key("identity", {"run_id": run_id, "run": run, "kind": kind, "script": ""})


WHOLE = run_file(
    (identity(), 1.0e9),
    (key("trainvitals_iterations_total", {}), 5.0),
    (key("trainvitals_loss", {"optimizer": "0"}), 0.5),
    (key("trainvitals_iteration_seconds_bucket", {"le": "0.1"}), 3.0),
    (key("trainvitals_iteration_seconds_sum", {}), 0.2),
)


def read(content: bytes) -> runfile.RunFile | None:
    """What a reader makes of these bytes; None where it refuses them, in the one way it may."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            return runfile.read(Path(file.name), os.getuid())
        except runfile.InvalidRunFile as error:
            refused = error
    assert file.name in str(refused)
    assert refused.reason.replace("_", "").isalpha()
    return None


# One reader, any bytes

small = st.integers(0, len(WHOLE) + 64)
counts = st.sampled_from([0, 1, 63, 64, 65, 72, len(WHOLE) - 1, len(WHOLE) + 8, LARGEST, 2**31, 2**32 - 8, 2**32 - 1])


def flipped(bits: list[int]) -> bytes:
    content = bytearray(WHOLE)
    for bit in bits:
        content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def with_number(offset: int, number: int) -> bytes:
    return WHOLE[:offset] + struct.pack("=I", number) + WHOLE[offset + 4 :]


contents = st.one_of(
    st.binary(max_size=400),
    st.binary(max_size=300).map(lambda rest: WHOLE[: HEADER.size] + rest),
    small.map(lambda end: WHOLE[:end]),
    st.lists(st.integers(0, 8 * len(WHOLE) - 1), min_size=1, max_size=12).map(flipped),
    st.builds(
        with_number, st.sampled_from([VERSION_AT, COMMITTED_AT, HEADER.size]), counts | st.integers(0, 2**32 - 1)
    ),
    st.builds(lambda text, size: run_file((text, 1.0), committed=size), st.binary(max_size=60), counts),
)


def takes_or_refuses(content: bytes) -> None:
    file = read(content)
    if file is not None:
        assert file.identity.run_id
        assert file.identity.run
        assert all(isinstance(sample.value, float) for sample in file.samples)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(contents)
def test_any_bytes_are_taken_or_refused(content: bytes) -> None:
    takes_or_refuses(content)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=30_000, deadline=None)
@given(contents)
def test_any_bytes_for_longer(content: bytes) -> None:
    takes_or_refuses(content)


def test_every_bit_and_every_length() -> None:
    assert read(WHOLE) is not None
    for bit in range(8 * len(WHOLE)):
        takes_or_refuses(flipped([bit]))
    for end in range(len(WHOLE)):
        assert read(WHOLE[:end]) is None


BAD_KEYS = {
    "nested": b"[" * 100_000,
    "a number of 100,000 digits": b'["trainvitals_loss", {"optimizer": ' + b"9" * 100_000 + b"}]",
    "labels that are a list": b'["trainvitals_loss", ["optimizer"]]',
    "only a name": b'["trainvitals_loss"]',
    "null": b"null",
    "UTF-16": '["trainvitals_loss", {}'.encode("utf-16"),
    "not UTF-8": b'["\xff\xfe", {}]',
    "empty": b"",
    "unended": b'["trainvitals_loss", {"optimizer": "0"',
    "NUL": b"\x00" * 64,
}


@pytest.mark.parametrize("kind", BAD_KEYS)
def test_keys_that_make_no_sense(kind: str) -> None:
    assert read(run_file((identity(), 1.0), (BAD_KEYS[kind], 1.0))) is None


def test_a_file_full_of_the_shortest_entries() -> None:
    entry = (b'["a",{}]', 1.0)
    count = (LARGEST - len(run_file((identity(), 1.0)))) // 24
    file = read(run_file((identity(), 1.0), *[entry] * count))
    assert file is not None
    assert len(file.samples) == 1


def test_long_keys_are_not_remembered() -> None:
    """Who writes new ones all the time must not fill the reader's memory."""
    before = psutil.Process().memory_info().rss
    for number in range(200):
        assert read(run_file((identity(), 1.0), (key(str(number) + "x" * 400_000, {}), 1.0)))
    assert psutil.Process().memory_info().rss - before < 40 << 20


# What is served of files that a reader takes

label_texts = st.text(max_size=6) | st.sampled_from(
    [
        "",
        "0",
        "1",
        "?",
        "\ud800",
        "\udfff",
        "é",
        "e\u0301",
        "\U0001f600",
        '"',
        "\\",
        "\n",
        "\r\n",
        "\x00",
        "\u2028",
        "x" * 600,
        "x" * 601,
    ]
)
MAY_BE_NAN = {m.name for m in catalogue.METRICS if m.scope is catalogue.RANK and m.type == "gauge"}  # as a loss
rank_metrics = [m for m in catalogue.METRICS if m.scope is catalogue.RANK]
run_metrics = [m for m in catalogue.METRICS if m.scope is catalogue.RUN]
numbers = st.floats() | st.sampled_from([0.0, -0.0, 1.0, runfile.RETIRED, float("inf"), float("nan"), 5e-324, 1e308])


@st.composite
def entries(draw: st.DrawFn) -> tuple[bytes, float]:
    metric = draw(st.sampled_from(rank_metrics + run_metrics))
    if metric.type == "histogram":
        part = draw(st.sampled_from(["_bucket", "_sum", "_count", ""]))
        bounds = st.sampled_from(["0.1", "1e-1", "+Inf", "inf", "nan", "-1", "1_0", "x"])
        return key(metric.name + part, {"le": draw(bounds)} if part == "_bucket" else {}), draw(numbers)
    labels = {name: draw(label_texts) for name in metric.labels}
    if draw(st.booleans()):
        return key(metric.name, labels), draw(numbers)
    more = draw(st.dictionaries(label_texts, st.none() | st.integers() | label_texts, max_size=2))
    return key(draw(st.just(metric.name) | label_texts), {**labels, **more}), draw(numbers)


files = st.builds(
    lambda run, run_id, kind, rank, created, rest: run_file((identity(run, run_id, kind), created), *rest, rank=rank),
    label_texts,
    st.sampled_from(["a", "b", "?", "\ud800"]),
    st.sampled_from(["rank", "rank", "rank", "launcher", "process", "elephant"]),
    st.sampled_from([0, 0, 1, -1, 2**31 - 1]),
    numbers | st.floats(0, 2e9),
    st.lists(entries(), max_size=8),
)


def served(contents: list[bytes]) -> None:
    """Serve these files, and check what comes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, content in enumerate(contents):
            (folder / f"{number}{runfile.SUFFIX}").write_bytes(content)
        families = list(Runs(RunTable(lambda: [folder], keep_ended=float("inf"))).collect())
    text = rendering.render(families, rendering.TEXT).encode("utf-8", "replace").decode()  # as Runner does it
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    counted = Counter((sample.name, *sorted(sample.labels.items())) for sample in samples)
    assert [series for series, count in counted.items() if count > 1] == []
    assert [s for s in samples if s.value != s.value and s.name not in MAY_BE_NAN] == []


LOSS = "trainvitals_loss"
LOOK_ALIKE = [(key(LOSS, {"optimizer": optimizer}), 1.0) for optimizer in ("\ud800", "?", "\udfff")]
NAN = float("nan")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(files, min_size=1, max_size=4))
@example([run_file((identity(), 1.0), *LOOK_ALIKE)])
@example([run_file((identity(run), 1.0)) for run in ("\ud800",)] + [run_file((identity("?", "other"), 1.0))])
@example([run_file((identity(kind="launcher"), 1.0), (key("trainvitals_run_start_timestamp_seconds", {}), NAN))])
@example([run_file((identity(kind="launcher"), 1.0), (key("trainvitals_run_exit_code", {}), NAN))])
@example([WHOLE[:-8] + struct.pack("=d", NAN)])
def test_whatever_is_in_the_files_no_series_is_served_twice(contents: list[bytes]) -> None:
    served(contents)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=5000, deadline=None)
@given(st.lists(files, min_size=1, max_size=5))
def test_whatever_is_in_the_files_for_longer(contents: list[bytes]) -> None:
    served(contents)


# Files that change while they are read


@contextlib.contextmanager
def changing(path: Path, seed: int = 0) -> Iterator[None]:
    """A file that grows, shrinks, vanishes, comes back and is patched, as fast as it can."""
    chance, stop = random.Random(seed), threading.Event()
    changes: list[Callable[[], object]] = [
        lambda: os.truncate(path, chance.choice([0, 40, 64, 80, 200])),
        lambda: os.truncate(path, chance.choice([1 << 12, LARGEST, LARGEST + 8, 10 << 30])),
        lambda: path.write_bytes(WHOLE),
        lambda: path.write_bytes(WHOLE[: chance.randrange(len(WHOLE))]),
        lambda: path.unlink(),
        lambda: path.with_suffix(".new").write_bytes(WHOLE) and path.with_suffix(".new").replace(path),
        lambda: path.write_bytes(with_number(COMMITTED_AT, chance.choice([0, 72, LARGEST, 2**32 - 1]))),
    ]

    def change() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                chance.choice(changes)()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.timeout(60)
def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    outcomes = {"taken", "InvalidRunFile", "FileNotFoundError"}
    path = tmp_path / f"x{runfile.SUFFIX}"
    path.write_bytes(WHOLE)
    seen: Counter[str] = Counter()
    earlier = None
    with changing(path):
        # On a busy machine thousands of reads may pass between two changes: only all outcomes show that it changed.
        while seen.total() < 4000 or seen.keys() != outcomes:
            try:
                earlier = runfile.read(path, os.getuid(), earlier)
                assert earlier.identity.run == "train"
                seen["taken"] += 1
            except (runfile.InvalidRunFile, FileNotFoundError) as refused:
                seen[type(refused).__name__] += 1
                assert seen.keys() <= outcomes


def hostile_files(folder: Path) -> dict[str, str]:
    """Fill the folder with what is no run file; the names, each with the reason for which it is rejected."""

    def path(name: str) -> Path:
        return folder / f"{name}{runfile.SUFFIX}"

    (folder / "elsewhere").write_bytes(WHOLE)
    path("link").symlink_to(folder / "elsewhere")
    path("zero-link").symlink_to("/dev/zero")
    path("loop").symlink_to(path("loop"))
    path("dangling").symlink_to(folder / "nothing")
    os.mkfifo(path("fifo"))
    path("folder").mkdir()
    path("sparse").write_bytes(WHOLE)
    os.truncate(path("sparse"), 10 << 30)
    path("huge-count").write_bytes(with_number(COMMITTED_AT, 2**32 - 1))
    path("future").write_bytes(with_number(VERSION_AT, 7))
    path("half").write_bytes(WHOLE[: len(WHOLE) // 2])
    path("ünï\ncode\udcff").write_bytes(b"nothing")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path("socket")))
    reasons = {
        "link": "symlink", "zero-link": "symlink", "loop": "symlink", "dangling": "symlink", "fifo": "not_a_file",
        "folder": "not_a_file", "sparse": "too_large", "huge-count": "truncated", "future": "unknown_version",
        "half": "truncated", "code": "truncated", "socket": "unreadable",
    }  # fmt: skip
    if os.getuid() == 0:
        with contextlib.suppress(PermissionError):  # root may lack this right, in a container
            os.mknod(path("zero"), stat.S_IFCHR | 0o600, os.makedev(1, 5))
            reasons["zero"] = "not_a_file"
        path("foreign").write_bytes(WHOLE)
        os.chown(path("foreign"), 12345, 12345)
        reasons["foreign"] = "foreign_owner"
    return reasons


def shows(name: str, value: float, **labels: str) -> Callable[[Scrape], bool]:
    return lambda scrape: scrape.value(name, **labels) == value


def test_hostile_files_beside_a_good_run(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    """One run is served all the time; of each bad file the log tells once."""
    good = start_run_file("good", "rank").set("trainvitals_iterations_total", 1)
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    process = psutil.Process(exporter.process.pid)
    resident, descriptors = process.memory_info().rss, process.num_fds()
    expected = Counter(hostile_files(run_dir).values())
    scrape = exporter.scrape_until(
        lambda s: {labels["reason"]: count for labels, count in s.series(REJECTED)} == dict(expected),
        "each is rejected, for its own reason",
    )
    assert scrape.value("trainvitals_iterations_total", run="good") == 1

    # What is read anew for every scan is not told anew.
    for number in range(2, 8):
        good.set("trainvitals_iterations_total", number)
        (run_dir / f"passing-{number}{runfile.SUFFIX}").write_bytes(WHOLE[:number])
        os.truncate(run_dir / f"sparse{runfile.SUFFIX}", number << 30)
        os.truncate(run_dir / f"half{runfile.SUFFIX}", 60 + number)
        exporter.scrape_until(shows("trainvitals_iterations_total", number, run="good"), "the good run goes on")
        seen = shows(REJECTED, expected["truncated"] + number - 1, reason="truncated")
        exporter.scrape_until(seen, "the new file was seen")
    for name in ("sparse", "half"):
        assert len([line for line in exporter.log if f"/{name}{runfile.SUFFIX}" in line]) <= 1
    assert all(line.startswith("trainvitals exporter: ") for line in exporter.log)

    with changing(run_dir / f"restless{runfile.SUFFIX}"):
        ends = time.monotonic() + 4
        while time.monotonic() < ends:
            assert exporter.scrape().value("trainvitals_iterations_total", run="good") == 7
            time.sleep(0.02)
    good.set("trainvitals_iterations_total", 8)
    scrape = exporter.scrape_until(shows("trainvitals_iterations_total", 8, run="good"), "the good run still goes on")
    assert scrape.value("trainvitals_collector_success", collector="runs") == 1
    assert not any("Traceback" in line or "failed" in line for line in exporter.log)
    assert process.memory_info().rss < 1.5 * resident
    wait_until(lambda: process.num_fds() <= descriptors, "no descriptor stays open")
