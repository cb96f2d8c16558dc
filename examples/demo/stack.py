"""The monitoring around a training run: exporter, Prometheus, Alertmanager, and Grafana where there is one.

Two ways to the same thing: programs of this machine, or compose.yaml where a Docker engine runs. Both take free ports,
so that two stacks on one machine do not meet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from trainvitals_exporter.stack import docker

from examples.demo.programs import DemoError, Programs, answers, find, free_ports

REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PARTS: Final = ("exporter", "prometheus", "alertmanager", "grafana")


@dataclass(frozen=True)
class Addresses:
    """Where the parts answer; `grafana` is None where there is none."""

    exporter: str
    prometheus: str
    alertmanager: str
    grafana: str | None


@dataclass(frozen=True)
class Tuning:
    """What is different from the stack as it is shipped: nothing, unless a bench has its own wishes.

    `prepare` may change the copy of prometheus/ in the folder that it is given.
    """

    prepare: Callable[[Path], None] = lambda folder: None
    exporter_environment: Mapping[str, str] | None = None
    exporter_arguments: Sequence[str] = ()
    prometheus_arguments: Sequence[str] = ()
    grafana: bool = True


AS_SHIPPED: Final = Tuning()


def start_native(programs: Programs, work: Path, run_dir: Path, webhook: str, tuning: Tuning = AS_SHIPPED) -> Addresses:
    """Start the parts as programs of this machine, with their data below `work`; alerts go to the URL `webhook`."""
    prometheus, alertmanager = find("prometheus"), find("alertmanager")
    grafana = shutil.which("grafana") if tuning.grafana else None
    ports = dict(zip(_PARTS, free_ports(len(_PARTS)), strict=True))
    url = {part: f"http://127.0.0.1:{port}" for part, port in ports.items()}
    configuration = _configuration(work, {part: f"127.0.0.1:{port}" for part, port in ports.items()}, webhook)
    tuning.prepare(configuration)

    programs.start("exporter", [
        sys.executable, "-m", "trainvitals.cli", "exporter",
        "--listen", f"127.0.0.1:{ports['exporter']}", "--run-dir", run_dir, *tuning.exporter_arguments,
    ], tuning.exporter_environment)  # fmt: skip
    programs.start("alertmanager", [
        alertmanager, f"--config.file={configuration / 'alertmanager' / 'alertmanager.yml'}",
        f"--storage.path={work / 'alertmanager-data'}", f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
        "--cluster.listen-address=",
    ])  # fmt: skip
    programs.start("prometheus", [
        prometheus, f"--config.file={configuration / 'prometheus.yml'}",
        f"--storage.tsdb.path={work / 'prometheus-data'}",
        f"--web.listen-address=127.0.0.1:{ports['prometheus']}", "--web.enable-lifecycle",
        *tuning.prometheus_arguments,
    ])  # fmt: skip
    programs.wait_for("exporter", url["exporter"] + "/-/ready")
    programs.wait_for("alertmanager", url["alertmanager"] + "/-/ready")
    programs.wait_for("prometheus", url["prometheus"] + "/-/ready")
    if grafana:
        _start_grafana(programs, work, grafana, url, ports["grafana"])
    return Addresses(url["exporter"], url["prometheus"], url["alertmanager"], url["grafana"] if grafana else None)


def _configuration(work: Path, targets: Mapping[str, str], webhook: str) -> Path:
    """A copy of prometheus/ with these targets ("host:port") and with the webhook as Alertmanager's channel."""
    folder = work / "configuration"
    shutil.copytree(REPOSITORY / "prometheus", folder)
    for part, file in (("exporter", "trainvitals"), ("prometheus", "prometheus"), ("alertmanager", "alertmanager")):
        (folder / "targets" / f"{file}.yml").write_text(yaml.safe_dump([{"targets": [targets[part]]}]))
    alertmanager = yaml.safe_load((folder / "alertmanager" / "en" / "webhook.yml").read_text())
    (default,) = [receiver for receiver in alertmanager["receivers"] if receiver["name"] == "default"]
    default["webhook_configs"] = [{"url": webhook}]  # in place of its url_file, which needs a newer Alertmanager
    (folder / "alertmanager" / "alertmanager.yml").write_text(yaml.safe_dump(alertmanager))
    (folder / "secrets").mkdir()
    (folder / "secrets" / "webhook_url").write_text(webhook)
    return folder


