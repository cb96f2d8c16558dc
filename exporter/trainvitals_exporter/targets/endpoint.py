"""Serves the list over HTTP, as Prometheus's http_sd_config asks for it.

https://prometheus.io/docs/prometheus/latest/http_sd/
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Final

from trainvitals_exporter.endpoint.connection import Requests
from trainvitals_exporter.families import Family
from trainvitals_exporter.targets.sources import Targets, Unavailable

PATH: Final = "/targets"
_TYPE: Final = "application/json"

_log = logging.getLogger(__name__)


class TargetSource:
    """What the exporter's server serves here: the list in place of metrics."""

    collectors: Sequence[str] = ()

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._trouble = ""

    def ready(self) -> bool:
        """There is nothing to wait for."""
        return True

    def render(
        self, content_type: str, names: frozenset[str], collectors: frozenset[str], more: Iterable[Family]
    ) -> bytes:
        """The list as of now. Raises Unavailable; the log tells of a change, and only of that."""
        try:
            body, trouble = self._targets.render(), None
        except Unavailable as error:
            body, trouble = b"", error
        if str(trouble or "") != self._trouble:
            self._trouble = str(trouble or "")
            _log.warning("%s", f"no list: {trouble}" if trouble else "the list can be told again")
        if trouble:
            raise trouble
        return body


class TargetRequests(Requests):
    """One client's requests for the list."""

    def answer_page(self, path: str, query: dict[str, list[str]]) -> None:
        """Answer with the list; where there is none, with an error: Prometheus then keeps the targets it has."""
        if path != PATH:
            self.answer_line(HTTPStatus.NOT_FOUND, f"not found; the list is at {PATH}")
            return
        try:
            with self.server.scrape_slot() as is_free:
                body = self.server.render(_TYPE, frozenset(), frozenset()) if is_free else b""
        except Unavailable as error:
            self.answer_line(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
            return
        if is_free:
            self.answer(HTTPStatus.OK, _TYPE, body)
        else:
            self.answer_busy()
