"""What the user chose: the variables of compose.yaml, from the environment or the file .env."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainvitals import rundir

from trainvitals_exporter.stack.errors import WrongUse

PARTS: Final = ("exporter", "prometheus", "alertmanager", "grafana")
_PORTS: Final = {"exporter": 10288, "prometheus": 9090, "alertmanager": 9093, "grafana": 3000}
# Where the channels name their secrets, as they lie in a container.
SECRETS_IN_CONTAINER: Final = "/run/secrets/"


def port_variable(part: str) -> str:
    """The variable that chooses the port of a part."""
    return f"TRAINVITALS_{part.upper()}_PORT"


@dataclass(frozen=True)
class Choices:
    """`ports` by part, on 127.0.0.1; `alertmanager_file` is the chosen channel in the chosen language."""

    ports: Mapping[str, int]
    alertmanager_folder: Path
    alertmanager_file: str
    secrets: Path
    dashboards: Path
    run_dir: str | None

    @property
    def missing_secrets(self) -> list[Path]:
        """The files that the chosen channel needs, and that are not there, or empty."""
        lines = (self.alertmanager_folder / self.alertmanager_file).read_text().splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        files = [self.secrets / name for name in sorted(set(re.findall(rf"{SECRETS_IN_CONTAINER}([\w.-]+)", text)))]
        return [file for file in files if not _has_content(file)]

    @property
    def addresses(self) -> dict[str, str]:
        """The URL of each part."""
        return {part: f"http://127.0.0.1:{port}" for part, port in self.ports.items()}


def read(folder: Path) -> Choices:
    """The choices for the stack in `folder`. Raises WrongUse for what makes no sense."""
    in_file = _env_file(folder / ".env")
    _check_names(folder, in_file)
    variables = {**in_file, **os.environ}

    def chosen(name: str, default: str) -> str:
        return variables.get(name) or default  # as ${NAME:-default} has it

    def path(name: str, default: str) -> Path:
        return (folder / Path(chosen(name, default)).expanduser()).resolve()

    language, channel = chosen("TRAINVITALS_ALERT_LANGUAGE", "en"), chosen("TRAINVITALS_ALERT_CHANNEL", "none")
    choices = Choices(
        ports={part: _port(port_variable(part), chosen(port_variable(part), str(_PORTS[part]))) for part in PARTS},
        alertmanager_folder=path("TRAINVITALS_ALERTMANAGER_CONFIG", "prometheus/alertmanager"),
        alertmanager_file=f"{language}/{channel}.yml",
        secrets=path("TRAINVITALS_ALERT_SECRETS", "secrets"),
        dashboards=folder / "grafana" / chosen("TRAINVITALS_DASHBOARDS", "dashboards"),
        run_dir=variables.get(rundir.ENVIRONMENT) or None,
    )
    _check(choices)
    return choices


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except PermissionError:
        return True  # for Alertmanager's eyes only
    except OSError:
        return False


def _check_names(folder: Path, names: Iterable[str]) -> None:
    text = "".join(file.read_text() for file in folder.glob("compose*.yaml"))
    known = set(re.findall(r"\bTRAINVITALS_[A-Z_]+\b", text))
    for name in names:
        if known and name.startswith("TRAINVITALS_") and name not in known:
            like = difflib.get_close_matches(name, known, n=1)
            raise WrongUse(
                f"{folder / '.env'}: there is no variable {name}" + (f"; is {like[0]} meant?" if like else "")
            )


def _check(choices: Choices) -> None:
    if len(set(choices.ports.values())) < len(choices.ports):
        raise WrongUse("two parts cannot have the same port; choose others with " + _variables())
    file = choices.alertmanager_folder / choices.alertmanager_file
    if not file.is_file():
        channels = sorted(path.stem for path in file.parent.glob("*.yml"))
        raise WrongUse(
            f"TRAINVITALS_ALERT_LANGUAGE and TRAINVITALS_ALERT_CHANNEL choose {file}, which is not there"
            + (f"; channels are {', '.join(channels)}" if channels else "; languages are en and zh")
        )
    if not choices.dashboards.is_dir():
        raise WrongUse(f"TRAINVITALS_DASHBOARDS chooses {choices.dashboards}; it can be dashboards or dashboards-zh")


def _port(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise WrongUse(f"{name} is {text!r}, which is no port; ports are 1 to 65535")
    return int(text)


def _variables() -> str:
    return ", ".join(map(port_variable, PARTS))


def _env_file(path: Path) -> dict[str, str]:
    """The lines NAME=value of a file as compose reads it, but without its substitutions."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WrongUse(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    found = {}
    for line in lines:
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            found[name.strip()] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    for quote in "'\"":
        if value.startswith(quote) and (end := value.find(quote, 1)) > 0:
            return value[1:end]
    return value.partition(" #")[0].rstrip()
