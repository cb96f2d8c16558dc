"""Options from flags, environment and file; where to listen; the service manager; --once FILE; filters."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainvitals_exporter import collectors
from trainvitals_exporter.configuration import OPTIONS, Configuration
from trainvitals_exporter.endpoint.listeners import Address

from tests.conftest import wait_until
from tests.exporter.conftest import StartExporter, StartRunFile
from tests.exporter.exporter_process import DEADLINE, ExporterProcess, Scrape
from tests.exporter.raw_client import GET, RawClient

MEMORY = "trainvitals_host_memory_total_bytes"
REPOSITORY = Path(__file__).parents[2]
NOTHING: dict[str, list[str] | None] = {}


def write(folder: Path, content: object) -> Path:
    path = folder / "exporter.yml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainvitals_exporter", *arguments],
        env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip


# Where options come from


def every_option(folder: Path) -> dict[str, tuple[list[str], Any]]:
    """For each option: what a flag is given, and what it stands for."""
    (folder / "proc").mkdir(exist_ok=True)
    return {
        "listen": (["127.0.0.1:0", "[::1]:99"], (Address("127.0.0.1", 0), Address("::1", 99))),
        "web_config": ([f"{folder}/web.yml"], folder / "web.yml"),
        "run_dir": ([f"{folder}/a", f"{folder}/b"], (folder / "a", folder / "b")),
        "collectors": (["memory", "runs"], ("memory", "runs")),
        "no_collectors": (["host", "runs"], ("host", "runs")),
        "keep_ended": (["12.5"], 12.5),
        "gpu_release_file": ([f"{folder}/release"], folder / "release"),
        "procfs": ([f"{folder}/proc"], folder / "proc"),
        "rootfs": ([str(folder)], folder),
    }


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_each_option_from_each_source(option: Any, tmp_path: Path) -> None:
    texts, expected = every_option(tmp_path)[option.name]
    by_flag = Configuration.read({option.name: texts}, {}, None)
    by_variable = Configuration.read(NOTHING, {option.variable: (option.separator or "").join(texts)}, None)
    by_file = Configuration.read(NOTHING, {}, write(tmp_path, {option.name: texts if option.separator else texts[0]}))
    assert getattr(by_flag, option.name) == expected
    assert by_flag == by_variable == by_file
    default = Configuration.read(NOTHING, {}, None)
    changed = [each.name for each in fields(default) if getattr(default, each.name) != getattr(by_flag, each.name)]
    assert changed == [option.name]


def test_a_flag_counts_more_than_a_variable_and_that_more_than_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, {"collectors": "cpu, memory", "keep_ended": 3, "run_dir": str(tmp_path)})
    environment = {"TRAINVITALS_EXPORTER_COLLECTORS": "cpu,runs", "TRAINVITALS_EXPORTER_KEEP_ENDED": "2"}
    read = Configuration.read({"collectors": ["pressure"], "run_dir": None}, environment, file)
    assert (read.collectors, read.keep_ended, read.run_dir) == (("pressure",), 2.0, (tmp_path,))
    from_kubernetes = {"TRAINVITALS_EXPORTER_PORT": "tcp://10.0.0.1:10288", "TRAINVITALS_EXPORTER_SERVICE_HOST": "x"}
    assert Configuration.read(NOTHING, from_kubernetes, None) == Configuration.read(NOTHING, {}, None)
    empty = Configuration.read(NOTHING, {"TRAINVITALS_EXPORTER_KEEP_ENDED": ""}, write(tmp_path, ""))
    assert (empty.collectors, empty.keep_ended) == (tuple(collectors.known()), Configuration().keep_ended)


def test_collectors_that_node_exporter_replaces_are_switched_off_together() -> None:
    left = Configuration.read({"no_collectors": ["host"]}, {}, None).wanted_collectors
    assert set(collectors.known()) - set(left) == set(collectors.OF_HOST)
    assert {"nvidia", "processes", "runs"} <= set(left)
    assert Configuration.read(
        {"no_collectors": ["cpu", "runs"], "collectors": ["cpu,disks"]}, {}, None
    ).wanted_collectors == ["disks"]


def test_a_process_goes_by_its_file(tmp_path: Path) -> None:
    file = write(tmp_path, {"collectors": ["memory"]})
    by_flag, by_variable = ["--config", str(file)], {"TRAINVITALS_EXPORTER_CONFIG": str(file)}
    for arguments, variables in ((by_flag, {}), ([], by_variable)):
        scrape = Scrape(run("--once", *arguments, env=variables).stdout)
        assert [labels["collector"] for labels, _ in scrape.series("trainvitals_collector_success")] == ["memory"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("listn: 127.0.0.1:0", "{file}: unknown key listn; there are: collectors, "),
        ("once: true", "{file}: unknown key once"),
        ("listen: 10288", "{file}: listen: '10288' is not HOST:PORT"),
        ("listen: [a:1, b]", "{file}: listen: 'b' is not HOST:PORT"),
        ("listen: [[a:1]]", "{file}: listen: expected text, a number, or a list of them"),
        ("collectors: {cpu: true}", "{file}: collectors: expected text, a number, or a list of them"),
        ("collectors: []", "{file}: collectors: no collector chosen; there are: "),
        ("collectors: cpu,gpus", "{file}: collectors: unknown collector 'gpus'; there are: "),
        ("keep_ended: yes", "{file}: keep_ended: expected text, a number, or a list of them"),
        ("keep_ended:", "{file}: keep_ended: expected text, a number, or a list of them"),
        ("keep_ended: [1, 2]", "{file}: keep_ended: expected one value, got 2"),
        ("keep_ended: .inf", "{file}: keep_ended: 'inf' is not a number of seconds"),
        ("keep_ended: 1\nkeep_ended: 2", "{file} is not YAML that can be used: keep_ended is there twice in line 1"),
        ("procfs: /nowhere", "{file}: procfs: /nowhere is not a folder"),
        ("run_dir: ''", "{file}: run_dir: no folder given"),
        ("[", "{file} is not YAML that can be used: "),
    ],
)
def test_bad_files(content: str, said: str, tmp_path: Path) -> None:
    file = write(tmp_path, content)
    with pytest.raises(ValueError, match=re.escape(said.format(file=file))) as caught:
        Configuration.read(NOTHING, {}, file)
    assert "\n" not in str(caught.value)


def test_bad_configurations_are_usage_errors(tmp_path: Path) -> None:
    bad = write(tmp_path, "listn: x")
    for arguments, variables, said in (
        (["--config", str(bad)], {}, f"error: {bad}: unknown key listn"),
        (["--config", "/nowhere.yml"], {}, "error: /nowhere.yml cannot be read: No such file or directory"),
        ([], {"TRAINVITALS_EXPORTER_LISTEN": "nonsense"}, "error: TRAINVITALS_EXPORTER_LISTEN: 'nonsense' is not HOST"),
        (["--collectors", "cpu,disks", "--no-collectors", "host"], {}, "error: no collector is left; see --collectors"),
        (["--no-collectors", "hosts"], {}, "error: --no-collectors: unknown collector 'hosts'; there are: cpu, "),
        (["--keep-ended", "soon"], {}, "error: --keep-ended: 'soon' is not a number of seconds"),
    ):
        result = run(*arguments, env=variables)
        assert result.returncode == 2
        assert said in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_the_documentation_is_that_of_the_options() -> None:
    page = (REPOSITORY / "docs" / "exporter.md").read_text(encoding="utf-8")
    rows = [
        f"| `{each.flag} {each.metavar}` | `{each.variable}` | `{each.name}` | {each.help} | {each.default} |"
        for each in OPTIONS
    ]
    assert [line for line in page.splitlines() if line.startswith("| `--")] == rows, "the table is that of OPTIONS"
    described = run("--help").stdout
    for option in OPTIONS:
        assert f"{option.flag} {option.metavar}" in described


# Where to listen


def test_several_addresses_at_once(start_exporter: StartExporter) -> None:
    has_ipv6 = Path("/proc/net/if_inet6").exists()
    hosts = ["127.0.0.1", "127.0.0.2", *(["[::1]"] if has_ipv6 else [])]
    arguments = [argument for host in hosts for argument in ("--listen", f"{host}:0")]
    exporter = start_exporter("--collectors", "memory", *arguments)
    wait_until(lambda: len(exporter.log) == len(hosts), "all are named")
    found = [match for line in exporter.log if (match := re.search(r"http://(\S+):(\d+)/metrics", line))]
    assert [match[1] for match in found] == hosts
    for match in found:
        connection = http.client.HTTPConnection(match[1].strip("[]"), int(match[2]), timeout=DEADLINE)
        connection.request("GET", "/metrics")
        assert MEMORY.encode() in connection.getresponse().read()


def test_one_bad_address_among_good_ones() -> None:
    result = run("--listen", "127.0.0.1:0", "--listen", "192.0.2.1:10288", "--collectors", "memory")
    assert result.returncode == 1
    assert "cannot listen on 192.0.2.1:10288: " in result.stderr


# The service manager

ACTIVATE = """
import os, sys
for place in range(int(sys.argv[1])):
    assert os.get_inheritable(3 + place)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[2]))
