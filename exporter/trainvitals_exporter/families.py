"""Metric families built from the catalogue, so that nothing else can be served."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from trainvitals import catalogue

from trainvitals_exporter import rendering


@dataclass
class Family:
    """One metric family, ready to be rendered: each of its `lines` is a series, as the text formats spell it, and its
    value.
    """

    metric: catalogue.Metric
    lines: list[tuple[str, float]] = field(default_factory=list)


class Families:
    """Metric families in the making, by name. Help, type and label names come from the catalogue.

    Names are the catalogue's full names; label values stand in the order of the catalogue. Raises KeyError for a name
    that is not in the catalogue and ValueError for a wrong number of labels.
    """

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def __iter__(self) -> Iterator[Family]:
        return iter(self._families.values())

    def _lines(self, name: str) -> list[tuple[str, float]]:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Family(catalogue.BY_NAME[name])
        return family.lines

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add one sample of a gauge or counter."""
        self._lines(name).append((series(name, labels), float(value)))

    def add_histogram(self, name: str, buckets: Mapping[float, float], total: float, *labels: str) -> None:
        """Add one histogram. `buckets` maps each upper bound to its own count; `total` is the sum of the values."""
        lines = self._lines(name)
        count = 0.0
        for bound in sorted({*buckets, float("inf")}):
            count += buckets.get(bound, 0.0)
            lines.append((series(f"{name}_bucket", labels, rendering.number(bound)), count))
        lines += [(series(f"{name}_count", labels), count), (series(f"{name}_sum", labels), float(total))]

    def add_lines(self, lines: Iterable[tuple[str, str, float]]) -> None:
        """Add samples whose series were spelled before: name, series, value."""
        for name, spelled, value in lines:
            self._lines(name).append((spelled, value))


def select(families: Iterable[Family], names: Collection[str]) -> Iterator[Family]:
    """Of each family the samples with these names; all of them where a name is the family's own, in either format."""
    for family in families:
        if family.metric.name in names or family.metric.name.removesuffix("_total") in names:
            yield family
        elif lines := [line for line in family.lines if line[0].partition("{")[0] in names]:
            yield Family(family.metric, lines)


@lru_cache(maxsize=16384)
def series(name: str, labels: tuple[str, ...], le: str | None = None) -> str:
    """A series as the text formats spell it; `name` may be that of a histogram's part, `le` a bucket's bound."""
    metric = catalogue.BY_NAME.get(name) or catalogue.BY_NAME[name.rpartition("_")[0]]
    if len(labels) != len(metric.all_labels):
        raise ValueError(f"{metric.name} has the labels {metric.all_labels}, got {labels}")
    pairs = dict(zip(metric.all_labels, labels, strict=True))
    return name + rendering.label_set(pairs if le is None else {**pairs, "le": le})
