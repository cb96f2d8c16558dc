"""The command line and the HTTP endpoint."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from tests.exporter.conftest import StartExporter
from tests.exporter.exporter_process import DEADLINE, Scrape

COLLECTORS = (
    "cpu, cpu_quota, data_mounts, disks, filesystems, memory, network, nvidia, owners, pressure, processes, pss, runs, "
    "shm"
)


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainvitals_exporter", *arguments],
        env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip


def test_once(run_dir: Path) -> None:
    result = run("--once", "--collectors", "memory,runs", "--run-dir", str(run_dir))
    assert result.returncode == 0
    assert Scrape(result.stdout).value("trainvitals_host_memory_total_bytes")
    assert result.stderr == ""


def test_options_from_the_environment(run_dir: Path) -> None:
    prefix = "TRAINVITALS_EXPORTER_"
    result = run("--once", env={f"{prefix}COLLECTORS": "memory,runs", f"{prefix}RUN_DIR": str(run_dir)})
    scrape = Scrape(result.stdout)
    assert {labels["collector"] for labels, _ in scrape.series("trainvitals_collector_success")} == {"memory", "runs"}
    assert run("--once", env={f"{prefix}COLLECTORS": "memry"}).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--collectors", "cpu,gpus"], f"unknown collector 'gpus'; there are: {COLLECTORS}"),
        (["--collectors", ""], f"no collector chosen; there are: {COLLECTORS}"),
        (["--listen", "10288"], "'10288' is not HOST:PORT, such as 127.0.0.1:10288"),
        (["--listen", "127.0.0.1:99999"], "'127.0.0.1:99999' is not HOST:PORT"),
        (["--listen", "::1:10288"], "'::1:10288' is not HOST:PORT"),
        (["--run-dir", __file__], f"--run-dir: {__file__} is not a folder"),
        (["--procfs", "/nowhere"], "--procfs: /nowhere is not a folder"),
        (["--keep-ended", "-1"], "'-1' is not a number of seconds"),
        (["--interval", "5"], "unrecognized arguments: --interval 5"),
    ],
)
def test_usage_errors(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_run_directory_without_permission() -> None:
    """As an ordinary user, for root may read everything."""
    ordinary = ["setpriv", "--reuid=12345", "--clear-groups"] if os.getuid() == 0 else []
    code = f"import sys; sys.path[:0] = {sys.path!r}; from trainvitals_exporter import command; "
    probe = [*ordinary, sys.executable, "-c", code]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this Python cannot be started as an ordinary user (no setpriv, or its folder is closed)")
    code += "sys.exit(command.command(sys.argv[1:]))"
    with tempfile.TemporaryDirectory() as closed:
        Path(closed).chmod(0o000)
        result = subprocess.run(
            [*ordinary, sys.executable, "-c", code, "--once", "--run-dir", closed],
            capture_output=True, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip
        Path(closed).chmod(0o700)
    assert result.returncode == 2
    assert f"no permission to read {closed}" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("listen", ["127.0.0.1:{port}", "192.0.2.1:10288", "no-such-host.invalid:10288"])
def test_address_that_cannot_be_had(listen: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = listen.format(port=taken.getsockname()[1])
        result = run("--listen", address, "--collectors", "memory")
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert f"cannot listen on {address}: " in line
    assert "choose another address with --listen" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_cleanly(start_exporter: StartExporter, number: int) -> None:
    exporter = start_exporter("--collectors", "memory")
    assert exporter.stop(number) == 0
    assert [line for line in exporter.log if "listening" not in line] == []


def test_paths_and_methods(start_exporter: StartExporter) -> None:
    exporter = start_exporter("--collectors", "memory")
    assert exporter.get("/")[0] == 200
    assert b'href="/metrics"' in exporter.get("/")[2]
    assert exporter.get("/-/healthy")[2] == b"healthy\n"
    assert exporter.get("/-/ready")[2] == b"ready\n"
    assert exporter.get("/metrics?x=1")[0] == 200
    assert exporter.get("/favicon.ico")[0] == 404
    assert exporter.get("/metricsx")[0] == 404
    status, headers, body = exporter.get("/metrics", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 100
    status, headers, _ = exporter.get("/metrics", method="POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_formats(start_exporter: StartExporter) -> None:
    exporter = start_exporter("--collectors", "memory")
    _, headers, body = exporter.get()
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    _, headers, body = exporter.get(Accept=accept, Accept_Encoding="gzip")
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert headers["Content-Encoding"] == "gzip"
    families = parse_openmetrics(gzip.decompress(body).decode())  # type: ignore[no-untyped-call]  # the library's gap
    assert "trainvitals_host_memory_total_bytes" in {family.name for family in families}


def test_idle_and_half_open_connections_do_not_hold_up_a_scrape(start_exporter: StartExporter) -> None:
    exporter = start_exporter("--collectors", "memory")
    host, _, port = exporter.url.removeprefix("http://").rpartition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(50)]
    for connection in idle[::2]:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n")
    assert exporter.scrape().value("trainvitals_host_memory_total_bytes")
    for connection in idle:
        connection.close()
    assert exporter.scrape().value("trainvitals_host_memory_total_bytes")
    assert exporter.process.poll() is None


def test_ipv6(start_exporter: StartExporter) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    exporter = start_exporter("--listen", "[::1]:0", "--collectors", "memory")
    assert exporter.url.startswith("http://[::1]:")
    assert exporter.scrape().value("trainvitals_host_memory_total_bytes")
