"""compose.yaml: accepted by Docker's own client, and as closed as it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import tool

REPOSITORY = Path(__file__).parents[1]


def compose_client() -> list[str]:
    """`docker compose`, or its predecessor. It needs no engine to read a file."""
    version = ["docker", "compose", "version"]
    if shutil.which("docker") and subprocess.run(version, capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    return [tool("docker-compose")]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The file as the client resolves it, with the defaults of all variables."""
    return resolved({})


def resolved(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file as the client resolves it with these variables."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRAINVITALS_")} | dict(variables)
    result = subprocess.run(
        [*compose_client(), "-f", REPOSITORY / "compose.yaml", "config"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content: dict[str, Any] = yaml.safe_load(result.stdout)
    return content


def test_services(config: dict[str, Any]) -> None:
    assert set(config["services"]) == {"exporter", "prometheus", "alertmanager", "grafana"}


def test_nothing_is_exposed_beyond_this_machine(config: dict[str, Any]) -> None:
    for name, service in config["services"].items():
        assert "network_mode" not in service, name
        for port in service["ports"]:
            host = port["host_ip"] if isinstance(port, dict) else port.split(":")[0]
            assert host == "127.0.0.1", (name, port)


def test_images_are_pinned(config: dict[str, Any]) -> None:
    for name, service in config["services"].items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
    dockerfile = (REPOSITORY / "exporter" / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert len(bases) == len(re.findall(r"^FROM \S+python:\d+\.\d+\.\d+-", dockerfile, re.MULTILINE))


def test_every_service_is_checked_and_confined(config: dict[str, Any]) -> None:
    for name, service in config["services"].items():
        assert service["healthcheck"]["test"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert service["read_only"], name
        assert service.get("cap_add", []) == (["DAC_READ_SEARCH"] if name == "exporter" else []), name


def test_the_host_is_mounted_read_only() -> None:
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        for volume in service["volumes"]:
            named = re.fullmatch(r"[a-z]+-data:/[a-z/]+", volume)
            assert named or ":ro" in volume.removeprefix("${").rsplit("}", 1)[-1], (name, volume)
    exporter = " ".join(services["exporter"]["volumes"])
    assert "/proc:/host/proc:ro" in exporter
    assert "/etc/passwd:/host/etc/passwd:ro" in exporter


def test_every_mounted_file_exists() -> None:
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    volumes = [volume for service in services.values() for volume in service["volumes"]]
    sources = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0] for volume in volumes]
    for source in sources:
        if source.startswith("./"):
            assert (REPOSITORY / source).exists(), source


@pytest.mark.parametrize(
    ("chosen", "file"),
    [
        ({}, "en/none.yml"),
        ({"TRAINVITALS_ALERT_CHANNEL": "feishu", "TRAINVITALS_ALERT_LANGUAGE": "zh"}, "zh/feishu.yml"),
    ],
)
def test_alertmanager_takes_the_chosen_channel_and_its_secrets(chosen: dict[str, str], file: str) -> None:
    alertmanager = resolved(chosen)["services"]["alertmanager"]
    assert f"--config.file=/etc/alertmanager/{file}" in alertmanager["command"]
    assert (REPOSITORY / "prometheus" / "alertmanager" / file).exists()
    mounted = [v if isinstance(v, str) else f"{v['source']}:{v['target']}:ro" for v in alertmanager["volumes"]]
    assert f"{REPOSITORY}/prometheus/alertmanager:/etc/alertmanager:ro" in mounted
    assert f"{REPOSITORY}/secrets:/run/secrets:ro" in mounted
    assert (REPOSITORY / "secrets").is_dir(), "or the engine makes it, and it belongs to root"


def test_secrets_are_not_committed() -> None:
    ignored = ["git", "check-ignore", "secrets/feishu_url", "secrets/README.md"]
    done = subprocess.run(ignored, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["secrets/feishu_url"]


def test_targets_are_the_services() -> None:
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    native = {path.name for path in (REPOSITORY / "prometheus" / "targets").glob("*.yml")}
    composed = {
        path.name: yaml.safe_load(path.read_text())
        for path in (REPOSITORY / "prometheus" / "targets-compose").glob("*.yml")
    }
    assert set(composed) == native
    for groups in composed.values():
        for group in groups:
            assert {target.split(":")[0] for target in group["targets"]} <= set(services)


def test_grafana_has_no_default_password(config: dict[str, Any]) -> None:
    environment = config["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not any("PASSWORD" in variable for variable in environment)
