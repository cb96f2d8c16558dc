"""Where to look when a loss or a gradient norm is not normal: the parameters and the samples, in the run's log file.

The log file lies next to the run file, has one JSON object a line, and exists once there was an anomaly.
"""

from __future__ import annotations

import datetime
import functools
import heapq
import itertools
import json
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from trainvitals.optimizer_vitals import Anomaly, Batch
from trainvitals.rundir import LOG_SUFFIX
from trainvitals.runfile import RunFileWriter
from trainvitals.session import Session
from trainvitals.vitals import Vitals

_INFO: Final = "trainvitals_anomaly_info"
# Of a NaN that stays, the first steps tell where it came from.
_FIRST_SHOWN: Final = 2
_SHOWN: Final = 8
# Together, these keep the log file under a mebibyte.
_MAX_RECORDED: Final = 100
_MAX_LINE_BYTES: Final = 10_000
# Where every step is anomalous, the first few tell what there is to tell.
_AT_FIRST: Final = 4
_LONGEST_GAP_SECONDS: Final = 3600.0
_LOGGED_PARAMETERS: Final = 8
_LOGGED_SAMPLES: Final = 512
_LABEL_PARAMETERS: Final = 3
_LABEL_SAMPLES: Final = 16
_LABEL_LENGTH: Final = 160
_NAME_LENGTH: Final = 64


@dataclass
class _Storm:
    """The anomalies of one kind of one optimizer: how many were recorded, and from when on the next one is."""

    recorded: int = 0
    next_at: float = -math.inf
    left_out: int = 0


class Recorder:
    """Records anomalies, with what can be known about them. At most 100, ever less often while they go on.

    `name` gives the names of parameters. `read` begins to read a tensor of norms from a device, and calls what it is
    given with the floats once they are there, or with None.
    """

    def __init__(
        self,
        session: Session,
        vitals: Vitals,
        name: Callable[[Sequence[Any]], list[str]],
        read: Callable[[Any, Callable[[list[float] | None], None]], None],
    ) -> None:
        self._session = session
        self._vitals = vitals
        self._name = session.guarded("parameter_names", lambda now, parameters: self._timed(name, parameters))
        self._read = read
        self._storms: dict[tuple[str, str, str], _Storm] = {}
        self._recorded = 0
        self._shown: list[dict[str, str]] = []
        self._log = session.guarded("anomaly_log", lambda now, writer, entry: _append(writer, entry))
        self._ask = session.guarded("anomalies", lambda now, evidence: evidence())
        self._guarded_finish = session.guarded("anomalies", lambda now, *found: self._finish(*found))
        vitals.optimizers.on_anomaly.append(session.guarded("anomalies", self._seen))

    def _seen(self, now: float, anomaly: Anomaly) -> None:
        storm = self._storms.setdefault((anomaly.optimizer, anomaly.name, anomaly.kind), _Storm())
        if now < storm.next_at or self._recorded >= _MAX_RECORDED:
            storm.left_out += 1
            return
        storm.recorded += 1
        if storm.recorded >= _AT_FIRST:
            storm.next_at = now + min(2.0 ** (storm.recorded - _AT_FIRST), _LONGEST_GAP_SECONDS)
        self._recorded += 1
        entry = self._entry(anomaly, storm.left_out)
        storm.left_out = 0
        if self._recorded == _MAX_RECORDED:
            entry["note"] = f"the last one: of this process, {_MAX_RECORDED} anomalies are logged"
        evidence = self._ask(anomaly.evidence) if anomaly.evidence is not None else None
        if evidence is None:
            self._record(anomaly, entry)
            return
        finish = functools.partial(self._guarded_finish, anomaly, entry, evidence.parameters)
        if isinstance(evidence.norms, list):
            finish(evidence.norms)
        else:
            self._read(evidence.norms, finish)

    def _entry(self, anomaly: Anomaly, left_out: int) -> dict[str, Any]:
        writer = self._session.writer
        moment = anomaly.moment
        batches = self._batches_of(anomaly)
        share = _LOGGED_SAMPLES // max(1, len(batches))
        return {
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
            "run": writer.identity.run if writer is not None else "",
            "rank": writer.rank if writer is not None else -1,
            "optimizer": anomaly.optimizer,
            "of": anomaly.name,
            "kind": anomaly.kind,
            "value": _number(anomaly.value),
            "usual": _number(anomaly.usual),
            "iteration": moment.iteration,
            "epoch": moment.epoch,
            "batches": [{"number": batch.number, "samples": _samples(batch, share)} for batch in batches],
            "left_out_before": left_out,
        }

    def _batches_of(self, anomaly: Anomaly) -> list[Batch]:
        """What the step was made of. A loss is of the newest batch alone, gradients add up since the step before."""
        moment = anomaly.moment
        if moment.batch is None:
            return []
        if anomaly.name == "loss":
            return [moment.batch]
        first = moment.iteration - self._accumulated(anomaly.optimizer)
        return [batch for number, batch in self._vitals.batches if first < number <= moment.iteration] or [moment.batch]

    def _accumulated(self, optimizer: str) -> int:
        writer = self._session.writer
        if writer is None:
            return 1
        slot = writer.slot("trainvitals_gradient_accumulation_iterations", 1.0, optimizer=optimizer)
        return int(writer.values[slot])

    def _finish(
        self, anomaly: Anomaly, entry: dict[str, Any], parameters: Sequence[Any], norms: list[float] | None
    ) -> None:
        if norms is None:
            self._record(anomaly, entry)
            return
        norms = _scaled_to(anomaly.value, norms)
        worst = _worst(norms, anomaly.kind)
        names = self._name([parameters[place] for place in worst]) or ["?"] * len(worst)
        entry["parameters"] = [
            {"name": name, "norm": _number(norms[place])} for name, place in zip(names, worst, strict=True)
        ]
        entry["parameters_not_finite"] = sum(not math.isfinite(norm) for norm in norms)
        entry["parameters_in_all"] = len(norms)
        self._record(anomaly, entry)

    def _timed(self, name: Callable[[Sequence[Any]], list[str]], parameters: Sequence[Any]) -> list[str]:
        """Names, the search for which is no reason to measure less: it is over, and now it is that steps matter."""
        start = perf_counter()
        try:
            return name(parameters)
        finally:
            self._session.seconds_once += perf_counter() - start

    def _record(self, anomaly: Anomaly, entry: dict[str, Any]) -> None:
        writer = self._session.writer
        if writer is None:
            return
        self._log(writer, entry)
        samples = itertools.islice(_all_samples(entry), _LABEL_SAMPLES)
        labels = {
            "optimizer": anomaly.optimizer,
            "kind": anomaly.kind,
            "iteration": str(anomaly.moment.iteration),
            "parameters": _names_for_label(entry),
            "samples": _joined(map(str, samples)),
        }
        if labels in self._shown:
            return
        writer.set(_INFO, 1.0, **labels)
        self._shown.append(labels)
        if len(self._shown) > _SHOWN:
            writer.retire(_INFO, **self._shown.pop(_FIRST_SHOWN))


