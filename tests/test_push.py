"""`trainvitals push` on real Prometheus servers, VictoriaMetrics and Pushgateway; misbehaving ones are stood in for."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from examples.demo.programs import free_ports
from tests.conftest import newer_tool, tool, wait_until
from tests.exporter.exporter_process import RunFileProcess

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "prometheus" / "rules"
Start = Callable[..., "Pusher"]


class Pusher:
    """A `trainvitals push` of one host's runs, every second."""

    def __init__(self, run_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.log_file = run_dir.parent / f"push-{time.monotonic_ns()}.log"
        self.run_dir = run_dir
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-c", "import sys; from trainvitals_exporter.push.command import command; "
                    "sys.exit(command(sys.argv[1:]))", "--interval", "1", "--instance", "notebook",
                    "--run-dir", str(run_dir), "--collectors", "runs", *arguments,
                ],
                stderr=log, env={**os.environ, **(env or {})},
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def logged(self, text: str) -> None:
        wait_until(lambda: text in self.log, f"push says {text!r}; it said {self.log!r}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir(mode=0o700)
    return tmp_path / "runs"


@pytest.fixture
def push(run_dir: Path) -> Iterator[Start]:
    started: list[Pusher] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Pusher:
        started.append(Pusher(run_dir, *arguments, env=env))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.fixture
def training(run_dir: Path) -> Iterator[Callable[[str], tuple[RunFileProcess, RunFileProcess]]]:
    """Starts a run of one rank: its launcher and its rank."""
    started: list[RunFileProcess] = []

    def start(name: str) -> tuple[RunFileProcess, RunFileProcess]:
        launcher = RunFileProcess(run_dir, name, "launcher")
        rank = RunFileProcess(run_dir, name, "rank", rank=0)
        launcher.set("trainvitals_run_start_timestamp_seconds", time.time())
        started.extend((launcher, rank))
        return launcher, rank

    yield start
    for each in started:
        each.end()


@contextlib.contextmanager
def server(*command: str, port: int | None = None, ready: str = "/-/ready") -> Iterator[str]:
    """A program that listens on `{}`; yields its address once it answers."""
    port = port or free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([part.replace("{}", str(port)) for part in command], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: process.poll() is None and answers(url + ready), f"{Path(command[0]).name} answers")
            yield url
        finally:
            process.terminate()


def prometheus(program: str, folder: Path, *, rules: Sequence[Path] = (), scrape: Sequence[Any] = ()) -> list[str]:
    """The command of a Prometheus that takes remote write."""
    configuration = {
        "global": {"evaluation_interval": "1s", "scrape_interval": "1s"},
        "rule_files": [str(file) for file in rules],
        "scrape_configs": list(scrape),
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    return [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:{}", "--web.enable-remote-write-receiver",
    ]  # fmt: skip


def victoria_metrics(folder: Path) -> list[str]:
    return [
        newer_tool("victoria-metrics"), f"-storageDataPath={folder / 'vm'}", "-httpListenAddr=127.0.0.1:{}",
        "-search.latencyOffset=0s", "-inmemoryDataFlushInterval=1s",
    ]  # fmt: skip


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def query(url: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each series."""
    arguments = {"query": expression, "nocache": "1", "time": f"{time.time():.3f}"}
    result = fetch(f"{url}/api/v1/query?{urllib.parse.urlencode(arguments)}")["data"]["result"]
    return [(each["metric"], float(each["value"][1])) for each in result]


def alerts(url: str) -> dict[str, dict[str, Any]]:
    """The firing alerts by name."""
    return {
        alert["labels"]["alertname"]: alert
        for alert in fetch(url + "/api/v1/alerts")["data"]["alerts"]
        if alert["state"] == "firing"
    }


# ---- remote write, received by the real ones


def databases(folder: Path, name: str) -> list[str]:
    rules = sorted(RULES.glob("*.yml"))
    if name == "victoria-metrics":
        return victoria_metrics(folder)
    return prometheus(tool(name) if name == "prometheus" else newer_tool("prometheus"), folder, rules=rules)


@pytest.mark.parametrize("database", ["prometheus", "prometheus 3", "victoria-metrics"])
def test_a_run_is_seen_and_ends_at_once(
    database: str, tmp_path: Path, push: Start, training: Callable[[str], tuple[RunFileProcess, RunFileProcess]]
) -> None:
    _, rank = training("voice")
    rank.set("trainvitals_loss", math.nan, optimizer="0")
    for kind in ("spike", "nonfinite"):
        rank.set("trainvitals_loss_anomalies_total", 7, optimizer="0", kind=kind)
        rank.set("trainvitals_gradient_anomalies_total", 0, optimizer="0", kind=kind)
    for bound, count in (("0.1", 3.0), ("0.25", 1.0)):
        rank.set("trainvitals_iteration_seconds_bucket", count, le=bound)
    rank.set("trainvitals_iteration_seconds_sum", 0.7)
    with server(*databases(tmp_path, database)) as url:
        pusher = push("--remote-write", url + "/api/v1/write", "--label", "team=speech")
        of_run = {"job": "trainvitals", "instance": "notebook", "team": "speech"}

        def seen() -> list[tuple[dict[str, str], float]]:
            return query(url, 'trainvitals_run_state{state="running"} == 1')

        [(labels, _)] = wait_until(seen, f"the run is there; {pusher.log}")
        assert labels == {**of_run, "__name__": "trainvitals_run_state", "run": "voice", "state": "running"}
        assert [value for _, value in query(url, 'up{job="trainvitals"}')] == [1]
        assert sorted(value for _, value in query(url, "trainvitals_iteration_seconds_bucket")) == [3, 4, 4]
        quantile = query(url, "histogram_quantile(0.5, sum by (le) (trainvitals_iteration_seconds_bucket))")
        assert 0 < quantile[0][1] < 0.1
        loss = [value for _, value in query(url, "trainvitals_loss")]
        if database == "victoria-metrics":
            assert loss == []  # it keeps no NaN
        else:
            assert math.isnan(loss[0])
            # Of the first counted steps an increase knows nothing: the value itself tells of the NaN within a minute.
            rank.set("trainvitals_loss_anomalies_total", 9, optimizer="0", kind="nonfinite")
            rank.set("trainvitals_loss_anomalies_total", 14, optimizer="0", kind="nonfinite")
            firing = wait_until(lambda: alerts(url).get("TrainingNonFinite"), "the shipped rule fires")
            assert firing["labels"]["run"] == "voice"
            assert "Run voice on notebook" in firing["annotations"]["description"]
        assert pusher.end() == 0
        wait_until(lambda: not query(url, '{job="trainvitals",__name__!~".*:.*|ALERTS.*"}'), "all series are over")
        assert [value for _, value in query(url, "last_over_time(up[5m])")] == [0]
        if database != "victoria-metrics":
            assert "TrainvitalsExporterDown" not in alerts(url)
    assert pusher.log == ""


def test_series_end_when_they_leave_the_page(
    tmp_path: Path, push: Start, training: Callable[[str], tuple[RunFileProcess, RunFileProcess]]
) -> None:
    """As with a scrape: without waiting for the five minutes that a database looks back."""
    launcher, rank = training("short")
    training("long")
    with server(*prometheus(tool("prometheus"), tmp_path)) as url:
        push("--remote-write", url + "/api/v1/write", "--keep-ended", "0")
        wait_until(lambda: len(query(url, 'trainvitals_run_state{state="running"} == 1')) == 2, "two runs are there")
        launcher.set_state("finished")
        rank.end(), launcher.end()
        wait_until(lambda: not query(url, 'trainvitals_run_state{run="short"}'), "the short one is over")
        assert query(url, 'trainvitals_run_state{run="long"}')


def test_the_end_of_a_failed_run_is_told_after_the_pusher_left(
    tmp_path: Path, push: Start, training: Callable[[str], tuple[RunFileProcess, RunFileProcess]]
) -> None:
    with server(*prometheus(tool("prometheus"), tmp_path, rules=sorted(RULES.glob("*.yml")))) as url:
        pusher = push("--remote-write", url + "/api/v1/write", "--until-runs-end")
        launcher, rank = training("doomed")
        training_ended, rank_ended = training("well")
        wait_until(lambda: len(query(url, 'trainvitals_run_state{state="running"} == 1')) == 2, "both are there")
        training_ended.set_state("finished")
        rank_ended.end(), training_ended.end()
        wait_until(lambda: query(url, 'trainvitals_run_state{state="finished"} == 1'), "the good one is over")
        assert pusher.process.poll() is None
        launcher.set_state("failed").set("trainvitals_run_exit_code", 1)
        rank.end(), launcher.end()
        assert pusher.process.wait(60) == 0
        assert query(url, 'trainvitals_run_state{run="well"}') == []
        wait_until(lambda: "TrainingRunFailed" in alerts(url), "the shipped rule fires")
        assert alerts(url)["TrainingRunFailed"]["labels"]["run"] == "doomed"


def test_until_runs_end_waits_for_a_new_run(
    tmp_path: Path, push: Start, training: Callable[[str], tuple[RunFileProcess, RunFileProcess]]
) -> None:
    launcher, rank = training("yesterday")
    launcher.set("trainvitals_run_start_timestamp_seconds", time.time() - 3600).set_state("finished")
    rank.end(), launcher.end()
    with stand_in() as receiver:
        pusher = push("--remote-write", receiver.url + "/api/v1/write", "--until-runs-end")
        wait_until(lambda: len(receiver.requests) > 2, "some pushes arrive")
        assert pusher.process.poll() is None
        # so short that no look falls into it
        launcher, rank = training("crash")
        launcher.set_state("failed")
        rank.end(), launcher.end()
        assert pusher.process.wait(60) == 0


def test_an_outage_is_made_up_for(
    tmp_path: Path, push: Start, training: Callable[[str], tuple[RunFileProcess, RunFileProcess]]
) -> None:
    _, rank = training("voice")
    rank.set("trainvitals_epoch", 1)
    [port] = free_ports(1)
    pusher = push("--remote-write", f"http://127.0.0.1:{port}/api/v1/write")
    pusher.logged("trying again")
    time.sleep(3)
    began = time.time()
    with server(*prometheus(tool("prometheus"), tmp_path), port=port) as url:
        wait_until(lambda: query(url, f"trainvitals_epoch @ {began - 1:.0f}"), "what came before the server is there")
        pusher.logged("takes pushes again")
        assert "lost" not in pusher.log
        assert pusher.end() == 0


NASTY = [
    "plain", "with space", " outer ", 'quote"d', "back\\slash", "\\n", "line\nbreak", "\ttab", "cr\rlf\r\n", "#hash",
    "} 1", '{a="b"}', "a=b,c", "损失/训练", "é", "😀", "\u2028\u0085\x1c", "\x7f", "𝛁" * 50, "NaN", "'", "%2F",
    "\ufeff", "\ufffd",
]  # fmt: skip


@pytest.mark.parametrize("database", ["prometheus", "prometheus 3"])
def test_any_label_arrives_as_it_is(
    database: str, tmp_path: Path, push: Start, training: Callable[[str], tuple[RunFileProcess, RunFileProcess]]
) -> None:
    _, rank = training("voice")
    for number, tag in enumerate([*NASTY, ""]):
        rank.set("trainvitals_scalar", number, tag=tag)
    with server(*databases(tmp_path, database)) as url:
        team = "a\"\\, 损失 😀 'b'" + "x" * 5000
        pusher = push("--remote-write", url + "/api/v1/write", "--label", f"team={team}")
        wait_until(lambda: query(url, "trainvitals_scalar"), f"values arrive; {pusher.log}")
        found = query(url, "trainvitals_scalar")
        assert {labels["team"] for labels, _ in found} == {team}
        assert {labels.get("tag", ""): value for labels, value in found} == {
            tag: number for number, tag in enumerate([*NASTY, ""])
        }


def test_what_is_too_old_is_given_up(tmp_path: Path) -> None:
    """A server that already has newer samples takes these never; those after them it takes."""
    from cramjam import snappy
    from trainvitals_exporter.push.client import Refused
    from trainvitals_exporter.push.remote_write import RemoteWrite
    from trainvitals_exporter.push.sender import Sender

    with server(*prometheus(tool("prometheus"), tmp_path)) as url:
        client, now = plain_client(), int(time.time() * 1000)
        write = RemoteWrite(url + "/api/v1/write", {"job": "j"}, lambda content: bytes(snappy.compress_raw(content)))

        def page(value: float, age_ms: int) -> list[Any]:
            return write.pushes(b"", {'x{a="b"}': value}, now - age_ms)

        client.send(page(1, 9000)[0])
        with pytest.raises(Refused, match=r"400 Bad Request: out of order sample"):
            client.send(page(2, 10_000)[0])
        with pytest.raises(Refused, match=r"400 Bad Request: out of bounds"):
            client.send(page(2, 24 * 3600_000)[0])
        client.send(page(1, 9000)[0])  # the same again, as after an answer that was lost, is no trouble
        sender = Sender(client, url, 10_000)
        sender.put([*page(3, 60_000), *page(4, 5000)])
        sender.start()
        assert sender.finish(page(5, 0), 30)
        assert query(url, "x") == [({"__name__": "x", "a": "b", "job": "j"}, 5.0)]


# ---- servers that misbehave


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    time: float = field(default_factory=time.monotonic)


class StandIn:
    """Answers with the next of `answers` (status, headers, body), and with 200 after the last."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.url = ""
        self.drip = False


@contextlib.contextmanager
def stand_in(*answers: tuple[int, dict[str, str], bytes], tls: trustme.LeafCert | None = None) -> Iterator[StandIn]:
    me = StandIn(*answers)

    class Handler(BaseHTTPRequestHandler):
        def handle_all(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.capitalize(): value for name, value in self.headers.items()}
            me.requests.append(Request(self.command, self.path, headers, body))
            if me.drip:
                with contextlib.suppress(OSError):
                    while me.drip:
                        self.wfile.write(b"H")
                        time.sleep(0.2)
                return
            status, headers, text = me.answers.pop(0) if me.answers else (200, {}, b"")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_PUT = do_GET = do_DELETE = handle_all  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # clients of these tests hang up

    listener = Server(("127.0.0.1", 0), Handler)
    if tls:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.configure_cert(context)
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
    me.url = f"http{'s' if tls else ''}://localhost:{listener.server_address[1]}"
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield me
    finally:
        me.drip = False
        listener.shutdown()
        listener.server_close()


def plain_client() -> Any:
    import ssl

    from trainvitals_exporter.push.client import Client
    from trainvitals_exporter.push.credentials import Credentials

    return Client(Credentials(), ssl.create_default_context(), {})


@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, "no"), (401, "--password-file"), (403, "--bearer-token-file"), (404, "--web.enable-remote-write-receiver"),
     (413, "of this size")],
)  # fmt: skip
def test_what_is_refused_is_not_sent_again(status: int, hint: str, push: Start) -> None:
    with stand_in((status, {}, b"no")) as receiver:
        pusher = push("--remote-write", receiver.url + "/api/v1/write")
        wait_until(lambda: len(receiver.requests) >= 3, "the next pushes are sent all the same")
        pusher.logged("takes pushes again")
        assert len({request.body for request in receiver.requests}) == len(receiver.requests)
        assert re.search(rf"refused: {status} .*{hint}", pusher.log)
        assert re.search(r"; \d+ samples were lost meanwhile", pusher.log)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_given_the_time_it_asks_for(status: int, push: Start) -> None:
    with stand_in((status, {"Retry-After": "3"}, b"slow down")) as receiver:
        pusher = push("--remote-write", receiver.url + "/api/v1/write")
        wait_until(lambda: len(receiver.requests) >= 4, "it goes on")
        first, second, *_ = receiver.requests
        assert second.body == first.body
        assert second.time - first.time >= 2.9
        assert f"{status} " in pusher.log
        assert "lost" not in pusher.log


