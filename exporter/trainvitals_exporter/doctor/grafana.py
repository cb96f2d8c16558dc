"""Is Grafana there? It need not be: alerts do without."""

from __future__ import annotations

from collections.abc import Iterator

from trainvitals_exporter.doctor.findings import Finding, Where, not_checked, ok, problem
from trainvitals_exporter.web import Unanswered, ask, field


def check(where: Where) -> Iterator[Finding]:
    """Grafana at its address; that nothing is there is a fault only where the user named it."""
    url = where.grafana
    try:
        answer = ask(f"{url}/api/health")
    except Unanswered as error:
        if "grafana" in where.asked_for:
            yield problem(
                "grafana", f"nothing answers at {url}: {error}", "start it, or name where it is: --grafana URL"
            )
        else:
            yield not_checked("grafana", f"nothing answers at {url}; name where it is with --grafana URL")
        return
    health = answer.json()
    if field(health, "database") is None:
        what = f"what answers at {url} is no Grafana (status {answer.status})"
        yield problem("grafana", what, "name where it is: --grafana URL")
    elif field(health, "database") != "ok":
        yield problem("grafana", f"Grafana's database: {field(health, 'database')}", "see Grafana's log")
    else:
        yield ok("grafana", f"Grafana {field(health, 'version') or ''} answers at {url}".replace("  ", " "))
