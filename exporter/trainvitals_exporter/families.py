"""Metric families built from the catalogue, so that nothing else can be served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from trainvitals import catalogue

from trainvitals_exporter import rendering

_FAMILY = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}


class Families:
    """Metric families in the making, by name. Help, type and label names come from the catalogue.

    Names are the catalogue's full names; label values stand in the order of the catalogue. Raises KeyError for a name
    that is not in the catalogue and ValueError for a wrong number of labels.
    """

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}  # Metric, with the add_metric() that each of its subclasses has its own way

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add one sample of a gauge or counter."""
        family = self._families.get(name)
        if family is None:
            metric = catalogue.BY_NAME[name]
            family = _FAMILY[metric.type](name, metric.help, labels=metric.all_labels)
            self._families[name] = family
        family.add_metric(self._checked(name, labels), value)

    def add_histogram(self, name: str, buckets: Mapping[float, float], total: float, *labels: str) -> None:
        """Add one histogram. `buckets` maps each upper bound to its own count; `total` is the sum of the values."""
        family = self._families.get(name)
        if family is None:
            metric = catalogue.BY_NAME[name]
            family = HistogramMetricFamily(name, metric.help, labels=metric.all_labels)
            self._families[name] = family
        count = 0.0
        cumulated: list[tuple[str, float]] = []
        for bound in sorted({*buckets, float("inf")}):
            count += buckets.get(bound, 0.0)
            cumulated.append((rendering.number(bound), count))
        family.add_metric(self._checked(name, labels), cumulated, total)

    def _checked(self, name: str, labels: tuple[str, ...]) -> tuple[str, ...]:
        expected = catalogue.BY_NAME[name].all_labels
        if len(labels) != len(expected):
            raise ValueError(f"{name} has the labels {expected}, got {labels}")
        return labels
