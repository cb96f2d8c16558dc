"""`trainvitals stack`, from the wheel in an environment of its own, with real programs; of Docker only its client."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from trainvitals import rundir

from examples.demo.programs import free_ports
from tests.conftest import tool, wait_until
from tests.test_compose import compose_client
from tests.test_stack_packaging import build, needed

REPOSITORY = Path(__file__).parents[1]
PARTS = ("exporter", "prometheus", "alertmanager", "grafana")
STATE, MANIFEST = ".trainvitals-stack-state.json", ".trainvitals-stack.json"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel and what it depends on, and no PyTorch."""
    folder = tmp_path_factory.mktemp("environment")
    wheel = build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel"))
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, env={**os.environ, "PYTHONPATH": ""})
    (packages,) = folder.glob("lib/python3*/site-packages")
    for module in ("prometheus_client", "psutil", "pynvml", "yaml", "bcrypt"):
        found = find_spec(module)
        assert found is not None
        assert found.origin is not None
        path = Path(found.origin)
        path = path.parent if path.name == "__init__.py" else path
        (packages / path.name).symlink_to(path)
    return python


@dataclass
class Stack:
    """The command line on one folder."""

    python: Path
    folder: Path
    environment: dict[str, str]

    def popen(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python.parent / "trainvitals", "stack", *arguments, self.folder],
            env={**self.environment, **variables}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """Run to the end; returns what it says."""
        with self.popen(*arguments, **variables) as process:
            out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"{out}\n{err}"
        assert "Traceback" not in err
        return out + err

    def status(self, code: int = 0) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.run("status", "--json", code=code))
        assert content["well"] == (code == 0)
        return content

    def pids(self) -> dict[str, int]:
        return {part["part"]: part["pid"] for part in self.status()["parts"] if part["pid"]}

    def leftovers(self) -> list[str]:
        """Processes that were started from the folder, or serve on one of the ports."""
        marks = [str(self.folder), *(f"127.0.0.1:{self.environment[f'TRAINVITALS_{p.upper()}_PORT']}" for p in PARTS)]
        lines = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if process.info["status"] != psutil.STATUS_ZOMBIE and any(mark in line for mark in marks):
                lines.append(line)
        return lines

    def ask(self, path: str, part: str = "prometheus") -> Any:
        port = self.environment[f"TRAINVITALS_{part.upper()}_PORT"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return json.loads(response.read())


def new_stack(python: Path, folder: Path) -> Stack:
    """A stack with ports and a run directory of its own, in a machine without Docker."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("TRAINVITALS_", "PYTHONPATH", "XDG_"))}  # fmt: skip
    ports = {f"TRAINVITALS_{part.upper()}_PORT": str(port) for part, port in zip(PARTS, free_ports(4), strict=True)}
    path = os.pathsep.join(
        each for each in os.environ["PATH"].split(os.pathsep) if not shutil.which("docker", path=each)
    )
    environment |= {**ports, rundir.ENVIRONMENT: str(folder.parent / f"runs-of-{folder.name}"), "PATH": path,
                    "HOME": str(folder.parent)}  # fmt: skip
    return Stack(python, folder, environment)


@pytest.fixture
def stack(python: Path, tmp_path: Path) -> Iterator[Stack]:
    made = new_stack(python, tmp_path / "stack")
    yield made
    if (made.folder / STATE).exists():
        made.run("down")
    assert made.leftovers() == []


def script(folder: Path, name: str, text: str) -> Path:
    """An executable Python script in a folder, that takes the place of a program on PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


def before_path(stack: Stack, folder: Path) -> str:
    return f"{folder}{os.pathsep}{stack.environment['PATH']}"


# What stands in for Grafana tells how it was started; what a real one makes of that is not tested here.
GRAFANA = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"version": "13.0.0", "arguments": sys.argv[1:], "environment": dict(os.environ)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
address = (os.environ["GF_SERVER_HTTP_ADDR"], int(os.environ["GF_SERVER_HTTP_PORT"]))
http.server.HTTPServer(address, Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def running(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that one test after the other starts, changes and looks at."""
    tool("prometheus"), tool("alertmanager", "prometheus-alertmanager")
    machine = tmp_path_factory.mktemp("machine")
    made = new_stack(python, machine / "stack")
    script(machine / "bin", "grafana", GRAFANA)
    made.environment["PATH"] = before_path(made, machine / "bin")
    said = made.run("up")
    assert "prometheus    ready at http://127.0.0.1:" in said
    assert "targets up    3 of 3" in said
    yield made
    made.run("down")
    assert made.leftovers() == []


# ---- write


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another_version(stack: Stack, tmp_path: Path) -> Path:
    """A copy of the installation, to be changed; its files for the stack."""
    (packages,) = stack.python.parents[1].glob("lib/python3*/site-packages")
    for name in ("trainvitals", "trainvitals_exporter"):
        shutil.copytree(packages / name, tmp_path / "other" / name)
    return tmp_path / "other" / "trainvitals_exporter" / "stack" / "files"


def test_write_gives_the_files_and_the_code_for_the_image(stack: Stack) -> None:
    stack.run("write")
    written = tree(stack.folder)
    assert needed() < set(written)
    for name in (*needed(), "hooks/trainvitals/rundir.py", "exporter/trainvitals_exporter/collectors/nvidia/device.py"):
        assert written[name] == (REPOSITORY / name).read_bytes(), name
    assert not [name for name in written if "/stack/files/" in name or "__pycache__" in name]
    assert stack.folder.stat().st_mode & 0o777 == 0o700, "secrets lie in it"
    assert (stack.folder / "prometheus" / "rules").stat().st_mode & 0o777 == 0o755, "containers have to read it"


def test_the_checkout_writes_what_the_wheel_does(stack: Stack, tmp_path: Path) -> None:
    stack.run("write")
    command = [sys.executable, "-m", "trainvitals.cli", "stack", "write", str(tmp_path / "from-checkout")]
    subprocess.run(command, check=True, capture_output=True)
    assert tree(tmp_path / "from-checkout") == tree(stack.folder)


def test_docker_s_own_client_accepts_the_written_compose_file(stack: Stack) -> None:
    stack.run("write")
    done = subprocess.run(
        [*compose_client(), "config"], cwd=stack.folder, env=stack.environment | {"PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, service in yaml.safe_load(done.stdout)["services"].items():
        for volume in service["volumes"]:
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith(str(stack.folder)):
                assert Path(source).exists(), (name, source)
        if "build" in service:
            assert (Path(service["build"]["context"]) / service["build"]["dockerfile"]).is_file()


def test_write_again_changes_nothing(stack: Stack) -> None:
    stack.run("write")
    before = {path: path.stat().st_mtime_ns for path in stack.folder.rglob("*") if path.is_file()}
    assert "up to date" in stack.run("write")
    after = {path: path.stat().st_mtime_ns for path in stack.folder.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after.get(path)} <= {".trainvitals-stack.lock"}


def test_what_the_user_changed_is_left_alone_until_they_say_otherwise(stack: Stack, tmp_path: Path) -> None:
    stack.run("write")
    mine = stack.folder / "prometheus" / "rules" / "memory.yml"
    mine.write_text("groups: []\n")
    (stack.folder / "prometheus" / "rules" / "my-own.yml").write_text("groups: []\n")
    (stack.folder / "prometheus" / "rules" / "host.yml").unlink()
    files = another_version(stack, tmp_path)
    (files / "prometheus" / "rules" / "memory.yml").write_text("groups: [] # newer\n")
    (files / "prometheus" / "rules" / "maths.yml").write_text("groups: [] # newer\n")
    (files / "grafana" / "import" / "gpu.json").unlink()
    (files / "grafana" / "import" / "host.json").unlink()
    (stack.folder / "grafana" / "import" / "host.json").write_text("{}")

    said = stack.run("write", PYTHONPATH=str(tmp_path / "other"))
    written = tree(stack.folder)
    assert written["prometheus/rules/memory.yml"] == b"groups: []\n"
    assert "left alone, since you changed it: prometheus/rules/memory.yml" in said
    assert written["prometheus/rules/maths.yml"] == b"groups: [] # newer\n"
    assert written["prometheus/rules/my-own.yml"] == b"groups: []\n"
    assert "prometheus/rules/host.yml" in written, "a deleted file comes back"
    assert "grafana/import/gpu.json" not in written
    assert written["grafana/import/host.json"] == b"{}"
    assert "--force" in said

    said = stack.run("write", "--force", PYTHONPATH=str(tmp_path / "other"))
    written = tree(stack.folder)
    assert written["prometheus/rules/memory.yml"] == b"groups: [] # newer\n"
    assert written["prometheus/rules/memory.yml.bak"] == b"groups: []\n"
    assert written["prometheus/rules/my-own.yml"] == b"groups: []\n"
    assert "memory.yml.bak" in said


def test_an_interrupted_upgrade_goes_on(stack: Stack, tmp_path: Path) -> None:
    stack.run("write")
    files = another_version(stack, tmp_path)
    for name in ("advice.yml", "maths.yml"):
        (files / "prometheus" / "rules" / name).write_text("groups: [] # newer\n")
    # In the way of the second of both.
    (stack.folder / "prometheus" / "rules" / "maths.yml").unlink()
    (stack.folder / "prometheus" / "rules" / "maths.yml").mkdir()
    stack.run("write", code=1, PYTHONPATH=str(tmp_path / "other"))
    (stack.folder / "prometheus" / "rules" / "maths.yml").rmdir()
    assert "left alone" not in stack.run("write"), "back to the first version: nothing was the user's"
    assert "left alone" not in stack.run("write", PYTHONPATH=str(tmp_path / "other"))
    assert tree(stack.folder)["prometheus/rules/maths.yml"] == b"groups: [] # newer\n"


def test_a_damaged_manifest_loses_nothing(stack: Stack) -> None:
    stack.run("write")
    (stack.folder / MANIFEST).write_text("{")
    (stack.folder / "compose.yaml").write_text("mine")
    assert "--force" in stack.run("write", code=1)
    stack.run("write", "--force")
    assert tree(stack.folder)["compose.yaml.bak"] == b"mine"


def test_a_folder_that_is_no_place_for_it(stack: Stack, tmp_path: Path) -> None:
    stack.folder.mkdir()
    (stack.folder / "thesis.txt").write_text("mine")
    for command in ("write", "up"):
        said = stack.run(command, code=2)
        assert "thesis.txt" in said
    assert tree(stack.folder) == {"thesis.txt": b"mine"}
    stack.folder = stack.folder / "thesis.txt"
    assert "is not a folder" in stack.run("write", code=2)
    stack.folder = REPOSITORY
    in_checkout = [sys.executable, "-m", "trainvitals.cli", "stack", "up", str(REPOSITORY)]
    done = subprocess.run(in_checkout, capture_output=True, text=True, check=False)
    assert (done.returncode, "source of trainvitals" in done.stderr) == (2, True)
    stack.folder = Path("/proc/trainvitals")
    assert "cannot use /proc/trainvitals" in stack.run("write", code=1)
    stack.folder = tmp_path / "stack"


def test_choices_may_be_there_first(stack: Stack) -> None:
    (stack.folder / "secrets").mkdir(parents=True)
    (stack.folder / ".env").write_text("TRAINVITALS_ALERT_LANGUAGE=zh\n")
    stack.run("write")
    assert tree(stack.folder)[".env"] == b"TRAINVITALS_ALERT_LANGUAGE=zh\n"


# ---- native, in this order


def series(stack: Stack, query: str) -> list[Any]:
    found = stack.ask(f"/api/v1/query?{urllib.parse.urlencode({'query': query})}")
    return list(found["data"]["result"])


def test_a_run_arrives_in_prometheus(running: Stack) -> None:
    command = [str(running.python.parent / "trainvitals"), "run", "--name", "seen", "--", "sleep", "60"]
    with subprocess.Popen(command, env=running.environment) as process:
        wait_until(lambda: series(running, 'trainvitals_run_state{run="seen"} == 1'), "the run in Prometheus")
        process.terminate()


def test_status_tells_parts_versions_and_what_prometheus_knows(running: Stack) -> None:
    status = running.status()
    parts = {part["part"]: part for part in status["parts"]}
    assert [parts[name]["state"] for name in PARTS] == ["up"] * 4
    version = subprocess.run([tool("prometheus"), "--version"], capture_output=True, text=True, check=True)
    assert parts["prometheus"]["version"] in version.stdout + version.stderr
    assert parts["exporter"]["version"] == "0.1.0"
    assert parts["alertmanager"]["address"].endswith(running.environment["TRAINVITALS_ALERTMANAGER_PORT"])
    known = status["monitoring"]
    assert (known["targets"], known["targets_down"], known["rules_failing"], known["alertmanagers"]) == (3, {}, {}, 1)
    groups = [yaml.safe_load(path.read_text())["groups"] for path in (REPOSITORY / "prometheus" / "rules").iterdir()]
    assert known["rules"] == sum(len(group["rules"]) for file in groups for group in file)
    assert "targets up    3 of 3" in running.run("status")


def test_grafana_is_started_like_in_compose(running: Stack) -> None:
    found = running.ask("/api/health", "grafana")
    settings = found["environment"]
    assert found["arguments"][0] == "server"
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert settings["PROMETHEUS_URL"] == f"http://127.0.0.1:{running.environment['TRAINVITALS_PROMETHEUS_PORT']}"
    home = Path(settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    (provider,) = yaml.safe_load(
        (Path(settings["GF_PATHS_PROVISIONING"]) / "dashboards" / "trainvitals.yml").read_text()
    )["providers"]
    assert home.is_file()
    assert home.parent == Path(provider["options"]["path"]) == running.folder / "grafana" / "dashboards"


def test_up_again_starts_nothing_twice(running: Stack) -> None:
    before = running.pids()
    said = running.run("up")
    assert running.pids() == before
    assert said.count("runs already") == 4


def test_up_again_reloads_changed_rules_and_tells_of_bad_ones(running: Stack) -> None:
    before = running.pids()
    mine = running.folder / "prometheus" / "rules" / "mine.yml"
    mine.write_text("groups: [{name: mine, rules: [{record: 'my:rule', expr: vector(1)}]}]")
    assert "prometheus    has reloaded" in running.run("up")
    assert "mine" in [group["name"] for group in running.ask("/api/v1/rules")["data"]["groups"]]
    mine.write_text("groups: [{name: mine, rules: [{record: 'my:rule', expr: '('}]}]")
    said = running.run("up", code=1)
    assert "prometheus goes on with its old files" in said
    assert "mine.yml" in said
    mine.unlink()
    running.run("up")
    assert "mine" not in [group["name"] for group in running.ask("/api/v1/rules")["data"]["groups"]]
    assert running.pids() == before


def test_another_channel_starts_alertmanager_alone_again(running: Stack) -> None:
    before = running.pids()
    (running.folder / ".env").write_text(
        "# mine\nTRAINVITALS_ALERT_CHANNEL='slack'\nTRAINVITALS_ALERT_LANGUAGE=zh # Chinese\n"
    )
    (running.folder / "secrets" / "slack_url").write_text("http://127.0.0.1:9/")
    running.run("up")
    after = running.pids()
    assert {part for part in before if before[part] != after[part]} == {"alertmanager"}
    config = running.ask("/api/v2/status", "alertmanager")["config"]["original"]
    assert f"{running.folder}/secrets/slack_url" in config
    assert "zh.tmpl" in config


def test_what_alertmanager_would_refuse_does_not_end_the_one_that_runs(running: Stack, tmp_path: Path) -> None:
    refused = tmp_path / "alertmanager"
    shutil.copytree(running.folder / "prometheus" / "alertmanager", refused)
    (refused / "en" / "email.yml").write_text("route: {receiver: missing}\n")
    env = {"TRAINVITALS_ALERTMANAGER_CONFIG": str(refused), "TRAINVITALS_ALERT_CHANNEL": "email",
           "TRAINVITALS_ALERT_LANGUAGE": "en"}  # fmt: skip
    said = running.run("up", code=1, **env)
    assert "undefined receiver" in said
    assert "it was not touched" in said
    running.run("status")


def test_a_secret_that_is_missing_and_a_misspelt_variable_are_told(running: Stack) -> None:
    settings = running.folder / ".env"
    before = settings.read_text()
    secret = running.folder / "secrets" / "slack_url"
    secret.unlink()
    assert f"needs the secret {secret}" in running.run("up")
    secret.write_text("http://127.0.0.1:9/")
    assert "needs the secret" not in running.run("up")
    settings.write_text(before + "TRAINVITALS_ALERT_CHANEL=email\n")
    assert "is TRAINVITALS_ALERT_CHANNEL meant?" in running.run("up", code=2)
    settings.write_text(before)


def test_a_wrong_choice_is_told(running: Stack) -> None:
    said = running.run("up", code=2, TRAINVITALS_ALERT_CHANNEL="pigeon")
    assert "pigeon.yml" in said
    assert "telegram" in said
    assert "no port" in running.run("up", code=2, TRAINVITALS_GRAFANA_PORT="http")


@pytest.mark.parametrize("arguments", [["up", "~nobody-of-that-name/x"], ["test-alert", "--timeout", "nan"]])
def test_bad_arguments_are_usage_errors(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "trainvitals.cli", "stack", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_what_died_is_seen_and_started_again_alone(running: Stack) -> None:
    before = running.pids()
    os.kill(before["alertmanager"], signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(before["alertmanager"])
               or psutil.Process(before["alertmanager"]).status() == psutil.STATUS_ZOMBIE, "the end of it")  # fmt: skip
    status = running.status(code=1)
    assert [part["part"] for part in status["parts"] if part["state"] == "down"] == ["alertmanager"]
    running.run("up")
    after = running.pids()
    assert {part for part in before if before[part] != after[part]} == {"alertmanager"}


def test_only_one_at_a_time(running: Stack) -> None:
    with (running.folder / ".trainvitals-stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in ("up", "down", "write"):
            assert "another `trainvitals stack`" in running.run(command, code=1)


# What stands in for docker writes down how it was called, and passes a signal on to the real Prometheus.
DOCKER = """
import json, os, signal, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd()}) + "\\n")
if "ls" in sys.argv:
    print(os.environ.get("STACKS", "[]"))
