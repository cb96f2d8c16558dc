"""The pages of the documentation, and the commands in them.

A fence ```sh holds commands, as a reader types them. Unmarked, it is run by tests/test_doc_commands.py, in the order of
the page, by a shell that keeps folder and variables from block to block. HTML comments right above a fence say
otherwise:

    <!-- not run: REASON -->        one or more of NOT_RUN, with commas between
    <!-- runs until stopped -->     a server: it has to come up, is left running, and is stopped at the end of the page
    <!-- takes minutes -->          run with `make test-slow` only
    <!-- exit code: 1 -->           that is how it ends

A fence ```bash is a script's text, such as a job for Slurm: it is not run, but the names in it are looked at.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[1]
_WHERE: Final = (
    "*.md", "docs/**/*.md", "deploy/**/*.md", "examples/**/*.md", "benchmarks/**/*.md", "grafana/*.md", "secrets/*.md",
)  # fmt: skip
PAGES: Final = sorted({path for pattern in _WHERE for path in REPOSITORY.glob(pattern)})
NOT_RUN: Final = {
    "needs a GPU",
    "needs a secret",
    "needs a terminal",
    "needs Docker",
    "needs GPT-SoVITS",
    "needs Grafana",
    "needs Kubernetes",
    "needs Mimir",
    "needs root",
    "needs Slurm",
    "needs systemd",
    "needs the network",
    "needs VictoriaMetrics",
    "needs Windows",
    "takes hours",
    "names things of yours",
    "has a test of its own",
}
LANGUAGES: Final = {
    "sh", "bash", "console", "text", "python", "yaml", "json", "promql", "toml", "ini", "dockerfile", "powershell",
}  # fmt: skip
_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_COMMENT: Final = re.compile(r"^ *<!-- (.*?) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its text, and the comments right above it."""

    page: Path
    line: int
    language: str
    text: str
    comments: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def not_run(self) -> bool:
        return any(comment.startswith("not run:") for comment in self.comments)

    @property
    def until_stopped(self) -> bool:
        return "runs until stopped" in self.comments

    @property
    def takes_minutes(self) -> bool:
        return "takes minutes" in self.comments

    @property
    def exit_code(self) -> int:
        return next((int(c.removeprefix("exit code: ")) for c in self.comments if c.startswith("exit code: ")), 0)

    def mistaken_comments(self) -> list[str]:
        """Comments above it that mean nothing here."""
        return [comment for comment in self.comments if not self._understood(comment)]

    @staticmethod
    def _understood(comment: str) -> bool:
        if comment.startswith("not run: "):
            return set(comment.removeprefix("not run: ").split(", ")) <= NOT_RUN
        return comment in ("runs until stopped", "takes minutes") or bool(re.fullmatch(r"exit code: \d+", comment))


def blocks(page: Path) -> list[Block]:
    """Every fenced block of the page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()].splitlines()
        comments: list[str] = []
        while before and (comment := _COMMENT.match(before[-1])):
            comments.append(comment.group(1))
            before.pop()
        line = text.count("\n", 0, match.start()) + 1
        body = textwrap.dedent(match["body"])
        found.append(Block(page, line, match["language"].strip(), body, tuple(comments)))
    return found


def shell_blocks(page: Path) -> list[Block]:
    """Those that hold commands."""
    return [block for block in blocks(page) if block.language == "sh"]


def scripts(page: Path) -> list[Block]:
    """Those that hold the text of a script."""
    return [block for block in blocks(page) if block.language == "bash"]


def inline_commands(page: Path) -> Iterator[str]:
    """What stands in `backticks` and begins with the name of our command."""
    without_fences = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`]+)`", without_fences):
        if code.startswith("trainvitals "):
            yield " ".join(code.split())


_SEPARATORS: Final = frozenset(";&|()\n")
_STARTERS: Final = {
    "sudo", "env", "exec", "time", "nohup", "command", "watch", "if", "then", "else", "do", "while", "until", "!",
}  # fmt: skip


def simple_commands(script: str) -> list[list[str]]:
    """The words of each command of a shell script, without redirections, assignments, `sudo` and the like.

    Raises ValueError for what is too clever to be read.
    """
    script = re.sub(r"<<-?\s*(['\"]?)(\w+)\1(.*?)\n.*?^\s*\2$", r"\3", script, flags=re.DOTALL | re.MULTILINE)
    script = re.sub(r"(^|\s)#.*$", r"\1", script.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(script, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found: list[list[str]] = [[]]
    target_follows = False
    for word in lexer:
        if set(word) <= _SEPARATORS | set("<>") and word:
            target_follows = bool(set(word) & set("<>"))
            if not target_follows:
                found.append([])
        elif target_follows:
            target_follows = False
        else:
            found[-1].append(word)
    return [words for command in found if (words := _without_starters(command))]


def _without_starters(words: list[str]) -> list[str]:
    words = list(words)
    while words:
        if words[0] in _STARTERS or re.match(r"^\w+=", words[0]):
            words.pop(0)
        elif words[0] in ("timeout", "-u", "-g"):  # the last two are sudo's
            del words[:2]
        elif words[0].startswith("-"):
            words.pop(0)
        else:
            break
    return words
