"""What a run can be told: one table for ``trainvitals run --…``, for ``attach(…)`` and for environment variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainvitals import rundir

if TYPE_CHECKING:
    import argparse

RUN_NAME: Final = "TRAINVITALS_RUN_NAME"
DISABLED: Final = "TRAINVITALS_DISABLED"
_MAX_LABELS: Final = 16
_MAX_LENGTH: Final = 128


@dataclass(frozen=True)
class Options:
    """What a run was told. None stands for what is found out otherwise: the script's name, the user's run directory."""

    name: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    overhead: float = 0.01
    off: frozenset[str] = frozenset()
    run_dir: Path | None = None

    @classmethod
    def read(
        cls, environment: Mapping[str, str], given: Mapping[str, Any], on_unusable: Callable[[ValueError], None]
    ) -> Options:
        """Those of `given` that are not None, and else those in `environment`; both may be text.

        Raises ValueError for an unusable one that was given. For one in the environment `on_unusable` is called, and
        its default taken. Either way the error tells which it is and what is expected.
        """
        found: dict[str, Any] = {}
        for option in OPTIONS:
            value, text = given.get(option.name), environment.get(option.variable)
            try:
                if value is not None:
                    found[option.name] = option.parse(value)
                elif text:
                    found[option.name] = option.parse(text)
            except ValueError as error:
                if value is not None:
                    raise ValueError(f"{option.name} {value!r}: {error}") from None
                on_unusable(ValueError(f"{option.variable}={text!r}: {error}"))
        return cls(**found)

    def to_environment(self) -> dict[str, str]:
        """The variables that tell them to another process; an empty one stands for the default."""
        return {option.variable: option.text(getattr(self, option.name)) for option in OPTIONS}


NO_OPTIONS: Final = Options()


@dataclass(frozen=True)
class Option:
    """One option: on the command line, in ``attach(name=…)``, in the environment. `parse` raises ValueError."""

    name: str
    flag: str
    variable: str
    metavar: str
    default: str
    help: str
    parse: Callable[[Any], Any]
    text: Callable[[Any], str]


def _name(value: str) -> str:
    if not value.strip() or len(value) > _MAX_LENGTH or not value.isprintable():
        raise ValueError(f"expected 1 to {_MAX_LENGTH} printable characters")
    return value


def _labels(value: str | Iterable[str] | Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Labels from ``"k=v,k2=v2"``, a sequence of ``"k=v"``, or a mapping; of one name the last counts."""
    if isinstance(value, Mapping):
        pairs = [(str(name), str(text)) for name, text in value.items()]
    else:
        texts = value.split(",") if isinstance(value, str) else value
        if not all("=" in text for text in texts):
            raise ValueError("expected NAME=VALUE")
        pairs = [(text.partition("=")[0].strip(), text.partition("=")[2].strip()) for text in texts]
    for text in (text for pair in pairs for text in pair):
        if not text or "," in text or len(text) > _MAX_LENGTH or not text.isprintable():
            raise ValueError(f"names and values are 1 to {_MAX_LENGTH} printable characters, no commas among them")
    if len(dict(pairs)) > _MAX_LABELS:
        raise ValueError(f"at most {_MAX_LABELS} labels")
    return tuple(dict(pairs).items())


def _overhead(value: str | float) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError("expected a ratio above 0 and up to 1, such as 0.01 for one percent")
    return share


def _off(value: str | Iterable[str]) -> frozenset[str]:
    from trainvitals.instruments import OPTIONAL

    names = {name.strip() for name in (value.split(",") if isinstance(value, str) else value)} - {""}
    if names - OPTIONAL:
        raise ValueError(f"expected some of {', '.join(sorted(OPTIONAL))}")
    return frozenset(names)


OPTIONS: Final = (
    Option(
        "name", "--name", RUN_NAME, "NAME", "the script's name",
        "the run's readable name",
        _name, lambda name: name or "",
    ),
    Option(
        "labels", "--label", "TRAINVITALS_LABELS", "NAME=VALUE", "none",
        f"a label of the run; may be given up to {_MAX_LABELS} times, in the variable with commas between",
        _labels, lambda labels: ",".join(f"{name}={value}" for name, value in labels),
    ),
    Option(
        "overhead", "--overhead", "TRAINVITALS_OVERHEAD", "RATIO", "0.01",
        "the share of an iteration that the hooks may take; dear measurements are sampled to keep to it",
        _overhead, repr,
    ),
    Option(
        "off", "--off", "TRAINVITALS_OFF", "LIST", "none",
        "instruments to leave out, by file name, with commas between: tensorboard,clipping",
        _off, lambda names: ",".join(sorted(names)),
    ),
    Option(
        "run_dir", "--run-dir", rundir.ENVIRONMENT, "DIR", "a folder in memory, of the user's own",
        "the folder of the run files, where the exporter looks for them",
        lambda text: Path(text).absolute(), lambda path: "" if path is None else str(path),
    ),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option to a command line, as text."""
    for option in OPTIONS:
        about = f"{option.help} (${option.variable}; default: {option.default})"
        action = "append" if option.name == "labels" else "store"
        parser.add_argument(option.flag, dest=option.name, metavar=option.metavar, action=action, help=about)


def disabled() -> bool:
    """Whether trainvitals is to stay away altogether: $TRAINVITALS_DISABLED is set, and not to 0."""
    return is_on(os.environ.get(DISABLED))


def is_on(text: str | None) -> bool:
    """Whether a variable that is a switch is on."""
    return (text or "").lower() not in ("", "0", "false", "no", "off")
