"""The commands in the documentation: those that can be are run, and all of them name what exists."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import tool
from tests.doc_pages import PAGES, REPOSITORY, Block, inline_commands, scripts, shell_blocks, simple_commands

_FOLDERS: Final = (
    "benchmarks", "deploy", "docs", "examples", "exporter", "grafana", "hooks", "prometheus", "tests",
)  # fmt: skip
# Made by the reader, or by a command before: not there in a fresh checkout.
_MADE_LATER: Final = ("examples/voice_clone/output",)
_MINUTES: Final = 1200.0
# A small training that stands for the reader's own.
_TRAIN_PY: Final = """
import torch
from torch.utils.data import DataLoader, TensorDataset

model = torch.nn.Linear(8, 1)
optimizer = torch.optim.AdamW(model.parameters())
loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randn(64, 1)), batch_size=8)
for epoch in range(3):
    for features, targets in loader:
        loss = torch.nn.functional.mse_loss(model(features), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
# What stands for the checkout of GPT-SoVITS: a WebUI that starts a stage as the real one does, and ends when told.
_GPT_SOVITS: Final = {
    "config.py": 'import sys\npython_exec = sys.executable or "python"\n',
    "webui.py": """
import subprocess
from config import python_exec
subprocess.Popen('"%s" -s GPT_SoVITS/s2_train.py --config "TEMP/tmp_s2.json"' % python_exec, shell=True).wait()
print("ready", flush=True)
import signal
signal.sigwait({signal.SIGINT})
""",
    "GPT_SoVITS/s1_train.py": _TRAIN_PY,
    "GPT_SoVITS/s2_train.py": _TRAIN_PY,
}


def _name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def _to_run(page: Path, *, minutes: bool) -> list[Block]:
    return [b for b in shell_blocks(page) if not b.not_run and (minutes or not b.takes_minutes)]


# The blocks of the Chinese pages are those of the English ones: test_docs.py.
ENGLISH: Final = [page for page in PAGES if not page.name.endswith(".zh.md")]
QUICK: Final = [page for page in ENGLISH if _to_run(page, minutes=False)]
LONG: Final = [page for page in ENGLISH if len(_to_run(page, minutes=True)) > len(_to_run(page, minutes=False))]


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("page", QUICK, ids=_name)
def test_commands_of_a_page_work(page: Path, tmp_path: Path, scratch: Path) -> None:
    _run(_to_run(page, minutes=False), tmp_path, scratch)


@pytest.mark.slow
@pytest.mark.timeout(2 * _MINUTES)
@pytest.mark.parametrize("page", LONG, ids=_name)
def test_commands_of_a_page_that_take_minutes_work(page: Path, tmp_path: Path, scratch: Path) -> None:
    _run(_to_run(page, minutes=True), tmp_path, scratch)


def _run(blocks: list[Block], folder: Path, scratch: Path) -> None:
    """Run the blocks as somebody with an empty home, in a copy of the checkout. Fails with what a block said.

    `scratch` becomes TMPDIR: multiprocessing puts Unix sockets there, whose paths may have 107 characters at most.
    """
    checkout, home, programs = (folder / name for name in ("checkout", "home", "bin"))
    ignored = shutil.ignore_patterns(".git", ".venv", "node_modules", "output", "__pycache__", ".*_cache", "dist")
    shutil.copytree(REPOSITORY, checkout, ignore=ignored, symlinks=True)
    (checkout / "train.py").write_text(_TRAIN_PY)
    for made in (home, programs):
        made.mkdir()
    for name, content in _GPT_SOVITS.items():
        file = home / "GPT-SoVITS" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (programs / "alertmanager").symlink_to(tool("alertmanager", "prometheus-alertmanager"))
    steps = [
        {
            "where": block.where,
            "script": block.text,
            "background": block.until_stopped,
            "exit_code": block.exit_code,
            **({"patience": _MINUTES} if block.takes_minutes else {}),
        }
        for block in blocks
    ]
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"steps": steps, "folder": str(folder)}))
    root = os.getuid() == 0
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRAINVITALS_", "XDG_"))}
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"], str(programs)]),
        "DOCKER_HOST": "tcp://127.0.0.1:1",  # an engine would do its work outside
        **({"TRAINVITALS_DOCS_READ_ONLY": "1"} if root else {}),
    }
    namespaces = [tool("unshare"), "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if not root:
        namespaces += ["--user", "--map-root-user"]
    command = [*namespaces, sys.executable, "-m", "tests.doc_sandbox", str(plan)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_name_what_exists(page: Path) -> None:
    for block in shell_blocks(page) + scripts(page):
        assert block.mistaken_comments() == [], f"{block.where}: not a marker that tests/doc_pages.py knows"
        for words in simple_commands(block.text):
            wrong = _what_is_wrong_with(words)
            assert wrong is None, f"{block.where}: {' '.join(words)}: {wrong}"
    for code in inline_commands(page):
        wrong = _what_is_wrong_with(code.replace("[", " ").replace("]", " ").split())
        assert wrong is None, f"{_name(page)}: {code}: {wrong}"


def test_what_a_page_must_not_say_is_found(tmp_path: Path) -> None:
    for command in (
        "trainvitals fly",
        "trainvitals run --nmae x -- python train.py",
        "sudo -u prometheus trainvitals exporter --lisen :1",
        "cd /tmp && make fly",
        "python grafana/biuld.py",
        "python -m benchmarks.fly",
        "promtool check rules --lnit=all prometheus/rules/*.yml",
        "FOO=1 trainvitals exporter --once \\\n  --cofnig x > out.txt",
        "cat <<EOF > x\ntrainvitals ok\nEOF\ntrainvitals stack test-alret",
    ):
        assert any(_what_is_wrong_with(words) for words in simple_commands(command)), command


def _what_is_wrong_with(words: list[str]) -> str | None:
    program, *arguments = words
    if program == "trainvitals":
        return _wrong_with_ours(arguments)
    if program == "make":
        wrong = _wrong_target(arguments)
    elif program in ("promtool", "amtool", "prometheus", "alertmanager"):
        known = _help_of_tool(program)
        wrong = _unknown_option(arguments, known)
    elif re.fullmatch(r"python3?(\.\d+)?", program) and arguments[:1] == ["-m"]:
        wrong = _wrong_module(arguments[1])
    else:
        wrong = None
    return wrong or _missing_file(arguments)


def _wrong_with_ours(arguments: list[str]) -> str | None:
    if not arguments or arguments[0] in ("--version", "--help"):
        return None
    name, *rest = arguments
    if name not in {entry.name for entry in entry_points(group="trainvitals.commands")}:
        return "there is no such command"
    path = [name]
    if name == "stack" and rest and re.fullmatch(r"[a-z-]+", rest[0]):
        path.append(rest[0])
        if not re.search(rf"^ +{rest[0]}\b", _help_of_ours(name), re.MULTILINE):
            return f"there is no {' '.join(path)}"
    own = rest[: rest.index("--")] if "--" in rest else rest
    command = rest[len(own) + 1 :]
    wrong = _unknown_option(own, _help_of_ours(*path)) or _missing_file(own)
    return wrong or (_what_is_wrong_with(command) if command else None)


@functools.cache
def _help_of_ours(*path: str) -> str:
    command = [sys.executable, "-m", "trainvitals.cli", *path, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def _help_of_tool(name: str) -> str:
    path = tool(name, f"prometheus-{name}")
    flag = "--help-long" if name in ("promtool", "amtool") else "--help"
    done = subprocess.run([path, flag], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).replace("[no-]", "")


def _unknown_option(arguments: list[str], known: str) -> str | None:
    for argument in arguments:
        option = argument.split("=")[0]
        if re.fullmatch(r"--[\w][\w.-]*", option) and not re.search(rf"(?<![\w-]){option}(?![\w-])", known):
            return f"there is no {option}"
    return None


def _wrong_target(arguments: list[str]) -> str | None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in arguments:
        if re.fullmatch(r"[a-z][a-z-]*", target) and not re.search(rf"^{target}:", makefile, re.MULTILINE):
            return f"there is no target {target}"
    return None


def _wrong_module(module: str) -> str | None:
    path = REPOSITORY / module.replace(".", "/")
    ours = path.parts[len(REPOSITORY.parts)] in ("benchmarks", "examples", "tests")
    there = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
    return f"there is no module {module}" if ours and not there else None


def _missing_file(arguments: list[str]) -> str | None:
    """The first argument that looks like a path in the checkout and leads nowhere."""
    for argument in arguments:
        path = argument.split("=")[-1].removeprefix("./")
        if path.split("/")[0] not in _FOLDERS or path.startswith(_MADE_LATER) or re.search(r"[$…<>{}]", path):
            continue
        if not any(REPOSITORY.glob(path.rstrip("/"))):
            return f"there is no file {path}"
    return None
