"""What an operator can choose: one table for flags, environment variables and the configuration file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainvitals_exporter import collectors, yaml_files
from trainvitals_exporter.endpoint.listeners import DEFAULT_LISTEN, Address
from trainvitals_exporter.run_table import KEEP_ENDED_SECONDS

VARIABLE_PREFIX: Final = "TRAINVITALS_EXPORTER_"


@dataclass(frozen=True)
class Option:
    """One choice. `parse` makes a value of one text, or raises ValueError; `separator` makes it a list of values, and
    is what stands between them in the environment.
    """

    name: str
    metavar: str
    default: str
    help: str
    parse: Callable[[str], Any]
    separator: str | None = None

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return VARIABLE_PREFIX + self.name.upper()

    def value(self, texts: list[str]) -> Any:
        """The value that these texts, one unless it is a list, stand for. Raises ValueError."""
        if self.separator == ",":
            texts = [part for text in texts for part in _split(text, ",")]
        if self.separator is not None:
            return tuple(dict.fromkeys(self.parse(text) for text in texts or [""]))
        if len(texts) != 1:
            raise ValueError(f"expected one value, got {len(texts)}")
        return self.parse(texts[0])


@dataclass(frozen=True)
class Configuration:
    """What was chosen. An empty `listen` or `run_dir` stands for what is found out otherwise."""

    listen: tuple[Address, ...] = ()
    web_config: Path | None = None
    run_dir: tuple[Path, ...] = ()
    collectors: tuple[str, ...] = ()
    no_collectors: tuple[str, ...] = ()
    keep_ended: float = KEEP_ENDED_SECONDS
    procfs: Path = Path("/proc")
    rootfs: Path = Path("/")
    gpu_release_file: Path = Path("/run/trainvitals/release-gpus")

    @classmethod
    def read(
        cls, given: Mapping[str, list[str] | None], environment: Mapping[str, str], file: Path | None
    ) -> Configuration:
        """What the flags in `given` say, else the environment, else the file; of each option the first of these counts.

        Raises ValueError, which names the flag, the variable, or the file and its key, for a value that is no good.
        """
        in_file = _texts_of_file(file) if file else {}
        chosen: dict[str, Any] = {"collectors": tuple(collectors.known())}
        for option in OPTIONS:
            texts = given.get(option.name)
            source = option.flag
            if texts is None and environment.get(option.variable):
                texts, source = _split(environment[option.variable], option.separator), option.variable
            if texts is None and option.name in in_file:
                texts, source = in_file[option.name], f"{file}: {option.name}"
            if texts is not None:
                try:
                    chosen[option.name] = option.value(texts)
                except ValueError as error:
                    raise ValueError(f"{source}: {error}") from None
        configuration = cls(**chosen)
        if not configuration.wanted_collectors:
            raise ValueError("no collector is left; see --collectors and --no-collectors")
        return configuration

    @property
    def wanted_collectors(self) -> list[str]:
        """The names of those to run: the chosen ones without the unwanted."""
        of_host = collectors.OF_HOST if collectors.HOST in self.no_collectors else ()
        return [name for name in self.collectors if name not in (*self.no_collectors, *of_host)]


def _split(text: str, separator: str | None) -> list[str]:
    return [text] if separator is None else [part.strip() for part in text.split(separator) if part.strip()]


def _texts_of_file(file: Path) -> dict[str, list[str]]:
    """The file's values as the texts that a flag would be given."""
    known = {option.name for option in OPTIONS}
    texts = {}
    for key, value in yaml_files.read_mapping(file).items():
        if key not in known:
            raise ValueError(f"{file}: unknown key {key}; there are: {', '.join(sorted(known))}")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values):
            raise ValueError(f"{file}: {key}: expected text, a number, or a list of them")
        texts[key] = [str(value) for value in values]
    return texts


def _collector(text: str) -> str:
    known = collectors.known()
    if text not in known:
        wrong = f"unknown collector {text!r}" if text else "no collector chosen"
        raise ValueError(f"{wrong}; there are: {', '.join(known)}")
    return text


def _unwanted(text: str) -> str:
    return text if text == collectors.HOST else _collector(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{text!r} is not a number of seconds")
    return seconds


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise ValueError(f"{text} is not a folder")
    return Path(text)


def _run_directory(text: str) -> Path:
    """A run directory may come later: the first run makes it."""
    if not text:
        raise ValueError("no folder given")
    folder = Path(text)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if folder.exists() and not _can_be_read(folder):
        raise ValueError(f"no permission to read {folder}; run as its owner or as root")
    return folder


def _can_be_read(folder: Path) -> bool:
    """Whether files in the folder can be found. It is tried: os.access() knows nothing of capabilities."""
    try:
        os.scandir(folder).close()
        os.stat(folder / ".")  # noqa: PTH116  # pathlib takes the dot away, and with it the need to search the folder
    except PermissionError:
        return False
    return True


OPTIONS: Final = (
    Option(
        "listen", "HOST:PORT", DEFAULT_LISTEN,
        "an address to serve on; may be repeated; port 0 takes a free one",
        Address.parse, separator=",",
    ),
    Option(
        "web_config", "FILE", "none: plain HTTP for everyone who can connect",
        "TLS, users and headers, in the format of Prometheus's exporter toolkit",
        Path,
    ),
    Option(
        "run_dir", "DIR", "those of every user",
        "a folder with run files; may be repeated",
        _run_directory, separator=os.pathsep,
    ),
    Option(
        "collectors", "LIST", "all",
        "what to collect; `trainvitals exporter --help` names all there is",
        _collector, separator=",",
    ),
    Option(
        "no_collectors", "LIST", "none",
        "what not to collect; host stands for " + ", ".join(collectors.OF_HOST),
        _unwanted, separator=",",
    ),
    Option(
        "keep_ended", "SECONDS", f"{KEEP_ENDED_SECONDS:.0f}",
        "serve the last values of an ended run for this long",
        _seconds,
    ),
    Option("procfs", "DIR", "/proc", "where the host's /proc is mounted", _folder),
    Option("rootfs", "DIR", "/", "where the host's root folder is mounted", _folder),
    Option(
        "gpu_release_file", "FILE", "/run/trainvitals/release-gpus",
        "while this file exists, let go of the NVIDIA driver, so that a GPU can be reset (or: SIGUSR1, then SIGUSR2)",
        Path,
    ),
)  # fmt: skip
