"""Does Prometheus scrape the exporter, judge by our rules, and tell an Alertmanager?"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import trainvitals_exporter
from trainvitals_exporter.doctor import clocks
from trainvitals_exporter.doctor.findings import Finding, Where, not_checked, ok, problem, warning
from trainvitals_exporter.web import Answer, Unanswered, ask, field, items

_PACKAGE: Final = Path(trainvitals_exporter.__file__).resolve().parent
# In a wheel, and in a checkout.
_RULES: Final = (_PACKAGE / "stack" / "files" / "prometheus" / "rules", _PACKAGE.parents[1] / "prometheus" / "rules")
_JOB: Final = "trainvitals"
_LONGEST_INTERVAL_SECONDS: Final = 15.0
_COUNT_THRESHOLDS: Final = 'count({__name__=~"threshold:trainvitals_.+"})'
_LOAD: Final = "load prometheus/rules/*.yml of this version in prometheus.yml (rule_files), and reload Prometheus"
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def check(where: Where) -> Iterator[Finding]:
    """Prometheus at its address."""
    url = where.prometheus
    try:
        about = ask(f"{url}/api/v1/status/buildinfo")
        version = field(about.json(), "data", "version")
        if not about.good or version is None:
            yield _no_prometheus(url, about)
            return
        yield ok("prometheus", f"Prometheus {version} answers at {url}")
        yield from _scraped(url)
        yield from _rules(url)
        yield from _alertmanagers(url)
        yield _clock(url)
    except Unanswered as error:
        yield problem(
            "prometheus", f"nothing answers at {url}: {error}",
            "start it (`trainvitals stack up`, or `docker compose up`), or name where it is: --prometheus URL",
        )  # fmt: skip


def _no_prometheus(url: str, answer: Answer) -> Finding:
    if answer.status in (401, 403):
        what = f"{url} wants a user and a password, which doctor does not send"
        return problem("prometheus", what, "ask where it wants none, such as on its own machine")
    what = f"what answers at {url} is no Prometheus (status {answer.status})"
    return problem("prometheus", what, "name where it is: --prometheus URL")


def _scraped(url: str) -> Iterator[Finding]:
    targets = items(ask(f"{url}/api/v1/targets", {"state": "active"}).json(), "data", "activeTargets")
    ours = [target for target in targets if field(target, "labels", "job") == _JOB]
    if not ours:
        yield _no_target(targets)
        return
    down = [target for target in ours if target.get("health") == "down"]
    for target in down:
        yield problem(
            "scraped", f"{target.get('scrapeUrl')} is down: {target.get('lastError')}",
            "start the exporter there, let it listen where Prometheus can reach it (--listen), or correct the target",
        )  # fmt: skip
    new = [target for target in ours if target.get("health") not in ("up", "down")]
    if new:
        yield not_checked("scraped", f"{len(new)} targets were not scraped yet; look again in a minute")
    if not down and not new:
        yield ok("scraped", f"{len(ours)} exporter{'' if len(ours) == 1 else 's'} up in job {_JOB}")
    slowest = max((_seconds(str(target.get("scrapeInterval", ""))) for target in ours), default=0.0)
    if slowest > _LONGEST_INTERVAL_SECONDS:
        remedy = "set scrape_interval of the job to 15s or less, 5s as shipped: the rules need it"
        yield warning("scraped", f"scraped every {slowest:.0f} s only", remedy)


def _no_target(targets: list[Any]) -> Finding:
    remedy = f"add the exporter to scrape_configs, with job_name: {_JOB} (prometheus/prometheus.yml shows how)"
    other = [target for target in targets if ":10288/" in str(field(target, "scrapeUrl"))]
    if other:
        what = f"job {field(other[0], 'labels', 'job')} scrapes the exporter: the alerts know the job as {_JOB}"
        return problem("scraped", what, f"call the job {_JOB}")
    return problem("scraped", f"Prometheus has no target with job {_JOB}", remedy)


def _rules(url: str) -> Iterator[Finding]:
    everything = items(ask(f"{url}/api/v1/rules").json(), "data", "groups")
    groups = [group for group in everything if str(field(group, "name")).startswith("trainvitals-")]
    loaded = Counter((str(field(g, "name")), str(field(rule, "name"))) for g in groups for rule in items(g, "rules"))
    if not groups:
        yield problem("rules", "none of trainvitals' rules are loaded", _LOAD)
        return
    sick = [rule for group in groups for rule in items(group, "rules") if field(rule, "health") == "err"]
    if sick:
        more = f" and {len(sick) - 1} more" if len(sick) > 1 else ""
        yield problem("rules", f"{field(sick[0], 'name')}{more} fail: {field(sick[0], 'lastError')}", _LOAD)
    packaged = _packaged()
    if packaged is None:
        yield not_checked("rules", f"{len(groups)} groups are loaded; this installation has none to compare them with")
    else:
        yield _compare(loaded, packaged)
    yield _thresholds(url, packaged)


def _compare(loaded: Counter[tuple[str, str]], packaged: Counter[tuple[str, str]]) -> Finding:
    """By names, for expressions and thresholds may be the user's own."""
    missing_groups = sorted({group for group, _ in packaged} - {group for group, _ in loaded})
    if missing_groups:
        return problem("rules", f"not loaded: {', '.join(missing_groups)}", _LOAD)
    settings = {key for key in packaged if key[1].startswith(("threshold:", "setting:"))}
    missing = sorted({name for key in packaged - loaded if key not in settings for name in key[1:]})
    strange = sorted({name for key in loaded - packaged if key not in settings for name in key[1:]})
    if missing or strange:
        what = "; ".join(
            f"{word}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for word, names in (("missing", missing), ("not of this version", strange)) if names
        )  # fmt: skip
        return warning("rules", f"the rules are not those of this version ({what})", _LOAD)
    return ok("rules", f"all {sum(loaded.values())} of this version are loaded")


