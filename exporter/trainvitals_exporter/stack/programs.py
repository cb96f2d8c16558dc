"""The stack's programs without Docker: commands, environment, and configuration made from our files."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml
from trainvitals import __version__, rundir

from trainvitals_exporter.stack.choices import SECRETS_IN_CONTAINER, Choices
from trainvitals_exporter.stack.errors import StackError
from trainvitals_exporter.stack.folder import replace

# Debian has some under other names.
_NAMES: Final = {
    "prometheus": ("prometheus",),
    "alertmanager": ("alertmanager", "prometheus-alertmanager"),
    "grafana": ("grafana", "grafana-server"),
}
_IN_CONTAINER: Final = "/var/lib/grafana/dashboards"


@dataclass(frozen=True)
class Program:
    """How to start a part, where to ask whether it is ready, and what it has read when it is.

    A `reloads` program takes a changed `configuration` when it gets SIGHUP; another one has to be started again.
    """

    name: str
    command: Sequence[str]
    ready: str
    configuration: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    reloads: bool = False

    @property
    def command_digest(self) -> str:
        """Changes when it would be started in another way, or when the program itself was replaced."""
        binary = Path(self.command[0]).stat()
        version = __version__ if self.name == "exporter" else ""
        return _digest([self.command, sorted(self.environment.items()), binary.st_mtime_ns, binary.st_size, version])

    @property
    def configuration_digest(self) -> str:
        """Changes when there is something new to read."""
        files = [path for each in self.configuration for path in _files(each)]
        return _digest([(str(path), path.read_bytes()) for path in files])


def find(part: str) -> str | None:
    """The path of the program, where it is installed."""
    return next((found for name in _NAMES[part] if (found := shutil.which(name))), None)


def names(part: str) -> str:
    """What the program may be called, in words."""
    return " or ".join(_NAMES[part])


def configure(folder: Path, native: Path, choices: Choices) -> list[Program]:
    """All programs that are installed, in the order of starting, with configuration and data below `native`.

    Raises StackError.
    """
    prometheus = find("prometheus")
    if prometheus is None:
        raise StackError(
            "prometheus is not on PATH; install it (Debian, Ubuntu: apt install prometheus prometheus-alertmanager)"
        )
    try:
        native.mkdir(mode=0o700, exist_ok=True)
        for name in ("configuration", "data", "logs"):
            (native / name).mkdir(exist_ok=True)
        return list(_programs(folder, native, choices, prometheus))
    except OSError as error:
        raise StackError(f"cannot write {error.filename}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise StackError(f"a configuration file below {folder} is damaged: {error}") from None


def _programs(folder: Path, native: Path, choices: Choices, prometheus: str) -> Iterator[Program]:
    address = {part: f"127.0.0.1:{port}" for part, port in choices.ports.items()}
    url, configuration, data = choices.addresses, native / "configuration", native / "data"
    alertmanager, grafana = find("alertmanager"), find("grafana")
    run_dir = {rundir.ENVIRONMENT: choices.run_dir} if choices.run_dir else {}
    yield Program(
        "exporter", [sys.executable, "-m", "trainvitals_exporter", "--listen", address["exporter"]],
        url["exporter"] + "/-/ready", environment=run_dir,
    )  # fmt: skip
    if alertmanager:
        _configure_alertmanager(configuration / "alertmanager", choices)
        yield Program(
            "alertmanager",
            [alertmanager, f"--config.file={configuration / 'alertmanager' / choices.alertmanager_file}",
             f"--storage.path={data / 'alertmanager'}", f"--web.listen-address={address['alertmanager']}",
             "--cluster.listen-address="],
            url["alertmanager"] + "/-/ready", [configuration / "alertmanager"], reloads=True,
        )  # fmt: skip
    _configure_prometheus(folder / "prometheus", configuration / "prometheus", address, alertmanager is not None)
    yield Program(
        "prometheus",
        [prometheus, f"--config.file={configuration / 'prometheus' / 'prometheus.yml'}",
         f"--storage.tsdb.path={data / 'prometheus'}", "--storage.tsdb.retention.time=30d",
         f"--web.listen-address={address['prometheus']}"],
        url["prometheus"] + "/-/ready", [configuration / "prometheus"], reloads=True,
    )  # fmt: skip
    if grafana:
        provisioning = configuration / "grafana"
        _configure_grafana(folder / "grafana" / "provisioning", provisioning, choices)
        server = [] if Path(grafana).name == "grafana-server" else ["server"]
        yield Program(
            "grafana", [grafana, *server, "--homepath", str(_grafana_home(grafana))], url["grafana"] + "/api/health",
            [provisioning], _grafana_environment(folder / "compose.yaml", choices, provisioning, data / "grafana"),
        )  # fmt: skip


def _configure_prometheus(source: Path, target: Path, address: Mapping[str, str], with_alertmanager: bool) -> None:
    """Copy rules and configuration; targets that name a part's usual address get the chosen one."""
    for each in source.iterdir():
        if each.name not in ("alertmanager", "targets", "targets-compose"):
            _copy(each, target / each.name)
    usual = {"127.0.0.1:10288": "exporter", "127.0.0.1:9090": "prometheus", "127.0.0.1:9093": "alertmanager"}
    for file in _files(source / "targets"):
        groups = yaml.safe_load(file.read_text()) or []
        for group in groups:
            parts = [(each, usual.get(each)) for each in group["targets"]]
            group["targets"] = [
                address[part] if part else each for each, part in parts if part != "alertmanager" or with_alertmanager
            ]
        # Prometheus watches these: it should never see half of one.
        replace(target / "targets" / file.name, yaml.safe_dump(groups).encode())


