"""`trainvitals doctor`: says nothing bad of what works, and of what does not work what it is and how to mend it."""

from __future__ import annotations

import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from trainvitals import __version__, rundir
from trainvitals.runfile import Identity, RunFileWriter
from trainvitals_exporter import web
from trainvitals_exporter.doctor import gpu
from trainvitals_exporter.doctor.command import examine
from trainvitals_exporter.doctor.findings import Finding, Where, ok

from examples.demo.programs import Programs, free_ports
from examples.demo.stack import REPOSITORY, Addresses, start_native
from tests.conftest import tool, wait_until
from tests.exporter.exporter_process import ExporterProcess
from tests.fake_nvml.build import build

PYTHON = sys.executable
PARTS = {
    "exporter": "trainvitals exporter",
    "prometheus": "Prometheus",
    "alertmanager": "Alertmanager",
    "grafana": "Grafana",
}
NOWHERE = "http://127.0.0.1:9"  # the port of `discard`, which nobody serves


@dataclass
class Told:
    """What doctor said, and its exit code."""

    code: int
    findings: list[dict[str, str]]

    def of(self, check: str, containing: str = "") -> dict[str, str]:
        """The only finding of that check whose text has that in it."""
        found = [f for f in self.findings if f["check"] == check and containing in f["what"]]
        assert len(found) == 1, (check, containing, self.findings)
        return found[0]

    def verdict(self, check: str, containing: str = "") -> str:
        return self.of(check, containing)["verdict"]