def _scaled_to(total: float, norms: list[float]) -> list[float]:
    """The norms whose 2-norm is `total`. Clipping by norm may have made all of them smaller since it was measured."""
    now = math.hypot(*norms)
    return [norm / now * total for norm in norms] if 0 < now < math.inf and math.isfinite(total) else norms


def _worst(norms: Sequence[float], kind: str) -> list[int]:
    """The places of the norms to look at: those that are not finite, then the largest; of a vanishing, the smallest."""
    if kind == "vanishing":
        return heapq.nsmallest(_LOGGED_PARAMETERS, range(len(norms)), key=norms.__getitem__)
    sizes = [norm if math.isfinite(norm) else math.inf for norm in norms]
    return heapq.nlargest(_LOGGED_PARAMETERS, range(len(norms)), key=sizes.__getitem__)


def _names_for_label(entry: dict[str, Any]) -> str:
    parameters = entry.get("parameters", [])
    if len(parameters) > _LABEL_PARAMETERS and entry["parameters_not_finite"] == entry["parameters_in_all"]:
        return f"all {entry['parameters_in_all']}"
    names = [parameter["name"] for parameter in parameters[:_LABEL_PARAMETERS]]
    return _joined(name if len(name) <= _NAME_LENGTH else "…" + name[1 - _NAME_LENGTH :] for name in names)


def _all_samples(entry: dict[str, Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(batch["samples"] or () for batch in entry["batches"])


def _joined(words: Iterable[str]) -> str:
    """Words with commas between, as many as there is room for in a label."""
    text = ""
    for word in words:
        longer = f"{text}, {word}" if text else word
        if len(longer) > _LABEL_LENGTH:
            return f"{text}, …" if text else f"{word[:_LABEL_LENGTH]}…"
        text = longer
    return text


def _samples(batch: Batch, at_most: int) -> list[Any] | None:
    """The dataset's indices in a batch, as JSON can have them."""
    if batch.indices is None:
        return None
    indices: Any = batch.indices
    if hasattr(indices, "tolist"):  # a tensor or an array
        return list(indices[:at_most].tolist()) if not getattr(indices, "is_cuda", False) else None
    return [_plain(index) for index in itertools.islice(indices, at_most)]


def _plain(index: Any) -> Any:
    """An index as JSON can have it. Nothing is asked of classes that are not known: the answer could take long."""
    if isinstance(index, (int, str)):
        return index[:_NAME_LENGTH] if isinstance(index, str) else int(index)
    if isinstance(index, (tuple, list)):
        return [_plain(each) for each in index[:_SHOWN]]
    if hasattr(index, "__index__") and not getattr(index, "is_cuda", False):
        return operator.index(index)
    return type(index).__name__


def _number(value: float | None) -> float | str | None:
    """A number as JSON can have it: the others as strings that float() understands."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _append(writer: RunFileWriter, entry: dict[str, Any]) -> None:
    """Add a line to the log file, which others cannot read. Raises OSError where that cannot be done.

    The file is closed again: it is needed rarely, and would be open in forked children, too.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(writer.path.with_suffix(LOG_SUFFIX), flags, 0o600)
    try:
        os.write(fd, _line(entry))
    finally:
        os.close(fd)


def _line(entry: dict[str, Any]) -> bytes:
    while True:
        line = json.dumps(entry).encode() + b"\n"
        longest = max((batch["samples"] or () for batch in entry["batches"]), key=len, default=())
        if len(line) <= _MAX_LINE_BYTES or not longest:
            return line
        for batch in entry["batches"]:
            batch["samples"] = batch["samples"] and batch["samples"][: len(longest) // 2]
