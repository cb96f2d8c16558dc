"""Does the exporter answer, is it this version, and do its collectors work?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from trainvitals import __version__

from trainvitals_exporter.doctor import clocks, gpu
from trainvitals_exporter.doctor.findings import Finding, Where, ok, problem, warning
from trainvitals_exporter.web import Answer, Unanswered, ask

_NAME: Final = "exporter"


def check(where: Where) -> Iterator[Finding]:
    """The exporter at its address."""
    url = where.exporter
    try:
        answer = ask(f"{url}/metrics")
    except Unanswered as error:
        yield _unanswered(url, error)
        return
    if answer.status in (401, 403):
        yield problem(
            _NAME, f"{url} wants a user and a password, which doctor does not send (status {answer.status})",
            "give Prometheus the user (basic_auth in its scrape configuration); look at the page with curl --user NAME",
        )  # fmt: skip
        return
    values = _values(answer) if answer.good else {}
    builds = values.get("trainvitals_exporter_build_info")
    if not builds:
        server = answer.headers.get("Server", "another program")
        yield problem(
            _NAME, f"what answers at {url} is no trainvitals exporter (status {answer.status}, {server})",
            "stop it, or start the exporter elsewhere (--listen) and name that: --exporter URL",
        )  # fmt: skip
        return
    yield _version(url, builds[0][0].get("version", ""))
    yield _collectors(values, no_matter={"nvidia"} if _here(url) and not gpu.cards() else set())
    yield clocks.compare("the exporter's machine", answer.ahead)


def _unanswered(url: str, error: Unanswered) -> Finding:
    if error.tls:
        remedy = "ask by the name that its certificate has; SSL_CERT_FILE=FILE names an authority of your own"
        return problem(_NAME, f"{url}: {error}", remedy)
    return problem(
        _NAME, f"nothing answers at {url}: {error}",
        "start it with `trainvitals exporter`, or name where it is: --exporter URL (https:// if it has TLS)",
    )  # fmt: skip


def _values(answer: Answer) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The samples of our metrics by name; {} where that is no page of metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(answer.body.decode()):
            for sample in family.samples:
                if sample.name.startswith(("trainvitals_exporter_", "trainvitals_collector_")):
                    found.setdefault(sample.name, []).append((sample.labels, sample.value))
    except (ValueError, KeyError, IndexError):
        return {}
    return found


def _version(url: str, version: str) -> Finding:
    if version == __version__:
        return ok(_NAME, f"trainvitals exporter {version} answers at {url}")
    return warning(
        _NAME, f"the exporter at {url} is {version}, this installation is {__version__}",
        "update the older one: pip install --upgrade trainvitals, and restart the exporter",
    )  # fmt: skip


def _here(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _collectors(values: dict[str, list[tuple[dict[str, str], float]]], no_matter: set[str]) -> Finding:
    """`no_matter`: those that have nothing to collect."""
    success = [
        (labels.get("collector", ""), value)
        for labels, value in values.get("trainvitals_collector_success", [])
        if labels.get("collector") not in no_matter
    ]
    failing = sorted(name for name, value in success if value != 1)
    if failing:
        return warning(
            "collectors", f"failing: {', '.join(failing)}",
            "its log says why (docs/runbooks/TrainvitalsCollectorFailing.md); --no-collectors NAME leaves one out",
        )  # fmt: skip
    return ok("collectors", f"all {len(success)} work")