os.environ["LISTEN_FDS"] = sys.argv[1]
os.execv(sys.executable, [sys.executable, "-m", "trainvitals_exporter", *sys.argv[3:]])
"""


def activated(sockets: Iterable[socket.socket], *arguments: str, pid_offset: int = 0) -> subprocess.Popen[str]:
    """An exporter that is handed these sockets as systemd would hand them."""
    handed = list(sockets)

    def place() -> None:
        for number, each in enumerate(handed):
            os.dup2(each.fileno(), 3 + number)

    command = [sys.executable, "-c", ACTIVATE, str(len(handed)), str(pid_offset), *arguments]
    descriptors = tuple(range(3, 3 + len(handed)))
    return subprocess.Popen(command, preexec_fn=place, pass_fds=descriptors, stderr=subprocess.PIPE, text=True)


def test_socket_activation(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "exporter.sock"))
        unix.listen()
        # Two descriptors out of the way of 3 and 4, whose places they will take.
        away = [socket.socket(fileno=os.dup(os.dup(os.dup(each.fileno())))) for each in (tcp, unix)]
        process = activated(away, "--collectors", "memory")
        try:
            answer = RawClient(tcp.getsockname()).ask(GET)
            assert answer is not None
            assert answer.status == 200
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "exporter.sock"))
                client.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
                assert client.makefile("rb").read().endswith(b"\r\n\r\nhealthy\n")
        finally:
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
        assert [line.split("listening on ")[1] for line in log.splitlines()] == [
            f"http://127.0.0.1:{tcp.getsockname()[1]}/metrics", f"unix:{tmp_path}/exporter.sock",
        ]  # fmt: skip


def test_sockets_for_another_process_are_not_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as handed:
        away = socket.socket(fileno=os.dup(os.dup(handed.fileno())))
        process = activated([away], "--listen", "127.0.0.1:0", "--collectors", "memory", pid_offset=1)
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)
        assert "listening on http://127.0.0.1:" in first
        assert f":{handed.getsockname()[1]}/" not in first


def test_a_socket_that_does_not_listen() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handed:
        away = socket.socket(fileno=os.dup(os.dup(handed.fileno())))
        process = activated([away])
        _, log = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert "socket 3 is not listening for a stream" in log


@pytest.mark.parametrize("abstract", [False, True])
def test_telling_the_service_manager(start_exporter: StartExporter, tmp_path: Path, abstract: bool) -> None:
    name = f"@trainvitals-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(DEADLINE)
        variables = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"}
        exporter = start_exporter("--collectors", "memory", env=variables)
        told = [manager.recv(4096).decode() for _ in range(4)]
        assert re.fullmatch(r"READY=1\nSTATUS=listening on 127\.0\.0\.1:\d+", told[0])
        assert told[1:] == ["WATCHDOG=1"] * 3
        assert exporter.stop() == 0
        while (last := manager.recv(4096)) == b"WATCHDOG=1":
            pass
        assert last == b"STOPPING=1"


def test_no_watchdog_for_another_process(start_exporter: StartExporter, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
        exporter = start_exporter("--collectors", "memory", env=variables)
        assert exporter.scrape().value(MEMORY)
        assert exporter.stop() == 0
        assert [manager.recv(4096).partition(b"\n")[0] for _ in range(2)] == [b"READY=1", b"STOPPING=1"]


# --once FILE


def test_once_into_a_file(tmp_path: Path) -> None:
    file = tmp_path / "trainvitals.prom"
    file.write_text("old\n")
    reader = file.open()
    result = run("--once", file, "--collectors", "memory")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    text = file.read_text()
    assert Scrape(text).value(MEMORY)
    assert all(len(line.rsplit("} ", 1)[-1].split()) <= 2 for line in text.splitlines() if not line.startswith("#"))
    assert file.stat().st_mode & 0o777 == 0o644  # node_exporter reads it as another user
    assert reader.read() == "old\n"  # not written to, but replaced
    assert [path.name for path in tmp_path.iterdir()] == ["trainvitals.prom"]


def test_once_into_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    result = run("--once", tmp_path / "nowhere" / "a.prom", "--collectors", "memory")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"trainvitals exporter: cannot write {tmp_path}/nowhere/a.prom: No such file or directory\n"
    (tmp_path / "folder.prom").mkdir()
    result = run("--once", tmp_path / "folder.prom", "--collectors", "memory")
    assert result.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.prom"]


# Filters


@pytest.fixture
def exporter(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path) -> ExporterProcess:
    rank = start_run_file("one", "rank", "one", 0).set("trainvitals_loss", 2.5, optimizer="0")
    rank.set("trainvitals_optimizer_steps_total", 7, optimizer="0").set("trainvitals_iteration_seconds_sum", 1)
    rank.set("trainvitals_iteration_seconds_bucket", 1, le="0.1")
    return start_exporter("--collectors", "memory,runs", "--run-dir", str(run_dir))


def names(exporter: ExporterProcess, query: str, **headers: str) -> set[str]:
    """The names of the samples that a scrape with this query finds."""
    status, _, body = exporter.get("/metrics?" + query, **headers)
    assert status == 200
    return {line.split()[0].partition("{")[0] for line in body.decode().splitlines() if not line.startswith("#")}


def test_filter_by_name(exporter: ExporterProcess) -> None:
    assert names(exporter, f"name[]={MEMORY}&name[]=trainvitals_loss") == {MEMORY, "trainvitals_loss"}
    assert names(exporter, f"name%5B%5D={MEMORY}") == {MEMORY}
    steps = "trainvitals_optimizer_steps"
    assert names(exporter, f"name[]={steps}_total") == names(exporter, f"name[]={steps}") == {f"{steps}_total"}
    seconds = "trainvitals_iteration_seconds"
    assert names(exporter, f"name[]={seconds}_sum") == {f"{seconds}_sum"}
    assert names(exporter, f"name[]={seconds}") == {f"{seconds}_{part}" for part in ("bucket", "count", "sum")}
    assert names(exporter, "name[]=trainvitals_exporter_build_info") == {"trainvitals_exporter_build_info"}
    assert names(exporter, "name[]=nothing") == set()
    _, headers, body = exporter.get("/metrics?name[]=trainvitals_loss", Accept="application/openmetrics-text")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.decode().splitlines()[1:] == [
        "# TYPE trainvitals_loss gauge", 'trainvitals_loss{optimizer="0",rank="0",run="one"} 2.5', "# EOF",
    ]  # fmt: skip


def test_filter_by_collector(exporter: ExporterProcess) -> None:
    found = names(exporter, "collect[]=runs")
    assert "trainvitals_loss" in found
    assert "trainvitals_exporter_build_info" in found
    assert MEMORY not in found
    health = "name[]=trainvitals_collector_success&collect[]=runs"
    assert b'{collector="memory"}' not in exporter.get("/metrics?" + health)[2]
    assert names(exporter, f"collect[]=memory&name[]={MEMORY}&name[]=trainvitals_loss") == {MEMORY}
    assert names(exporter, "collect[]=memory&collect[]=runs") == names(exporter, "")
    status, _, body = exporter.get("/metrics?collect[]=memory&collect[]=cpu")
    assert (status, body) == (400, b"collect[]: no such collector; there are: memory, runs\n")