def test_what_waits_is_bounded_and_the_newest_is_kept() -> None:
    from trainvitals_exporter.push.client import Push
    from trainvitals_exporter.push.sender import Sender

    def pushes(numbers: range, url: str) -> list[Push]:
        return [Push("POST", url, b"%4d" % number + bytes(996), {}, 1) for number in numbers]

    with stand_in((503, {}, b"")) as receiver:
        sender = Sender(plain_client(), "there", 10_000)
        sender.start()
        sender.put(pushes(range(1), receiver.url))
        wait_until(lambda: receiver.requests, "the first was tried")
        sender.put(pushes(range(1, 100), receiver.url))
        assert sender.finish(pushes(range(100, 101), receiver.url), 30)
    assert [int(request.body[:4]) for request in receiver.requests] == [0, *range(91, 101)]


def test_a_redirect_is_not_followed(push: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("very-secret-token\n")
    with stand_in() as elsewhere, stand_in() as receiver:
        receiver.answers = [(301, {"Location": elsewhere.url + "/moved?key=hidden"}, b"")] * 100
        pusher = push("--remote-write", receiver.url + "/w", "--bearer-token-file", str(tmp_path / "token"))
        pusher.logged(f"it redirects to {elsewhere.url}/moved; give that address")
        assert receiver.requests[0].headers["Authorization"] == "Bearer very-secret-token"
        assert elsewhere.requests == []
        assert "hidden" not in pusher.log


def test_a_server_that_answers_drop_by_drop_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainvitals_exporter.push import client
    from trainvitals_exporter.push.client import Push, TryAgain

    monkeypatch.setattr(client, "REQUEST_SECONDS", 1.5)  # each byte comes well within it
    with stand_in() as receiver:
        receiver.drip = True
        with pytest.raises(TryAgain):
            plain_client().send(Push("POST", receiver.url, b"x", {}, 1))
        receiver.drip = False
        plain_client().send(Push("POST", receiver.url, b"x", {}, 1))


def test_secrets_are_sent_and_never_shown(push: Start, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sésame\n")
    basic = "Basic bWU6b3BlbiBzw6lzYW1l"
    with stand_in() as receiver:
        receiver.answers = [(401, {}, f"no: {basic}, open sésame".encode())] * 100
        pusher = push(
            "--remote-write", receiver.url + "/w?key=hidden", "--username", "me",
            "--password-file", str(tmp_path / "password"), "--header", "X-Scope-OrgID: speech",
        )  # fmt: skip
        pusher.logged("refused: 401")
        assert receiver.requests[0].headers["Authorization"] == basic
        assert receiver.requests[0].headers["X-scope-orgid"] == "speech"
        assert receiver.requests[0].path == "/w?key=hidden"
        receiver.answers.clear()  # what it says now is about the password of before
        (tmp_path / "password").write_text("changed")
        wait_until(lambda: receiver.requests[-1].headers["Authorization"] != basic, "a changed password is taken over")
        assert not re.search(r"sésame|bWU6|hidden|changed", pusher.log)


def test_secrets_out_of_the_environment(push: Start) -> None:
    with stand_in() as receiver:
        push("--pushgateway", receiver.url, env={"TRAINVITALS_PUSH_BEARER_TOKEN": "token"})
        wait_until(lambda: receiver.requests, "a push arrives")
        assert receiver.requests[0].headers["Authorization"] == "Bearer token"


def test_certificates_are_checked(push: Start, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    with stand_in(tls=ca.issue_cert("localhost")) as receiver, stand_in(tls=ca.issue_cert("other")) as other:
        trusting = push("--remote-write", receiver.url + "/w", "--ca-file", str(tmp_path / "ca.pem"))
        wait_until(lambda: receiver.requests, "with the authority's certificate it works")
        push("--remote-write", other.url + "/w", "--ca-file", str(tmp_path / "ca.pem")).logged("match")
        taken = len(receiver.requests)
        assert trusting.end() == 0
        taken = len(receiver.requests)
        push("--remote-write", receiver.url + "/w").logged("CERTIFICATE_VERIFY_FAILED")
        assert len(receiver.requests) == taken
        assert other.requests == []


def test_proxies_of_the_environment_are_used(push: Start) -> None:
    with stand_in() as proxy:
        push("--remote-write", "http://monitoring.invalid/w", env={"http_proxy": proxy.url, "no_proxy": ""})
        wait_until(lambda: proxy.requests, "the proxy is asked")
        assert proxy.requests[0].path == "http://monitoring.invalid/w"


def test_the_end_is_soon_even_if_nobody_answers(push: Start) -> None:
    pusher = push("--remote-write", "http://127.0.0.1:1/w")
    pusher.logged("Connection refused; trying again")
    assert pusher.end(signal.SIGINT) == 1
    assert re.search(r"ended before all was pushed; [1-9]\d* samples were lost", pusher.log)


# ---- Pushgateway


@pytest.fixture
def pushgateway(tmp_path: Path) -> Iterator[str]:
    kept = f"--persistence.file={tmp_path / 'pushgateway'}"  # Debian's keeps what it has in /var otherwise
    with server(tool("pushgateway", "prometheus-pushgateway"), "--web.listen-address=127.0.0.1:{}", kept) as url:
        yield url


def test_prometheus_scrapes_what_was_pushed_to_the_gateway(
    pushgateway: str, tmp_path: Path, push: Start,
    training: Callable[[str], tuple[RunFileProcess, RunFileProcess]],
) -> None:  # fmt: skip
    launcher, rank = training("voice")
    rank.set("trainvitals_loss", math.nan, optimizer="0")
    rank.set("trainvitals_iteration_seconds_bucket", 3, le="0.1").set("trainvitals_iteration_seconds_sum", 0.2)
    rank.set("trainvitals_scalar", 1, tag='损失 "x"\\')
    example = yaml.safe_load((ROOT / "deploy" / "pushgateway" / "prometheus.yml").read_text())["scrape_configs"]
    example[0]["static_configs"] = [{"targets": [urllib.parse.urlsplit(pushgateway).netloc]}]
    rules = [*RULES.glob("*.yml"), ROOT / "deploy" / "pushgateway" / "push-rules.yml"]
    with server(*prometheus(tool("prometheus"), tmp_path, rules=rules, scrape=example)) as url:
        pusher = push("--pushgateway", pushgateway, "--instance", "user/notebook", "--delete-at-end")
        [(labels, value)] = wait_until(lambda: query(url, "trainvitals_loss"), f"the loss is there; {pusher.log}")
        assert math.isnan(value)
        assert labels == {
            "__name__": "trainvitals_loss", "job": "trainvitals", "instance": "user/notebook", "run": "voice",
            "rank": "0", "optimizer": "0",
        }  # fmt: skip
        assert [each["tag"] for each, _ in query(url, "trainvitals_scalar")] == ['损失 "x"\\']
        assert query(url, "histogram_quantile(0.5, trainvitals_iteration_seconds_bucket)")[0][1] > 0
        assert wait_until(lambda: alerts(url).get("TrainingNonFinite"), "the shipped rule fires, as after a minute")
        rank.end(), launcher.set_state("finished").end()
        assert pusher.end() == 0
        wait_until(lambda: not query(url, "trainvitals_run_state"), "the group was taken away")
    assert pusher.log == ""


def test_a_group_with_a_failed_run_is_kept(
    pushgateway: str, push: Start, training: Callable[[str], tuple[RunFileProcess, RunFileProcess]]
) -> None:
    launcher, rank = training("voice")
    pusher = push("--pushgateway", pushgateway, "--delete-at-end", "--until-runs-end")

    def groups() -> Any:
        return fetch(pushgateway + "/api/v1/metrics")["data"]

    wait_until(groups, f"a group is there; {pusher.log}")
    launcher.set_state("failed")
    rank.end(), launcher.end()
    assert pusher.process.wait(60) == 0
    [group] = groups()
    assert group["labels"] == {"job": "trainvitals", "instance": "notebook"}
    [state] = [each for each in group["trainvitals_run_state"]["metrics"] if each["labels"]["state"] == "failed"]
    assert state["value"] == "1"


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --remote-write --pushgateway is required"),
        (["--remote-write", "http://a/w", "--pushgateway", "http://a"], "not allowed with argument"),
        (["--remote-write", "http://a"], "Prometheus and VictoriaMetrics take /api/v1/write"),
        (["--remote-write", "file:///etc/passwd"], "no address such as"),
        (["--remote-write", "http://me:hush@a/w"], "everyone on this machine can read a command line"),
        (["--remote-write", "http://a/w", "--delete-at-end"], "--delete-at-end is for --pushgateway"),
        (["--remote-write", "http://a/w", "--interval", "0"], "seconds from 1 to 3600"),
        (["--remote-write", "http://a/w", "--label", "run=x"], "run is a label of trainvitals itself"),
        (["--remote-write", "http://a/w", "--label", "a-b=x"], "is not NAME=VALUE"),
        (["--remote-write", "http://a/w", "--header", "Authorization: Bearer hush"], "see --bearer-token-file"),
        (["--remote-write", "http://a/w", "--username", "me"], "belong together"),
        (["--remote-write", "http://a/w", "--bearer-token-file", "/nowhere"], "cannot read /nowhere"),
        (["--remote-write", "http://a/w", "--ca-file", "/dev/null"], "no certificates"),
        (["--remote-write", "http://a/w", "--collectors", "x"], "unknown collector"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("trainvitals push: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "hush" not in done.stderr


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "cramjam.py").write_text("raise ImportError")
    done = command("--remote-write", "http://a/w", env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert done.returncode == 2
    assert "pip install 'trainvitals[push]'" in done.stderr


def command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainvitals.cli", "push", *arguments], text=True, capture_output=True, timeout=60,
        env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
