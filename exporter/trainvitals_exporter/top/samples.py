"""A scrape as samples, parsed cheaply again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, str]

_NOT_SHOWN: Final = ("_bucket{", "_created{")


class Samples:
    """The samples of a scrape, by metric name."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[tuple[Labels, float]]] = {}

    def add(self, name: str, labels: Labels, value: float) -> None:
        """Add one sample."""
        self._by_name.setdefault(name, []).append((labels, value))

    def of(self, name: str, **labels: str) -> list[tuple[Labels, float]]:
        """Labels and value of each sample of trainvitals_<name> that has at least these labels."""
        found = self._by_name.get("trainvitals_" + name, [])
        return [each for each in found if labels.items() <= each[0].items()] if labels else found

    def value(self, name: str, **labels: str) -> float | None:
        """The value of the first such sample; None without one."""
        found = self.of(name, **labels)
        return found[0][1] if found else None

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of such samples; None without one."""
        found = self.of(name, **labels)
        return sum(value for _, value in found) if found else None

    def label(self, name: str, label: str) -> str:
        """The label of the first such sample; empty without one."""
        found = self.of(name)
        return found[0][0].get(label, "") if found else ""

    def by(self, label: str) -> dict[str, Samples]:
        """The samples that have this label, by its value."""
        groups: dict[str, Samples] = {}
        for name, labels, value in self:
            if label in labels:
                groups.setdefault(labels[label], Samples()).add(name, labels, value)
        return groups

    def __iter__(self) -> Iterator[tuple[str, Labels, float]]:
        for name, samples in self._by_name.items():
            for labels, value in samples:
                yield name, labels, value

    def __bool__(self) -> bool:
        return bool(self._by_name)


class Parser:
    """Parses the scrapes of one exporter, whose series are mostly those of the scrape before.

    A line whose series is known costs one look-up; prometheus_client reads the others.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Labels]] = {}

    def parse(self, text: str) -> Samples:
        """The trainvitals samples of a scrape in the text format; others are left out. Raises ValueError."""
        samples, known = Samples(), {}
        for line in text.split("\n"):
            if not line.startswith("trainvitals_") or any(part in line for part in _NOT_SHOWN):
                continue
            end = line.rfind("}") + 1 or line.find(" ")
            series = line[:end]
            entry = self._known.get(series) or _read(series)
            known[series] = entry
            samples.add(*entry, float(line[end:].split()[0]))
        self._known = known
        return samples


def _read(series: str) -> tuple[str, Labels]:
    for family in text_string_to_metric_families(f"{series} 0\n"):
        for sample in family.samples:
            return sample.name, sample.labels
    raise ValueError(f"no series: {series}")
