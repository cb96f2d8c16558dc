"""Prometheus remote write 1.0: https://prometheus.io/docs/specs/prw/remote_write_spec/

The format needs four messages of protobuf's simplest kind. Written by hand they take less code than the options to
install the library, which is bound to its own version in the user's training environment.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from trainvitals import __version__

from trainvitals_exporter.push import page
from trainvitals_exporter.push.client import Push

# What Prometheus itself sends at once: no receiver takes less.
SAMPLES_OF_A_PUSH: Final = 2000
STALE: Final = struct.pack("<Q", 0x7FF0000000000002)  # the NaN that says: this series ends here
_HEADERS: Final = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "User-Agent": f"trainvitals/{__version__}",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}


class RemoteWrite:
    """Makes pushes of pages. `labels` are added to every series; `compress` is Snappy's block format."""

    def __init__(self, url: str, labels: Mapping[str, str], compress: Callable[[bytes], bytes]) -> None:
        self._url = url
        self._labels = labels
        self._compress = compress
        self._up = self._encoded({page.NAME: "up"})
        self._series: dict[str, bytes] = {}

    def pushes(self, _text: bytes, series: Mapping[str, float], time_ms: int) -> list[Push]:
        """What tells of this page, and of the series that are no longer on it."""
        encoded = {each: self._series.get(each) or self._encoded(page.labels(each)) for each in series}
        samples = [(self._up, struct.pack("<d", 1))]
        samples += [(labels, struct.pack("<d", series[each])) for each, labels in encoded.items()]
        samples += [(labels, STALE) for each, labels in self._series.items() if each not in encoded]
        self._series = encoded
        return self._requests(samples, time_ms)

    def ending(self, series: Mapping[str, float], time_ms: int) -> list[Push]:
        """What ends all series of the last page at once. That `up` is 0 first tells this end from one without a word.

        The last signs of a run that ended badly stay for as long as the database looks back, for an alert to see them.
        """
        bad = page.ended_badly(page.run_states(series))
        stale = [
            (labels, STALE)
            for each, labels in self._series.items()
            if not bad or page.labels(each).get("run") not in bad
        ]
        return [
            *self._requests([(self._up, struct.pack("<d", 0)), *stale], time_ms),
            *self._requests([(self._up, STALE)], time_ms + 1),
        ]

    def _encoded(self, labels: Mapping[str, str]) -> bytes:
        """The labels of a TimeSeries: sorted, and without empty ones, which are no labels to Prometheus."""
        pairs = sorted({**labels, **self._labels}.items())
        return b"".join(
            _field(1, _field(1, name.encode()) + _field(2, value.encode())) for name, value in pairs if value
        )

    def _requests(self, samples: list[tuple[bytes, bytes]], time_ms: int) -> list[Push]:
        parts = (samples[at : at + SAMPLES_OF_A_PUSH] for at in range(0, len(samples), SAMPLES_OF_A_PUSH))
        return [
            Push("POST", self._url, self._compress(_write_request(part, time_ms)), _HEADERS, len(part))
            for part in parts
        ]


def _write_request(samples: Iterable[tuple[bytes, bytes]], time_ms: int) -> bytes:
    """WriteRequest { repeated TimeSeries { repeated Label = 1; repeated Sample { double = 1; int64 = 2 } = 2 } = 1 }"""
    time = b"\x10" + _varint(time_ms)
    return b"".join(_field(1, labels + _field(2, b"\x09" + value + time)) for labels, value in samples)


def _field(number: int, content: bytes) -> bytes:
    """A field that has a length: a text or a message."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