def _configure_alertmanager(target: Path, choices: Choices) -> None:
    """Copy the chosen channel and the templates; secrets are those of this machine."""
    _copy(choices.alertmanager_folder / "templates", target / "templates")
    text = (choices.alertmanager_folder / choices.alertmanager_file).read_text()
    file = target / choices.alertmanager_file
    for other in _files(target):
        if other.suffix == ".yml" and other != file:
            other.unlink()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace(SECRETS_IN_CONTAINER, f"{choices.secrets}/"))


def _configure_grafana(source: Path, target: Path, choices: Choices) -> None:
    _copy(source, target)
    for file in _files(target / "dashboards"):
        file.write_text(file.read_text().replace(_IN_CONTAINER, str(choices.dashboards)))


def _grafana_environment(compose: Path, choices: Choices, provisioning: Path, data: Path) -> dict[str, str]:
    """Grafana's settings as compose.yaml has them, with the addresses and paths of this machine."""
    settings: Mapping[str, str] = yaml.safe_load(compose.read_text())["services"]["grafana"]["environment"]
    return {
        **{name: str(value).replace(_IN_CONTAINER, str(choices.dashboards)) for name, value in settings.items()},
        "PROMETHEUS_URL": choices.addresses["prometheus"],
        "ALERTMANAGER_URL": choices.addresses["alertmanager"],
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(choices.ports["grafana"]),
        "GF_PATHS_DATA": str(data),
        "GF_PATHS_LOGS": str(data / "log"),
        "GF_PATHS_PLUGINS": str(data / "plugins"),
        "GF_PATHS_PROVISIONING": str(provisioning),
    }


def _grafana_home(program: str) -> Path:
    """Where Grafana's own files lie: above an unpacked program, else where packages put them."""
    above = Path(program).resolve().parents
    return next((path for path in above if (path / "conf").is_dir()), Path("/usr/share/grafana"))


def _copy(source: Path, target: Path) -> None:
    """Make the target the same as the source; what is not there is removed."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def environment_of(program: Program) -> dict[str, str]:
    """The whole environment to start it with."""
    return {**os.environ, **program.environment}
