"""Would Alertmanager tell anybody?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from trainvitals_exporter.doctor.findings import Finding, Where, ok, problem, warning
from trainvitals_exporter.web import Unanswered, ask, field, items

_NAME: Final = "alertmanager"
_REMEDY: Final = "choose a channel (docs/alerting.md), and try it with `trainvitals stack test-alert`"


def check(where: Where) -> Iterator[Finding]:
    """Alertmanager at its address."""
    url = where.alertmanager
    try:
        answer = ask(f"{url}/api/v2/status")
    except Unanswered as error:
        yield problem(
            _NAME, f"nothing answers at {url}: {error}",
            "start it (`trainvitals stack up`, or `docker compose up`), or name where it is: --alertmanager URL",
        )  # fmt: skip
        return
    version, text = field(answer.json(), "versionInfo", "version"), field(answer.json(), "config", "original")
    if not answer.good or version is None or not isinstance(text, str):
        what = f"what answers at {url} is no Alertmanager (status {answer.status})"
        yield problem(_NAME, what, "name where it is: --alertmanager URL")
        return
    yield ok(_NAME, f"Alertmanager {version} answers at {url}")
    configuration = _read(text)
    telling = [field(receiver, "name") for receiver in items(configuration, "receivers") if _has_channel(receiver)]
    if not telling:
        yield warning("told", "no receiver of Alertmanager has a channel: nobody is told of an alert", _REMEDY)
    elif not _reached(field(configuration, "route"), set(telling)):
        yield warning("told", f"no route leads to {', '.join(map(str, telling))}: nobody is told of an alert", _REMEDY)
    else:
        yield ok("told", f"alerts go to {', '.join(map(str, telling))}")


def _read(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _has_channel(receiver: Any) -> bool:
    return isinstance(receiver, dict) and any(key.endswith("_configs") and value for key, value in receiver.items())


def _reached(route: Any, telling: set[Any]) -> bool:
    """Whether that route, or one below it, leads to one of them."""
    return field(route, "receiver") in telling or any(_reached(each, telling) for each in items(route, "routes"))
