"""Holds one run file and does what its standard input says, one JSON order a line, until it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trainvitals.runfile import Identity, RunFileWriter

order = json.loads(sys.stdin.readline())
writer = RunFileWriter(Path(order["directory"]), Identity(**order["identity"]), order["rank"])
with Path(__file__).open():  # as a dataset's file would be
    print(writer.path, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        writer.set(order["name"], order["value"], **order["labels"])
        print("done", flush=True)