def _thresholds(url: str, packaged: Counter[tuple[str, str]] | None) -> Finding:
    found = items(ask(f"{url}/api/v1/query", {"query": _COUNT_THRESHOLDS}).json(), "data", "result")
    count = int(float(field(found[0], "value", 1) or 0)) if found else 0
    wanted = sum(1 for _, name in packaged or {} if name.startswith("threshold:"))
    if count == 0 or count < wanted:
        return problem(
            "thresholds", f"{count} of {wanted or 'the'} thresholds have a value: alerts without theirs never fire",
            "compare rules/settings.yml with that of this version and reload; just started, Prometheus needs a minute",
        )  # fmt: skip
    return ok("thresholds", f"{count} have a value")


def _packaged() -> Counter[tuple[str, str]] | None:
    """Group and name of each rule of this version."""
    import yaml

    folder = next((path for path in _RULES if path.is_dir()), None)
    if folder is None:
        return None
    found: Counter[tuple[str, str]] = Counter()
    for path in sorted(folder.glob("*.yml")):
        # Some files are large, and only names are wanted; libyaml reads them in a tenth of the time.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        for group in yaml.load(path.read_bytes(), loader)["groups"]:  # noqa: S506  # both are safe loaders
            found.update((group["name"], rule.get("alert") or rule["record"]) for rule in group["rules"])
    return found


def _alertmanagers(url: str) -> Iterator[Finding]:
    active = items(ask(f"{url}/api/v1/alertmanagers").json(), "data", "activeAlertmanagers")
    if not active:
        yield problem(
            "prometheus tells", "Prometheus knows no Alertmanager: alerts fire and nobody is told",
            "name one under alerting.alertmanagers in prometheus.yml (targets/alertmanager.yml as shipped)",
        )  # fmt: skip
        return
    for each in active:
        address = str(field(each, "url")).removesuffix("/api/v2/alerts")
        try:
            good = ask(f"{address}/-/healthy").good
            reason = "an error"
        except Unanswered as error:
            if error.unknown:  # a name of Prometheus's own network, such as compose's
                yield not_checked("prometheus tells", f"Prometheus sends alerts to {address}, a name not known here")
                continue
            good, reason = False, str(error)
        if good:
            yield ok("prometheus tells", f"Alertmanager at {address}")
        else:
            what = f"Prometheus sends alerts to {address}, where there is {reason}"
            yield problem("prometheus tells", what, "start Alertmanager there, or correct targets/alertmanager.yml")


def _clock(url: str) -> Finding:
    before = time.time()
    told = field(ask(f"{url}/api/v1/query", {"query": "time()"}).json(), "data", "result", 1)
    try:
        return clocks.compare("Prometheus's machine", float(told) - (before + time.time()) / 2)
    except (TypeError, ValueError):
        return clocks.compare("Prometheus's machine", None)


def _seconds(duration: str) -> float:
    """A duration as Prometheus writes it, such as 1m30s."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhd])", duration))
