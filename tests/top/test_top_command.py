"""`trainvitals top` as it is started, on real exporters, in a real (pseudo-)terminal."""

from __future__ import annotations

import base64
import fcntl
import http.server
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from trainvitals_exporter.top.sources import HttpSource, Prometheus, SourceError
from trainvitals_exporter.top.watch import Watch

from examples.demo.programs import free_ports
from tests.conftest import wait_until
from tests.exporter.conftest import StartExporter, StartRunFile

NOBODY = "http://127.0.0.1:1"  # nothing listens there
COMMAND = [sys.executable, "-m", "trainvitals.cli", "top"]


def top(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end, without a terminal."""
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **(env or {})}, capture_output=True, text=True, encoding="utf-8",
        stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip


class Terminal:
    """A program on a pseudo-terminal of 80x24, and all that it has written."""

    def __init__(self, *arguments: str, term: str = "xterm-256color", wrapper: tuple[str, ...] = ()) -> None:
        self.master, worker = pty.openpty()
        fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(worker)
        self.worker = worker
        self.process = subprocess.Popen(
            [*(wrapper or COMMAND), *arguments], stdin=worker, stdout=worker, stderr=worker,
            env={**os.environ, "TERM": term}, start_new_session=True,
        )  # fmt: skip
        self.written = b""

    def read(self) -> str:
        while select.select([self.master], [], [], 0.05)[0]:
            self.written += os.read(self.master, 65536)
        return self.written.decode("utf-8", "replace")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.read(), f"{text!r} on the screen")

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self) -> int:
        """The exit code, once it has ended by itself."""
        wait_until(lambda: (self.read(), self.process.poll() is not None)[1], "the end")
        self.read()
        return self.process.returncode


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: str, term: str = "xterm-256color", wrapper: tuple[str, ...] = ()) -> Terminal:
        started.append(Terminal(*arguments, term=term, wrapper=wrapper))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        os.close(each.master)
        os.close(each.worker)


def training(start_run_file: StartRunFile, run: str) -> None:
    """A run file as a training process would leave it."""
    start_run_file(run, "launcher", run).set_state("running")
    (
        start_run_file(run, "rank", run, 0)
        .set("trainvitals_run_start_timestamp_seconds", time.time())
        .set("trainvitals_iterations_total", 1234)
        .set("trainvitals_loss", float("nan"), optimizer="0")
        .set("trainvitals_gradient_norm", 0.625, optimizer="0")
    )


def test_a_real_run_on_a_real_terminal(
    terminal: Callable[..., Terminal], start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    training(start_run_file, "größe-语音")
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs,cpu,memory")
    screen = terminal("--exporter", exporter.url, "--prometheus", NOBODY)
    screen.wait_for("größe-语音")
    screen.wait_for("1 234")
    screen.wait_for("NaN")
    screen.press("\r")
    screen.wait_for("Ranks")
    screen.press("q")
    assert screen.end() == 0
    assert termios.tcgetattr(screen.worker) == screen.before
    assert "\x1b[?1049h" in screen.read()
    assert screen.read().rindex("\x1b[?1049l") > screen.read().rindex("\x1b[?1049h")
    assert screen.read().rindex("\x1b[?25h") > screen.read().rindex("\x1b[?25l")


def test_an_exporter_that_stops_and_comes_back_is_told_and_freezes_nothing(
    terminal: Callable[..., Terminal], start_exporter: StartExporter, run_dir: Path
) -> None:
    (port,) = free_ports(1)
    arguments = ("--run-dir", str(run_dir), "--collectors", "runs,memory", "--listen", f"127.0.0.1:{port}")
    exporter = start_exporter(*arguments)
    screen = terminal("--exporter", exporter.url, "--prometheus", NOBODY)
    screen.wait_for("no runs here")
    exporter.stop()
    screen.wait_for("no answer for")
    screen.press("?")
    screen.wait_for("choose a run")
    screen.press("?")
    at = len(screen.read())
    start_exporter(*arguments)
    wait_until(lambda: "●" in screen.read()[at:], "the exporter's return")
    screen.press("q")
    assert screen.end() == 0


def test_one_screen_as_text(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path) -> None:
    training(start_run_file, "[red]tts\x1b[2J")
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs,memory")
    done = top("--once", "--exporter", exporter.url)
    assert done.returncode == 0, done.stderr
    assert "[red]tts\\x1b[2J" in done.stdout
    assert "1 234" in done.stdout
    assert "NaN" in done.stdout
    assert "\x1b" not in done.stdout
    in_ascii = top("--once", "--exporter", exporter.url, env={"PYTHONIOENCODING": "ascii"})
    assert in_ascii.stdout.isascii()
    assert "RAM" in in_ascii.stdout


def test_without_an_exporter_it_reads_by_itself(start_run_file: StartRunFile, run_dir: Path) -> None:
    training(start_run_file, "alone")
    script = (
        "import sys; from trainvitals_exporter.top import command as c; "
        f"c.DEFAULT_EXPORTER = {NOBODY!r}; sys.exit(c.command(['--once']))"
    )
    env = {**os.environ, "TRAINVITALS_EXPORTER_RUN_DIR": str(run_dir), "TRAINVITALS_EXPORTER_COLLECTORS": "runs,memory"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "no exporter here: read by this program itself" in done.stdout
    assert "alone" in done.stdout
    assert done.stderr == ""


def test_an_exporter_that_was_named_and_does_not_answer() -> None:
    done = top("--once", "--exporter", NOBODY)
    assert done.returncode == 1
    assert "127.0.0.1:1: no answer for 0s: connection refused" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exporter", "ftp://host"], "is no address"),
        (["--exporter", "http://host:99999"], "Port out of range"),
        (["--interval", "0"], "is not a number of seconds"),
        (["--prometheus", "http://"], "is no address"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    done = top("--once", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_terminal() -> None:
    done = top()
    assert done.returncode == 2
    assert "this is no terminal; --once prints one screen as text" in done.stderr


def test_a_terminal_that_cannot_be_drawn_on(terminal: Callable[..., Terminal]) -> None:
    screen = terminal(term="dumb")
    assert screen.end() == 2
    assert "this terminal (TERM=dumb) cannot be drawn on" in screen.read()


def test_without_the_extra(terminal: Callable[..., Terminal]) -> None:
    script = (
        "import importlib.util as u, sys; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'textual' else real(name, *a); "
        "sys.modules['textual'] = sys.modules['rich'] = None; "
        "from trainvitals.cli import main; sys.exit(main(['top']))"
    )
    screen = terminal(wrapper=(sys.executable, "-c", script))
    assert screen.end() == 2
    assert "pip install 'textual>=8'" in screen.read()
    assert "Traceback" not in screen.read()


class _Server(http.server.ThreadingHTTPServer):
    """Answers with `body` to whom knows the password; at /hang, never; at /away, elsewhere."""

    daemon_threads = True
    body = b""

    class Handler(http.server.BaseHTTPRequestHandler):
        server: _Server

        def do_GET(self) -> None:
            if self.path == "/hang":
                time.sleep(60)
                return
            known = self.headers["Authorization"] == "Basic " + base64.b64encode("ada:löve".encode()).decode()
            self.send_response(302 if self.path == "/away" else 200 if known else 401)
            if self.path == "/away":
                self.send_header("Location", "/metrics")
            self.send_header("Content-Length", str(len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, format: str, *args: object) -> None:
            pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Server.Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_user_and_password(server: _Server) -> None:
    server.body = b"trainvitals_host_load1 2.5\n"
    port = server.server_port
    in_address = HttpSource(f"http://ada:l%C3%B6ve@127.0.0.1:{port}")
    assert in_address.fetch().samples.value("host_load1") == 2.5
    assert in_address.name == f"127.0.0.1:{port}"
    assert HttpSource(f"127.0.0.1:{port}", "ada", "löve").fetch().samples.value("host_load1") == 2.5
    with pytest.raises(SourceError, match="HTTP 401"):
        HttpSource(f"127.0.0.1:{port}").fetch()
    with pytest.raises(SourceError, match="HTTP 302"):
        HttpSource(f"http://127.0.0.1:{port}/away", "ada", "löve").fetch()


@pytest.mark.parametrize("body", [b"", b"<html>", b"trainvitals_loss{ nonsense", b"\xff\xfe\x00", b"go_goroutines 3\n"])
def test_what_is_no_exporter_is_said_so(server: _Server, body: bytes) -> None:
    server.body = body
    with pytest.raises(SourceError, match=r"no .*exporter"):
        HttpSource(f"127.0.0.1:{server.server_port}", "ada", "löve").fetch()


def test_a_source_that_hangs_holds_up_nothing(server: _Server) -> None:
    hangs = HttpSource(f"http://127.0.0.1:{server.server_port}/hang")
    watch = Watch([hangs], Prometheus(NOBODY), 0.2, strict=False)
    watch.start()
    begun = time.monotonic()
    picture = watch.picture()
    assert time.monotonic() - begun < 4  # the request takes five
    assert picture.machines == ()
    source = wait_until(
        lambda: next((s for s in watch.picture().sources if s.silence is not None), None), "its silence"
    )
    assert source.error == ""  # told before the request has run out of time
    watch.stop()


def test_alerts(server: _Server) -> None:
    def alert(name: str, state: str) -> dict[str, object]:
        return {"labels": {"alertname": name, "run": "tts"}, "annotations": {"summary": "s"}, "state": state,
                "activeAt": "2026-01-01T00:00:00Z"}  # fmt: skip

    server.body = json.dumps({"data": {"alerts": [alert("Pending", "pending"), alert("Firing", "firing")]}}).encode()
    source = Prometheus(f"http://127.0.0.1:{server.server_port}", "ada", "löve")
    assert [(each.name, each.state, each.run) for each in source.fetch()] == [
        ("Firing", "firing", "tts"), ("Pending", "pending", "tts")]  # fmt: skip
    server.body = b'{"data": []}'
    with pytest.raises(SourceError, match="no Prometheus"):
        source.fetch()


def test_ctrl_c_quits(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("--exporter", NOBODY, "--prometheus", NOBODY)
    screen.wait_for("no answer for")
    screen.press("\x03")
    assert screen.end() == 0
