"""What the documentation says is there, and generated pages are up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from trainvitals import catalogue, catalogue_pages

from prometheus import alerts_page

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")), REPOSITORY / "grafana" / "README.md",
         REPOSITORY / "examples" / "voice_clone" / "README.md"]  # fmt: skip
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def test_the_metrics_page_is_that_of_the_catalogue() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == catalogue_pages.markdown(), "run: make docs"


def test_the_alerts_page_is_that_of_the_rules() -> None:
    written = (REPOSITORY / "docs" / "alerts.md").read_text(encoding="utf-8")
    assert written == alerts_page.page(), "run: make docs"
    rows = re.findall(r"^\| `(threshold:\S+)` \|.*\| (.*) \|$", written, re.MULTILINE)
    assert [name for name, meaning in rows if not meaning] == [], "settings.yml does not say what these mean"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@each_page
def test_named_metrics_and_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parts = {suffix for metric in catalogue.METRICS if metric.type == "histogram"
             for suffix in (f"{metric.name}_bucket", f"{metric.name}_sum", f"{metric.name}_count")}  # fmt: skip
    for name in re.findall(r"(?<![:\w])trainvitals_[a-z0-9_]+", text):
        known = name in catalogue.BY_NAME or name in parts or name == "trainvitals_exporter"
        assert known or any(metric.startswith(name) for metric in catalogue.BY_NAME), name
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z][a-z-]+)", " ".join(re.findall(r"`[^`]+`|```.+?```", text, re.DOTALL))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_each_test_that_the_coverage_names_exists() -> None:
    page = (REPOSITORY / "docs" / "coverage.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 40
    for file, test in named:
        text = (REPOSITORY / "tests" / "hooks" / file).read_text(encoding="utf-8")
        assert f"\ndef {test}(" in text, f"{file}::{test}"


def test_public_python_api() -> None:
    import trainvitals

    assert set(trainvitals.__all__) == {"__version__", "attach", "detach", "log"}
    for name in ("attach", "detach", "log"):
        assert getattr(trainvitals, name).__doc__


def test_version_is_that_of_the_package() -> None:
    import trainvitals

    pyproject = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    compose = (REPOSITORY / "compose.yaml").read_text(encoding="utf-8")
    assert f'version = "{trainvitals.__version__}"' in pyproject
    assert f"image: trainvitals-exporter:{trainvitals.__version__}\n" in compose
