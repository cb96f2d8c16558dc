"""A run file's labels, and who may add to it in the middle of what."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from trainvitals import runfile
from trainvitals.runfile import Identity, RunFileWriter


@pytest.fixture
def writer(tmp_path: Path) -> RunFileWriter:
    return RunFileWriter(tmp_path, Identity("id", "run", "rank"))


def tags(writer: RunFileWriter) -> list[str]:
    file = runfile.read(writer.path, os.getuid())
    return [dict(sample.labels)["tag"] for sample in file.samples if sample.name == "trainvitals_scalar"]


def test_labels_that_are_too_long_are_one_series_where_they_look_the_same(writer: RunFileWriter) -> None:
    slots = {writer.slot("trainvitals_scalar", tag="x" * 600 + end) for end in ("", "a", "b" * 10_000)}
    assert len(slots) == 1
    assert tags(writer) == ["x" * 512]


def test_labels_that_are_no_text(writer: RunFileWriter) -> None:
    """Half a character, as a tag cut out of bytes has; control characters; a quote."""
    slots = {writer.slot("trainvitals_scalar", tag=tag) for tag in ("\ud800", "\udfff", "?")}
    assert len(slots) == 1
    odd = 'a"b\\c\nd\x00e\u2028\U0001f600'
    writer.slot("trainvitals_scalar", tag=odd)
    assert tags(writer) == ["?", odd]
    assert json.loads(json.dumps(tags(writer))) == ["?", odd]


def test_a_signal_handler_in_the_middle_of_adding_a_series(writer: RunFileWriter) -> None:
    """It must wait for nobody: who it interrupts cannot go on. At every line of the code that adds, it adds, too."""
    tried = refused = 0

    def handler() -> None:
        nonlocal tried, refused
        tried += 1
        try:
            writer.slot("trainvitals_scalar", 2.0, tag=f"handler {tried}")
        except RuntimeError:
            refused += 1

    added: list[str] = []

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != runfile.__file__:
            return None
        if event == "line":
            sys.settrace(None)
            handler()
            sys.settrace(trace)
        return trace

    def add(number: int) -> None:
        sys.settrace(trace)
        try:
            writer.slot("trainvitals_scalar", 1.0, tag=f"script {number}")
        finally:
            sys.settrace(None)
        added.append(f"script {number}")

    threads = [threading.Thread(target=add, args=(number,), daemon=True) for number in range(5)]
    for thread in threads:
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "it waits for itself"
    assert tried > refused > 20
    assert len(tags(writer)) == len(set(tags(writer)))
    assert set(added) <= set(tags(writer))
    for tag in tags(writer):
        assert writer.values[writer.slot("trainvitals_scalar", tag=tag)] == (1.0 if tag.startswith("script") else 2.0)


def test_a_forked_child_lets_go_of_its_parent_s_file(writer: RunFileWriter) -> None:
    slot = writer.slot("trainvitals_scalar", 1.0, tag="mine")
    size = writer.path.stat().st_size
    child = os.fork()
    if child == 0:
        writer.abandon()
        held = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()]
        name = str(writer.path)
        os._exit(0 if name not in held and name not in Path("/proc/self/maps").read_text() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert writer.path.stat().st_size == size
    writer.values[slot] = 5.0
    file = runfile.read(writer.path, os.getuid())
    assert file.value("trainvitals_scalar", tag="mine") == 5.0
