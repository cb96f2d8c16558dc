"""Whatever clients do, a good client is served. What they may do is asked over real sockets."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainvitals_exporter.endpoint import channel, listeners, server
from trainvitals_exporter.endpoint.listeners import Address
from trainvitals_exporter.endpoint.server import Server
from trainvitals_exporter.endpoint.web_config import WebConfigFile
from trainvitals_exporter.families import Family

from tests.conftest import wait_until
from tests.exporter.conftest import StartExporter
from tests.exporter.exporter_process import DEADLINE, ExporterProcess, Scrape
from tests.exporter.raw_client import GET, Answer, RawClient

MEMORY = "trainvitals_host_memory_total_bytes"
ATTACKERS = server.MAX_CONNECTIONS * 2


@pytest.fixture
def exporter(start_exporter: StartExporter) -> ExporterProcess:
    return start_exporter("--collectors", "memory")


@pytest.fixture(scope="module")
def lasting_exporter() -> Iterator[ExporterProcess]:
    started = ExporterProcess("--collectors", "memory")
    yield started
    started.stop()


class Shelf:
    """A source of metrics that serves what it is given; `gate` holds up those who render."""

    def __init__(self, body: bytes = b"x 1\n") -> None:
        self.body = body
        self.collectors = ["shelf"]
        self.gate = threading.Event()
        self.gate.set()
        self.rendering = 0

    def ready(self) -> bool:
        return True

    def render(self, content_type: str, names: frozenset[str], only: frozenset[str], more: Iterable[Family]) -> bytes:
        self.rendering += 1
        self.gate.wait()
        return self.body


@contextlib.contextmanager
def serving(shelf: Shelf, web: Path | None = None) -> Iterator[tuple[str, int]]:
    """The address of a server in this process."""
    listener = listeners.listen(Address("127.0.0.1", 0))
    at = listener.getsockname()
    made = Server([listener], shelf, WebConfigFile(web))

    stop, signals = socket.socketpair()
    thread = threading.Thread(target=made.serve, args=(stop,))
    thread.start()
    yield at
    shelf.gate.set()
    signals.send(bytes([signal.SIGTERM]))
    thread.join()
    made.close()
    for end in (stop, signals):
        end.close()


def dropped(scrape: Scrape, reason: str) -> float:
    value = scrape.value("trainvitals_exporter_connections_dropped_total", reason=reason)
    assert value is not None
    return value


def is_well_served(exporter: ExporterProcess) -> bool:
    """Twenty scrapes, one connection each, and as many on one connection."""
    for _ in range(20):
        exporter.scrape()
    client = RawClient(exporter)
    for _ in range(20):
        answer = client.ask(GET)
        assert answer is not None
        assert answer.status == 200
    client.close()
    return True


# What HTTP asks of a server


def test_keep_alive_and_pipelining(exporter: ExporterProcess) -> None:
    client = RawClient(exporter)
    paths = [b"/metrics", b"/nowhere", b"/", b"/-/ready", b"http://host/metrics", b"/%6detrics"]
    client.send(b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths))
    answers = [client.answer() for _ in paths]
    assert [answer.status for answer in answers if answer] == [200, 404, 200, 200, 200, 200]
    assert not client.is_closed()
    assert not any("Connection" in answer.headers for answer in answers if answer)
    last = client.ask(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: TE, close\r\n\r\n")
    assert last is not None
    assert last.headers["Connection"] == "close"
    client.wait_until_closed()


def test_http_1_0(exporter: ExporterProcess) -> None:
    client = RawClient(exporter)
    kept = client.ask(b"GET /metrics HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert kept is not None
    assert (kept.status, kept.headers["Connection"]) == (200, "keep-alive")
    ended = client.ask(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert ended is not None
    assert (ended.status, ended.headers["Connection"]) == (200, "close")
    client.wait_until_closed()


def test_head_says_what_get_would(exporter: ExporterProcess) -> None:
    client = RawClient(exporter)
    for path in (b"/", b"/-/healthy", b"/nowhere", b"/metrics?name[]=" + MEMORY.encode()):
        full = client.ask(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        head = client.ask(b"HEAD %s HTTP/1.1\r\nHost: x\r\n\r\n" % path, has_body=False)
        assert full is not None
        assert head is not None
        assert (full.status, len(full.body)) == (head.status, int(head.headers["Content-Length"]))
        same = [{name: text for name, text in each.headers.items() if name != "Date"} for each in (full, head)]
        assert same[0] == same[1]
        assert full.headers["X-Content-Type-Options"] == "nosniff"
        assert full.headers["Date"].endswith(" GMT")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW", "get"])
def test_other_methods(lasting_exporter: ExporterProcess, method: str) -> None:
    client = RawClient(lasting_exporter)
    answer = client.ask(method.encode() + b" /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
    assert answer is not None
    assert (answer.status, answer.headers["Allow"], answer.headers["Connection"]) == (405, "GET, HEAD", "close")
    client.wait_until_closed()


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 300000\r\n\r\n" + b"GET /metrics HTTP/1.1\r\n" * 13000,
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Content-Length: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n",
    ],
    ids=["long", "chunked", "wrong length", "offered"],
)
def test_a_body_is_never_taken_for_a_request(lasting_exporter: ExporterProcess, body: bytes) -> None:
    client = RawClient(lasting_exporter)
    answer = client.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + body)
    assert answer is not None
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert client.answer() is None


def test_who_sends_before_reading_gets_the_answer(lasting_exporter: ExporterProcess) -> None:
    """The connection is not cut off under a client that is still sending."""
    client = RawClient(lasting_exporter)
    client.socket.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(100):
        client.socket.sendall(b"x" * 1000)
        time.sleep(0.002)
    answer = client.answer()
    assert answer is not None
    assert answer.status == 405


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /metrics HTTP/one\r\nHost: x\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\nhello", 400),
        (b"GET http://[::1/metrics HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /metrics?" + b"&".join([b"a=b"] * 1000) + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /metrics?collect[]=gpus HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),
        (b"GET /\xff\xfe\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    ],
)
def test_malformed_requests(lasting_exporter: ExporterProcess, request_bytes: bytes, status: int) -> None:
    client = RawClient(lasting_exporter)
    answer = client.ask(request_bytes)
    assert answer is not None
    assert answer.version == "HTTP/1.1"
    assert answer.status == status


fragments = st.sampled_from(
    [b"GET ", b"HEAD ", b"/metrics", b" HTTP/1.1", b" HTTP/0.9", b"\r\n", b"\n", b"\r\n\r\n", b"Host: x", b":",
     b"Content-Length: -1", b"Transfer-Encoding: chunked", b"\x00", b" ", b"?name[]=a", b"%", b"Connection: keep-alive",
     b"Accept: application/openmetrics-text;q=", b"Accept-Encoding: gzip", b"Authorization: Basic ", b"\xff" * 9]
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(fragments | st.binary(max_size=40), max_size=20))
def test_any_bytes_get_a_good_answer_or_none(lasting_exporter: ExporterProcess, parts: list[bytes]) -> None:
    client = RawClient(lasting_exporter)
    client.send(b"".join(parts))
    with contextlib.suppress(OSError):
        client.socket.shutdown(socket.SHUT_WR)
    while answer := client.answer(has_body=not any(part.startswith(b"HEAD") for part in parts)):
        assert answer.status in (200, 400, 404, 405, 431, 505)
        if any(part.startswith(b"HEAD") for part in parts):
            break
    client.close()
    assert lasting_exporter.get("/-/healthy")[0] == 200
    assert [line for line in lasting_exporter.log if "listening" not in line] == []


# Those who do not play by the rules


def silent(client: RawClient) -> None:
    """Say nothing."""


def half_a_head(client: RawClient) -> None:
    client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")


def idle(client: RawClient) -> None:
    client.ask(GET)


def deaf(client: RawClient) -> None:
    """Ask for much and read none of it."""
    client.send(GET * 200)


def half_a_body(client: RawClient) -> None:
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhello")


@pytest.mark.parametrize("attack", [silent, half_a_head, idle, deaf, half_a_body])
def test_twice_as_many_as_there_is_room_for(exporter: ExporterProcess, attack: Callable[[RawClient], None]) -> None:
    attackers = []
    for _ in range(ATTACKERS):
        attackers.append(RawClient(exporter))
        attack(attackers[-1])
    assert is_well_served(exporter)
    task = Path(f"/proc/{exporter.process.pid}/task")
    assert len(list(task.iterdir())) < server.MAX_CONNECTIONS + 10
    scrape = exporter.scrape()
    if attack is not half_a_body:  # their connections end by themselves
        assert dropped(scrape, "room") >= ATTACKERS - server.MAX_CONNECTIONS
        assert len([line for line in exporter.log if "each new one ends" in line]) == 1
    assert dropped(scrape, "refused") == 0
    for client in attackers:
        client.close()
    wait_until(lambda: len(list(task.iterdir())) < 10, "the threads end with their connections")
    assert len(list(Path(f"/proc/{exporter.process.pid}/fd").iterdir())) < 20


def test_slow_writers_all_the_time(exporter: ExporterProcess) -> None:
    """Each sends a byte now and then, and comes back at once when it is cut off."""
    stop = threading.Event()

    def drip() -> None:
        clients = [RawClient(exporter) for _ in range(ATTACKERS // 4)]
        while not stop.wait(0.05):
            for place, client in enumerate(clients):
                client.send(b"G")
                if client.is_closed():
                    client.close()
                    clients[place] = RawClient(exporter)

    attackers = [threading.Thread(target=drip) for _ in range(4)]
    for thread in attackers:
        thread.start()
    try:
        wait_until(lambda: dropped(exporter.scrape(), "room") > 2 * ATTACKERS, "the attack is under way")
        assert is_well_served(exporter)
    finally:
        stop.set()
        for thread in attackers:
            thread.join()


def test_flood_of_connections(exporter: ExporterProcess) -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(at, timeout=5) as connection:
                connection.send(b"GET / HTTP/1.1\r\n")

    host, _, port = exporter.url.removeprefix("http://").rpartition(":")
    at = (host, int(port))
    attackers = [threading.Thread(target=flood) for _ in range(4)]
    for thread in attackers:
        thread.start()
    try:
        assert is_well_served(exporter)
    finally:
        stop.set()
        for thread in attackers:
            thread.join()
    assert is_well_served(exporter)


def test_a_newcomer_takes_the_place_of_one_who_never_asked_for_anything(exporter: ExporterProcess) -> None:
    good = RawClient(exporter)
    assert good.ask(GET)
    attackers = [RawClient(exporter) for _ in range(ATTACKERS)]
    assert is_well_served(exporter)
    answer = good.ask(GET)  # on the old connection, the longest idle of all
    assert answer is not None
    assert answer.status == 200
    for client in attackers:
        client.close()


def test_no_more_descriptors(exporter: ExporterProcess) -> None:
    resource.prlimit(exporter.process.pid, resource.RLIMIT_NOFILE, (32, 32))
    attackers = [RawClient(exporter) for _ in range(100)]
    assert is_well_served(exporter)
    assert len([line for line in exporter.log if "cannot accept connections: Too many open files" in line]) == 1
    for client in attackers:
        client.close()


def test_deadlines(exporter: ExporterProcess) -> None:
    """Those who stall are cut off one after the other; one who is merely idle is not."""
    good, quiet, dripping = RawClient(exporter), RawClient(exporter), RawClient(exporter)
    assert good.ask(GET)

    def drip() -> None:
        while not dripping.is_closed():
            dripping.send(b"X")
            time.sleep(0.2)

    slow = threading.Thread(target=drip)
    slow.start()
    quiet.wait_until_closed()
    slow.join()
    assert not good.is_closed()
    answer = good.ask(GET)
    assert answer is not None
    assert 'trainvitals_exporter_connections_dropped_total{reason="timeout"} 2.0\n' in answer.body.decode()


# Limits that take a server of the test's own to reach


def test_deadlines_of_answer_and_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "ANSWER", 0.3)
    monkeypatch.setattr(channel, "IDLE", 0.3)
    with serving(Shelf(os.urandom(1 << 24))) as at:
        client = RawClient(at)
        client.send(GET)
        time.sleep(1)  # and reads nothing
        assert len(client.file.read()) < 1 << 24
        client = RawClient(at)
        assert client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.wait_until_closed()


def test_an_answer_under_way_is_finished_before_the_end() -> None:
    with serving(Shelf(os.urandom(1 << 24))) as at:
        idle_one, client = RawClient(at), RawClient(at)
        client.send(GET)
        assert client.file.peek(1)  # it has begun
        answers: list[Answer | None] = []
        reader = threading.Timer(0.5, lambda: answers.append(client.answer()))
        reader.start()
    reader.join()
    [answer] = answers
    assert answer is not None
    assert len(answer.body) == 1 << 24
    idle_one.wait_until_closed()


def test_deadline_of_handshake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE", 0.3)
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    web = tmp_path / "web.yml"
    web.write_text("tls_server_config: {cert_file: server.pem, key_file: server.pem}\n")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with serving(Shelf(), web) as at:
        good, silent_one, dripping = RawClient(at, context), RawClient(at), RawClient(at)
        record = iter(b"\x16\x03\x01\x02\x00" + bytes(512))
        while not dripping.is_closed():
            dripping.send(bytes([next(record)]))
            time.sleep(0.01)
        silent_one.wait_until_closed()
        answer = good.ask(GET)  # well after the deadline for its handshake, which it met
        assert answer is not None
        assert answer.status == 200


def test_more_scrapes_at_once_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for a while, and are refused then."""
    monkeypatch.setattr(server, "QUEUE_SECONDS", 0.2)
    shelf = Shelf()
    shelf.gate.clear()
    with serving(shelf) as at:
        first = [RawClient(at) for _ in range(server.MAX_SCRAPES)]
        for client in first:
            client.send(GET)
        wait_until(lambda: shelf.rendering == server.MAX_SCRAPES, "all are being rendered")
        one_more, patient = RawClient(at), RawClient(at)
        refused = one_more.ask(GET)
        assert refused is not None
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        landing = one_more.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert landing is not None
        assert landing.status == 200
        monkeypatch.setattr(server, "QUEUE_SECONDS", DEADLINE)
        patient.send(GET)
        time.sleep(0.5)
        shelf.gate.set()
        answers = [client.answer() for client in (*first, patient)]
        assert [answer.status for answer in answers if answer] == [200] * (server.MAX_SCRAPES + 1)


def test_connections_beyond_the_limit_when_all_are_being_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 5)
    shelf = Shelf()
    shelf.gate.clear()
    with serving(shelf) as at:
        first = [RawClient(at) for _ in range(5)]
        for client in first:
            client.send(GET)
        wait_until(lambda: shelf.rendering == 5, "all are being rendered")
        refused = RawClient(at).answer()
        assert refused is not None
        assert refused.status == 503
        shelf.gate.set()
        assert [answer.status for client in first if (answer := client.answer())] == [200] * 5
        again = RawClient(at).ask(GET)
        assert again is not None
        assert again.status == 200