if "kill" in sys.argv:
    os.kill(int(os.environ["PROMETHEUS_PID"]), signal.SIGHUP)
if sys.argv[2:3] == [os.environ.get("FAIL")]:
    sys.exit(17)
"""


def test_with_an_engine_docker_compose_starts_it(running: Stack, tmp_path: Path) -> None:
    # The programs that run already answer in place of the containers.
    script(tmp_path / "bin", "docker", DOCKER)
    stack = Stack(running.python, tmp_path / "stack", {
        **running.environment, "PATH": before_path(running, tmp_path / "bin"), "CALLS": str(tmp_path / "calls"),
        "PROMETHEUS_PID": str(running.pids()["prometheus"]),
    })  # fmt: skip

    def calls() -> list[list[str]]:
        lines = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        (tmp_path / "calls").unlink()
        assert {call["folder"] for call in lines if call["arguments"][0] == "compose"} <= {
            str(stack.folder),
            str(Path.cwd()),
        }
        return [call["arguments"] for call in lines]

    up = ["compose", "up", "--build", "--detach", "--wait", "--remove-orphans"]
    said = stack.run("up")
    others = ["compose", "ls", "--all", "--format", "json"]
    assert calls() == [["info"], ["compose", "version"], others, up]
    (stack.folder / "prometheus" / "rules" / "mine.yml").write_text("groups: []")
    said = stack.run("up")
    assert calls() == [others, up, ["compose", "kill", "--signal", "SIGHUP", "prometheus"]]
    assert "prometheus    has reloaded" in said
    assert [part["state"] for part in stack.status()["parts"]] == ["up"] * 4
    elsewhere = json.dumps([{"Name": "stack", "ConfigFiles": "/home/ben/stack/compose.yaml"}])
    assert "from /home/ben/stack/compose.yaml" in stack.run("up", code=1, STACKS=elsewhere), (
        "it is not recreated as ours"
    )
    assert calls() == [others]
    assert "runs the other way" in stack.run("up", "--native", code=2)
    stack.run("down")
    assert calls() == [["compose", "down", "--remove-orphans"]]
    stack.run("down")
    assert not (tmp_path / "calls").exists(), "nothing was left to stop"

    said = stack.run("up", code=1, FAIL="up")
    assert "docker compose could not start" in said
    assert calls()[-1] == ["compose", "down", "--remove-orphans"]
    stack.run("down", "--delete-data")
    assert calls() == [["compose", "down", "--remove-orphans", "--volumes"]], "the volumes of what was stopped before"


def test_down_keeps_the_data_unless_told_otherwise(running: Stack) -> None:
    data = running.folder / "native" / "data" / "prometheus"
    said = running.run("down")
    assert said.count("stopped") == 4
    assert running.leftovers() == []
    assert (data / "wal").is_dir()
    assert "nothing" in running.run("down")
    running.run("down", "--delete-data")
    assert not data.exists()
    assert (running.folder / "compose.yaml").exists()


def test_a_taken_port_is_told_with_its_holder_and_nothing_starts(stack: Stack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(stack.environment["TRAINVITALS_PROMETHEUS_PORT"])))
        taken.listen()
        said = stack.run("up", code=1)
    assert f"(pid {os.getpid()})" in said
    assert "TRAINVITALS_PROMETHEUS_PORT=" in said
    assert "starting" not in said.replace("starting programs", "")
    assert stack.leftovers() == []


def test_what_cannot_start_takes_the_others_with_it(stack: Stack, tmp_path: Path) -> None:
    script(tmp_path / "bin", "alertmanager", "import sys; sys.exit('no room')")
    said = stack.run("up", code=1, PATH=before_path(stack, tmp_path / "bin"))
    assert "alertmanager ended; its last words:" in said
    assert "no room" in said
    assert stack.leftovers() == []
    assert "nothing runs" in stack.run("status", code=1)
    assert "grafana       is not on PATH" in said


def test_ctrl_c_ends_what_up_had_started(stack: Stack, tmp_path: Path) -> None:
    script(tmp_path / "bin", "alertmanager", "import time; time.sleep(600)")  # never answers
    with stack.popen("up", PATH=before_path(stack, tmp_path / "bin")) as process:
        assert process.stdout is not None
        while "exporter      ready" not in process.stdout.readline():
            assert process.poll() is None
        assert len(stack.leftovers()) > 2
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert stack.leftovers() == []


def test_a_process_that_took_the_number_of_an_ended_one_is_not_killed(stack: Stack) -> None:
    stack.run("write")
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as bystander:
        process = {
            "pid": bystander.pid,
            "started": 1,
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        }
        (stack.folder / STATE).write_text(json.dumps({
            "way": "native", "addresses": {"prometheus": "http://127.0.0.1:1"}, "processes": {"prometheus": process},
            "commands": {"prometheus": ""}, "configurations": {},
        }))  # fmt: skip
        stack.run("down")
        time.sleep(0.2)
        assert bystander.poll() is None
        bystander.kill()
