"""What the documentation says is there, and generated pages are up to date."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from trainvitals import catalogue, catalogue_pages
from trainvitals_exporter.configuration import OPTIONS, VARIABLE_PREFIX

from prometheus import alerts_page
from tests.doc_pages import LANGUAGES, PAGES, REPOSITORY, blocks

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
    for target, heading in links(page):
        assert target.exists(), target
        assert not heading or heading in anchors(target), f"{target}#{heading}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set[Path](), {REPOSITORY / "README.md"}
    while new:
        reached |= new
        new = {target for page in new for target, _ in links(page) if target in PAGES} - reached
    assert set(PAGES) - reached == set()


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Where the page's links within the repository lead: a file, and a heading's anchor or ""."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]+`(?!\])", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^]]+\]: (\S+)$", text, re.MULTILINE):
        if not target.startswith(("http://", "https://", "mailto:")):
            path, _, heading = target.partition("#")
            yield ((page.parent / path).resolve() if path else page), heading


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of the page."""
    found = list[str]()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return {name if number == 0 else f"{name}-{number}" for name in found for number in range(found.count(name))}


@each_page
def test_blocks_say_what_they_hold(page: Path) -> None:
    assert [block.where for block in blocks(page) if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("english", [page for page in PAGES if page.with_suffix(".zh.md").exists()], ids=str)
def test_the_chinese_page_has_the_commands_of_the_english_one(english: Path) -> None:
    def told(page: Path) -> list[tuple[str, str, tuple[str, ...]]]:
        return [(block.language, block.text, block.comments) for block in blocks(page)]

    def targets(page: Path) -> set[Path]:
        found = {target for target, _ in links(page)}
        in_english = {target.with_name(target.name.replace(".zh.md", ".md")) for target in found}
        return in_english - {english}

    chinese = english.with_suffix(".zh.md")
    assert told(chinese) == told(english)
    assert targets(chinese) == targets(english)


def test_there_are_chinese_pages() -> None:
    assert {page.name for page in PAGES if page.name.endswith(".zh.md")} == {"README.zh.md", "quick-start.zh.md"}


@pytest.mark.parametrize("page", ["tuning.md", "gpt-sovits.md"])
def test_panels_that_a_guide_names_exist(page: str) -> None:
    titles = set[str]()
    for file in (REPOSITORY / "grafana" / "dashboards").glob("*.json"):
        titles |= {
            title.split(" \u00b7 ")[0] for title in re.findall(r'"title": "([^"]+)"', file.read_text(encoding="utf-8"))
        }
    rows = [
        line for line in (REPOSITORY / "docs" / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]
    named = {name for line in rows for name in re.findall(r"(?<!\*)\*([^*|]+)\*(?!\*)", line)}
    if page == "gpt-sovits.md":
        shown = rows[: next(number for number, line in enumerate(rows) if line.startswith("| alert"))]
        named = {name for line in shown[2:] for name in line.split("|")[1].strip().split(", ")}
    assert len(named) > 5
    allowed = {"allocated", "reserved", "inactive split"}
    assert named - titles - allowed == set()


@each_page
def test_named_variables_exist(page: Path) -> None:
    named = set(re.findall(r"\bTRAINVITALS_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
    assert named - variables() == set()


@functools.cache
def variables() -> set[str]:
    """The names of environment variables that anything of ours reads."""
    exporters = {f"{VARIABLE_PREFIX}{option.flag.removeprefix('--').replace('-', '_').upper()}" for option in OPTIONS}
    files = [REPOSITORY / "compose.yaml", REPOSITORY / "Makefile", REPOSITORY / "tests" / "conftest.py"]
    for folder in ("hooks", "exporter", "deploy", "benchmarks"):
        files += [file for file in (REPOSITORY / folder).rglob("*") if file.suffix in (".py", ".sh", ".yaml", ".yml")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return {f"{VARIABLE_PREFIX}CONFIG"} | exporters | set(re.findall(r"\bTRAINVITALS_[A-Z_]*[A-Z]\b", text))


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