def doctor(*arguments: str | Path, **environment: str) -> Told:
    """Run it where nothing answers but what `arguments` name."""
    nowhere = [part for name in PARTS for part in (f"--{name}", NOWHERE)]
    command = [PYTHON, "-m", "trainvitals.cli", "doctor", "--json", *nowhere, *map(str, arguments)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == ""
    return Told(done.returncode, json.loads(done.stdout))


@dataclass(frozen=True)
class Stack:
    """A stack that works, and its run directory."""

    addresses: Addresses
    run_dir: Path

    def ask(self, *arguments: str | Path) -> Told:
        a = self.addresses
        urls = ["--exporter", a.exporter, "--prometheus", a.prometheus, "--alertmanager", a.alertmanager]
        return doctor(*urls, "--run-dir", self.run_dir, *arguments)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    tool("prometheus")
    tool("alertmanager", "prometheus-alertmanager")
    work = tmp_path_factory.mktemp("stack")
    run_dir = work / "runs"
    run_dir.mkdir(mode=0o700)
    with Programs(work) as programs:
        addresses = start_native(programs, work, run_dir, f"{NOWHERE}/hook")
        yield Stack(addresses, run_dir)


@contextmanager
def prometheus_with(folder: Path, configuration: dict[str, Any]) -> Iterator[str]:
    """A Prometheus of its own, at the URL that this gives."""
    folder.mkdir(exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with Programs(folder) as programs:
        programs.start("prometheus", [
            tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ])  # fmt: skip
        programs.wait_for("prometheus", f"{url}/-/ready")
        yield url


@contextmanager
def server(
    pages: dict[str, str], status: int = 200, ahead: float = 0.0, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A server that has these pages, and a clock of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            self.send_response(404 if page is None else status)
            self.end_headers()
            self.wfile.write((page or "").encode())

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + ahead, usegmt=True)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        if tls:
            running.socket = tls.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


# ---- what works


def test_a_stack_that_works(stack: Stack) -> None:
    def settled() -> Told | None:
        told = stack.ask()
        waiting = [f for f in told.findings if f["check"] in ("scraped", "thresholds", "prometheus tells")]
        return told if all(f["verdict"] == "ok" for f in waiting) else None

    told = wait_until(settled, "scraped, and the rules evaluated", timeout=120)
    expected = {"machine", "python", "torch", "hooks", "gpu driver", "run directory", "exporter reads it", *PARTS,
                "clocks", "collectors", "scraped", "rules", "thresholds", "prometheus tells", "told"}  # fmt: skip
    assert {f["check"] for f in told.findings} - {"other users"} == expected
    bad = {f["check"]: f for f in told.findings if f["verdict"] in ("problem", "warning")}
    assert bad.keys() == {"grafana"}, bad
    assert told.of("grafana")["what"].startswith("nothing answers")
    assert __version__ in told.of("exporter")["what"]
    assert told.of("exporter reads it")["what"].endswith(f"looks at {stack.run_dir}")


def test_text_and_exit_code(stack: Stack) -> None:
    a = stack.addresses
    command = [PYTHON, "-m", "trainvitals.cli", "doctor", "--exporter", a.exporter, "--prometheus", NOWHERE,
               "--alertmanager", a.alertmanager, "--run-dir", str(stack.run_dir)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (place,) = [
        number for number, line in enumerate(lines) if line.startswith("problem     prometheus: nothing answers")
    ]
    assert lines[place + 1].startswith("              -> start it")
    assert "1 problem" in lines[-1]
    assert "\033" not in done.stdout


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    told = doctor("--run-dir", tmp_path / "runs")
    assert told.code == 1
    assert "not there yet" in told.of("run directory")["what"]
    for part in ("exporter", "prometheus", "alertmanager", "grafana"):
        assert told.verdict(part) == "problem"
        assert told.of(part)["remedy"]


@pytest.mark.parametrize("arguments", [["--exporter", "localhost:10288"], ["--prometheus", "http://"], ["--nothing"]])
def test_usage_errors(arguments: list[str]) -> None:
    command = [PYTHON, "-m", "trainvitals.cli", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# ---- Prometheus and Alertmanager


def test_a_prometheus_without_rules_alertmanager_or_a_target_that_is_up(tmp_path: Path) -> None:
    jobs = [{"job_name": "trainvitals", "scrape_interval": "20s", "static_configs": [{"targets": ["127.0.0.1:9"]}]}]
    with prometheus_with(tmp_path / "p", {"scrape_configs": jobs}) as url:
        scraped = f"{url}/api/v1/targets?state=active"
        wait_until(lambda: b'"health":"down"' in web.ask(scraped).body, "the target is down", timeout=120)
        told = doctor("--prometheus", url)
    assert told.verdict("prometheus") == "ok"
    assert "connection refused" in told.of("scraped", "is down")["what"]
    assert told.verdict("scraped", "every 20 s") == "warning"
    assert told.verdict("rules") == "problem"
    assert told.verdict("prometheus tells", "knows no Alertmanager") == "problem"
    assert told.code == 1


def test_rules_of_another_version_without_settings(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    for path in (REPOSITORY / "prometheus" / "rules").glob("*.yml"):
        if path.name != "settings.yml":
            (rules / path.name).write_text(path.read_text().replace("alert: TrainingStalled", "alert: TrainingOlder"))
    alerting = {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9"]}]}]}
    with prometheus_with(tmp_path / "p", {"rule_files": [f"{rules}/*.yml"], "alerting": alerting}) as url:
        known = f"{url}/api/v1/alertmanagers"
        wait_until(lambda: b"127.0.0.1:9/" in web.ask(known).body, "the Alertmanager is known", timeout=120)
        told = doctor("--prometheus", url)
    assert told.of("rules")["what"] == "not loaded: trainvitals-settings"
    assert told.verdict("thresholds", "0 of ") == "problem"
    assert told.verdict("scraped", "no target with job trainvitals") == "problem"
    assert "127.0.0.1:9, where there is connection refused" in told.of("prometheus tells")["what"]


def test_rules_that_differ_by_an_alert(stack: Stack, tmp_path: Path) -> None:
    for path in (REPOSITORY / "prometheus" / "rules").glob("*.yml"):
        (tmp_path / path.name).write_text(path.read_text().replace("alert: TrainingStalled", "alert: TrainingOlder"))
    with prometheus_with(tmp_path / "p", {"rule_files": [f"{tmp_path}/*.yml"]}) as url:
        told = stack.ask("--prometheus", url)
    assert told.verdict("rules") == "warning"
    assert "missing: TrainingStalled; not of this version: TrainingOlder" in told.of("rules")["what"]


def test_an_alertmanager_that_tells_nobody(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    program = tool("alertmanager", "prometheus-alertmanager")
    configuration = REPOSITORY / "prometheus" / "alertmanager" / "en" / "none.yml"
    with Programs(tmp_path) as programs:
        programs.start("alertmanager", [
            program, f"--config.file={configuration}", f"--storage.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
        ])  # fmt: skip
        programs.wait_for("alertmanager", f"{url}/-/ready")
        told = doctor("--alertmanager", url)
    assert told.verdict("alertmanager") == "ok"
    assert told.verdict("told", "nobody is told") == "warning"


def test_each_part_is_told_from_another_program(stack: Stack) -> None:
    a = stack.addresses
    wrong = (a.prometheus, a.alertmanager, a.exporter, a.exporter)
    told = doctor(*(part for name, url in zip(PARTS, wrong, strict=True) for part in (f"--{name}", url)))
    for part, name in PARTS.items():
        assert told.verdict(part) == "problem"
        assert f"is no {name}" in told.of(part)["what"]


def test_a_prometheus_whose_clock_is_wrong() -> None:
    pages = {
        "/api/v1/status/buildinfo": '{"data": {"version": "3.5.0"}}',
        "/api/v1/query": json.dumps({"data": {"resultType": "scalar", "result": [0, str(time.time() - 3600)]}}),
    }
    with server(pages) as url:
        told = doctor("--prometheus", url)
    assert told.verdict("clocks", "Prometheus's machine") == "warning"
    assert "behind this one" in told.of("clocks")["what"]


def test_grafana() -> None:
    with server({"/api/health": '{"database": "ok", "version": "12.1.0"}'}) as url:
        assert doctor("--grafana", url).of("grafana")["what"] == f"Grafana 12.1.0 answers at {url}"
    with server({"/api/health": '{"database": "failing", "version": "12.1.0"}'}) as url:
        assert doctor("--grafana", url).verdict("grafana") == "problem"


# ---- the exporter


def test_an_exporter_of_another_version_with_failing_collectors_and_a_wrong_clock() -> None:
    page = (
        'trainvitals_exporter_build_info{version="0.0.1",python_version="3.10"} 1\n'
        'trainvitals_collector_success{collector="runs"} 0\ntrainvitals_collector_success{collector="cpu"} 1\n'
    )
    with server({"/metrics": page}, ahead=60) as url:
        told = doctor("--exporter", url)
    assert told.verdict("exporter", "is 0.0.1, this installation is") == "warning"
    assert told.of("collectors")["what"] == "failing: runs"
    assert told.verdict("clocks") == "warning"
    assert "ahead of this one" in told.of("clocks")["what"]


def test_an_exporter_with_a_password() -> None:
    with server({"/metrics": ""}, status=401) as url:
        assert doctor("--exporter", url).verdict("exporter", "wants a user and a password") == "problem"


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        told = doctor(*(part for name in PARTS for part in (f"--{name}", url)))
    for part in PARTS:
        assert told.verdict(part, "timed out") == "problem"


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    page = {"/metrics": f'trainvitals_exporter_build_info{{version="{__version__}"}} 1\n'}
    with server(page, tls=context) as url:
        refused = doctor("--exporter", url)
        accepted = doctor("--exporter", url, SSL_CERT_FILE=str(tmp_path / "authority.pem"))
    assert refused.verdict("exporter", "TLS: ") == "problem"
    assert "SSL_CERT_FILE" in refused.of("exporter")["remedy"]
    assert accepted.verdict("exporter") == "ok"


def test_an_alertmanager_of_a_network_that_only_prometheus_is_in() -> None:
    pages = {
        "/api/v1/status/buildinfo": json.dumps({"status": "success", "data": {"version": "3.5.0"}}),
        "/api/v1/alertmanagers": json.dumps(
            {"data": {"activeAlertmanagers": [{"url": "http://alertmanager.invalid:9093/api/v2/alerts"}]}}
        ),
    }
    with server(pages) as url:
        told = doctor("--prometheus", url)
    assert told.verdict("prometheus tells", "alertmanager.invalid:9093, a name not known here") == "not checked"


def test_what_never_answers_is_not_waited_for() -> None:
    def hang(_where: Where) -> Iterator[Finding]:
        yield ok("first", "so far")
        time.sleep(3600)

    where = Where(NOWHERE, NOWHERE, NOWHERE, NOWHERE, frozenset(), Path("/nowhere"), PYTHON)
    findings = examine(where, {"hanging": hang, "well": lambda _: iter([ok("well", "yes")])}, patience=0.2)
    assert [(f.check, f.verdict) for f in findings] == [("first", "ok"), ("hanging", "not checked"), ("well", "ok")]


# ---- the run directory


@pytest.fixture
def exporter() -> Iterator[Any]:
    with ExitStack() as started:

        def start(*arguments: str, **env: str) -> ExporterProcess:
            process = ExporterProcess("--collectors", "runs", *arguments, env=env)
            started.callback(process.stop)
            return process

        yield start


def test_an_exporter_that_looks_elsewhere(exporter: Any, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir(mode=0o700)
    elsewhere = exporter("--run-dir", str(other))
    told = doctor("--exporter", elsewhere.url, **{rundir.ENVIRONMENT: str(mine)})
    assert told.verdict("run directory", str(mine)) == "ok"
    assert told.verdict("exporter reads it", f"does not look at {mine}") == "problem"
    assert f"--run-dir {mine}" in told.of("exporter reads it")["remedy"]
    for here in (exporter("--run-dir", str(mine)), exporter(**{rundir.ENVIRONMENT: str(mine)})):
        assert doctor("--exporter", here.url, "--run-dir", mine).verdict("exporter reads it") == "ok"


def test_an_exporter_of_another_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.fail("this test makes a folder of another user, and so has to run as root")
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    told = doctor("--run-dir", folder)
    assert told.verdict("run directory", "belongs to user 12345") == "warning"


@pytest.mark.parametrize("broken", ["others can write", "a link", "a file", "nothing can be made"])
def test_a_run_directory_that_no_run_could_use(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "runs"
    if broken == "others can write":
        folder.mkdir()
        folder.chmod(0o777)
    elif broken == "a link":
        folder.symlink_to(tmp_path)
    elif broken == "a file":
        folder.touch()
    else:
        (tmp_path / "file").touch()
        folder = tmp_path / "file" / "runs"
    told = doctor("--run-dir", folder)
    assert told.verdict("run directory") == "problem"
    assert told.code == 1


def test_files_that_no_exporter_takes(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    RunFileWriter(tmp_path, Identity("id", "run", "rank")).close()
    (tmp_path / "torn.vitals").write_bytes(b"trnvital")
    told = doctor("--run-dir", tmp_path)
    assert told.of("run directory")["what"].endswith("0 live and 1 ended runs")
    assert "(1 truncated)" in told.of("run files")["what"]


# ---- the training's Python


def test_hooks_that_do_not_get_in(tmp_path: Path) -> None:
    isolated = tmp_path / "python"
    isolated.write_text(f'#!/bin/sh\nexec {PYTHON} -E "$@"\n')
    isolated.chmod(0o755)
    told = doctor("--python", isolated, "--run-dir", tmp_path / "runs")
    assert told.verdict("hooks") == "problem"
    assert "without -E" in told.of("hooks")["remedy"]


def test_pythons_that_do_not_train(tmp_path: Path) -> None:
    assert doctor("--python", tmp_path / "nowhere").verdict("python") == "problem"
    assert doctor("--python", "false").verdict("python", "does not run") == "problem"
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {getattr(sys, "_base_executable", PYTHON)} "$@"\n')
    bare.chmod(0o755)
    told = doctor("--python", bare)
    assert told.verdict("hooks") == "ok"  # they need not be installed where one trains
    assert told.verdict("torch", "has no PyTorch") == "warning"


def test_variables_that_keep_trainvitals_out() -> None:
    assert doctor(TRAINVITALS_DISABLED="1").verdict("hooks", "TRAINVITALS_DISABLED is set") == "problem"
    # The loader complains on stderr of every process, doctor included.
    command = [PYTHON, "-m", "trainvitals.cli", "doctor", "--json"]
    env = {**os.environ, "LD_PRELOAD": "/nowhere/lib.so"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert any("LD_PRELOAD names /nowhere/lib.so" in finding["what"] for finding in json.loads(done.stdout))


# ---- the driver


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    build(folder)
    return folder


@pytest.mark.parametrize(
    ("lines", "verdict", "what"),
    [
        ("", "ok", "NVIDIA driver "),
        ("gpus=0", "warning", "shows no GPU"),
        ("init=error:4", "problem", "no permission to use"),
        ("driver=mismatch", "problem", "different versions"),
        ("init=error:999", "problem", "does not answer"),
        ("init=error:28", "not checked", "no NVIDIA GPU is here"),
    ],
)
def test_the_driver(driver: Path, tmp_path: Path, lines: str, verdict: str, what: str) -> None:
    state = tmp_path / "state"
    state.write_text(lines + "\n")
    profile = Path(__file__).parent / "fake_nvml" / "profiles" / "rtx_3090"
    told = doctor(LD_LIBRARY_PATH=str(driver), FAKE_NVML_PROFILE=str(profile), FAKE_NVML_STATE=str(state))
    assert told.verdict("gpu driver", what) == verdict


def test_a_gpu_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030000\n")
    monkeypatch.setattr(gpu, "_PCI", tmp_path)
    where = Where(NOWHERE, NOWHERE, NOWHERE, NOWHERE, frozenset(), Path("/nowhere"), PYTHON)
    (finding,) = gpu.check(where)
    assert finding.verdict == "problem"
    assert "no libnvidia-ml.so.1" in finding.what
