"""Prometheus's Pushgateway: https://github.com/prometheus/pushgateway#api"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from trainvitals import __version__

from trainvitals_exporter import rendering
from trainvitals_exporter.push import page
from trainvitals_exporter.push.client import Push

_HEADERS: Final = {"Content-Type": rendering.TEXT, "User-Agent": f"trainvitals/{__version__}"}


class Pushgateway:
    """Makes pushes of pages; `labels`, job among them, are the group's key. A page takes the place of the one before.

    A push that is not sent is no loss, because the next one tells more.
    """

    def __init__(self, url: str, labels: Mapping[str, str], delete_at_end: bool) -> None:
        others = (_segment(name, value) for name, value in labels.items() if name != "job")
        self.group = f"{url.rstrip('/')}/metrics/{'/'.join([_segment('job', labels['job']), *others])}"
        self._delete_at_end = delete_at_end

    def pushes(self, text: bytes, _series: Mapping[str, float], _time_ms: int) -> list[Push]:
        """What puts this page in the place of the group's last one."""
        return [Push("PUT", self.group, text, _HEADERS, 0)]

    def ending(self, series: Mapping[str, float], _time_ms: int) -> list[Push]:
        """What takes the group away if that is wanted, unless this last page has an alert to raise."""
        if not self._delete_at_end or page.ended_badly(page.run_states(series)):
            return []
        return [Push("DELETE", self.group, b"", _HEADERS, 0)]


def _segment(name: str, value: str) -> str:
    """One label in the path; a slash, or nothing at all, can only be told in base64."""
    if value and "/" not in value:
        return f"{name}/{quote(value, safe='')}"
    return f"{name}@base64/{base64.urlsafe_b64encode(value.encode()).decode() or '='}"