def _start_grafana(programs: Programs, work: Path, grafana: str, url: Mapping[str, str], port: int) -> None:
    provisioning = work / "grafana-provisioning"
    shutil.copytree(REPOSITORY / "grafana" / "provisioning", provisioning)
    for path in provisioning.glob("dashboards/*.yml"):
        dashboards = str(REPOSITORY / "grafana" / "dashboards")
        path.write_text(path.read_text().replace("/var/lib/grafana/dashboards", dashboards))
    home = next((p for p in Path(grafana).resolve().parents if (p / "conf").is_dir()), Path("/usr/share/grafana"))
    programs.start(
        "grafana",
        [grafana, "server", "--homepath", home],
        {
            **os.environ,
            "PROMETHEUS_URL": url["prometheus"],
            "ALERTMANAGER_URL": url["alertmanager"],
            "GF_SERVER_HTTP_ADDR": "127.0.0.1",
            "GF_SERVER_HTTP_PORT": str(port),
            "GF_PATHS_DATA": str(work / "grafana-data"),
            "GF_PATHS_PROVISIONING": str(provisioning),
            "GF_AUTH_ANONYMOUS_ENABLED": "true",
            "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_PLUGINS_PREINSTALL_DISABLED": "true",
        },
    )
    programs.wait_for("grafana", url["grafana"] + "/api/health", timeout=120)


def docker_engine() -> bool:
    """Whether `docker compose` is here and reaches an engine."""
    return docker.missing() is None


def docker_receiver_host() -> str:
    """The address of this machine that containers reach as host.docker.internal."""
    inspect = ["docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"]
    found = subprocess.run(inspect, capture_output=True, text=True, check=False).stdout.strip()
    local = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    # Docker Desktop keeps that address inside its virtual machine and leads the name to the loopback interface.
    return found if found in local else "127.0.0.1"


class Compose:
    """compose.yaml as a project of its own; a context manager that takes it down with its volumes."""

    def __init__(self, work: Path, run_dir: Path, webhook: str) -> None:
        ports = free_ports(len(_PARTS))
        self._url = {part: f"http://127.0.0.1:{port}" for part, port in zip(_PARTS, ports, strict=True)}
        configuration = _configuration(
            work, {"exporter": "exporter:10288", "prometheus": "prometheus:9090", "alertmanager": "alertmanager:9093"},
            webhook,
        )  # fmt: skip
        for path in (work, configuration, *configuration.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # the containers run as other users
        self._environment = {
            **os.environ,
            **{f"TRAINVITALS_{part.upper()}_PORT": str(port) for part, port in zip(_PARTS, ports, strict=True)},
            "TRAINVITALS_RUN_DIR": str(run_dir),
            "TRAINVITALS_ALERTMANAGER_CONFIG": str(configuration / "alertmanager"),
            "TRAINVITALS_ALERT_LANGUAGE": "en",
            "TRAINVITALS_ALERT_CHANNEL": "webhook",
            "TRAINVITALS_ALERT_SECRETS": str(configuration / "secrets"),
        }
        file, project = str(REPOSITORY / "compose.yaml"), f"trainvitals-{os.getpid()}"
        self._command = ["docker", "compose", "-f", file, "-p", project]

    def __enter__(self) -> Compose:
        return self

    def __exit__(self, *exception: object) -> None:
        subprocess.run([*self._command, "down", "--volumes"], env=self._environment, check=False)

    def start(self) -> Addresses:
        """Build, start and wait until every part is healthy. Raises DemoError."""
        up = [*self._command, "up", "--build", "--detach", "--wait"]
        if subprocess.run(up, env=self._environment, check=False).returncode != 0:
            raise DemoError("docker compose could not start the stack; see its messages above")
        for part in _PARTS:
            if part != "exporter" and not answers(self._url[part]):
                raise DemoError(f"{part} does not answer at {self._url[part]}")
        return Addresses(*(self._url[part] for part in _PARTS))
