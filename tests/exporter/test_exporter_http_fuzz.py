"""Requests made by chance, or to smuggle another one past a proxy: one answer at most, and good clients are served."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator

import psutil
import pytest

from tests.conftest import wait_until
from tests.exporter.exporter_process import DEADLINE, ExporterProcess
from tests.exporter.raw_client import GET, RawClient

SMUGGLED = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH = str(len(SMUGGLED)).encode()
STATUSES = {200, 400, 404, 405, 431, 505}


@pytest.fixture(scope="module")
def exporter() -> Iterator[ExporterProcess]:
    started = ExporterProcess("--collectors", "memory")
    yield started
    started.stop()


# Each of these heads has a body for someone on the way to us, and so has to have one for us.
HEADS = {
    "a length": b"Content-Length: " + LENGTH,
    "two lengths, first zero": b"Content-Length: 0\r\nContent-Length: " + LENGTH,
    "two lengths, last zero": b"Content-Length: " + LENGTH + b"\r\nContent-Length: 0",
    "the same length twice": b"Content-Length: " + LENGTH + b"\r\nContent-Length: " + LENGTH,
    "a list of lengths": b"Content-Length: 0, " + LENGTH,
    "length and coding": b"Content-Length: 0\r\nTransfer-Encoding: chunked",
    "coding and length": b"Transfer-Encoding: chunked\r\nContent-Length: 0",
    "coding": b"Transfer-Encoding: chunked",
    "coding in capitals": b"TRANSFER-ENCODING: CHUNKED",
    "two codings": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "coding unknown": b"Transfer-Encoding: xchunked",
    "coding after a tab": b"Transfer-Encoding:\tchunked",
    "coding in the next line": b"Transfer-Encoding:\r\n chunked",
    "space before the colon": b"Transfer-Encoding : chunked",
    "length in the next line": b"Content-Length:\r\n " + LENGTH,
    "length with more in the next line": b"Content-Length: 0\r\n " + LENGTH,
    "length with a sign": b"Content-Length: +" + LENGTH,
    "negative length": b"Content-Length: -" + LENGTH,
    "hexadecimal length": b"Content-Length: 0x26",
    "huge length": b"Content-Length: " + b"9" * 400,
    "no length": b"Content-Length:",
    "zeros": b"Content-Length: 000" + LENGTH,
    "bare CR before a length": b"X: y\rContent-Length: " + LENGTH,
    "bare CR before a line's end": b"X: y\r\r\nContent-Length: " + LENGTH,
    "bare CRs before a coding": b"X: y\r\rZ: z\r\nTransfer-Encoding: chunked",
    "bare LF": b"X: y\nContent-Length: " + LENGTH,
    "NUL in the name": b"Content-Length\x00: 0\r\nContent-Length: " + LENGTH,
    "a line without a colon": b"nothing\r\nContent-Length: " + LENGTH,
    "a line without a name": b": nothing\r\nContent-Length: " + LENGTH,
    "the first line is a continuation": b" X: y\r\nContent-Length: " + LENGTH,
}


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
def test_no_body_is_a_second_request(exporter: ExporterProcess, method: bytes) -> None:
    for what, head in HEADS.items():
        client = RawClient(exporter)
        request = method + b" / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n" + SMUGGLED
        answer = client.ask(request, has_body=method != b"HEAD")
        assert answer is not None, what
        assert answer.status in STATUSES, what
        assert answer.headers["Connection"] == "close", what
        if method == b"HEAD" and answer.status == 400:
            client.file.read(int(answer.headers["Content-Length"]))  # the head was not understood, its method neither
        assert client.answer() is None, what
        client.close()


PATHS = {
    200: ["/metrics", "//metrics", "http://elsewhere/metrics", "http://x:99999/metrics", "/metrics#part", "/metrics?",
          "/metrics?name[]=%ff%00", "/%6D%65trics", "/metrics?" + "a" * 20_000],
    404: ["/metrics/", "/Metrics", "/./metrics", "/../metrics", "/%2e%2e/metrics", "/x/../metrics", "/metrics%00",
          "/metrics%0d%0a", "/%2Fmetrics", "/%", "/%ff", "*", "x:/metrics/..", "/metrics;a=b", "/%25%36%44etrics"],
    400: ["http://[::1/metrics", "/metrics?collect[]=../memory"],
}  # fmt: skip


def test_paths(exporter: ExporterProcess) -> None:
    for status, path in ((status, path) for status, paths in PATHS.items() for path in paths):
        client = RawClient(exporter)
        answer = client.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer is not None, path
        assert answer.status == status, path
        client.close()


METHODS = [b"GET", b"HEAD", b"POST", b"get", b"G\x00T", b"", b"PRI", b"CONNECT", b"GET GET", b"\xff", b"x" * 9000]
TARGETS = [
    *(path.encode() for paths in PATHS.values() for path in paths),
    b"",
    b"/" + b"a" * 40_000,
    b"http://",
    b"\x00",
    b"//",
    b"/\t/",
    b"?",
    b"#",
]
VERSIONS = [
    b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1.1", b"HTTP/-1.1", b"HTTP/1",
    b"http/1.1", b"HTTP/" + b"1" * 5000, b"", b"HTTP/1.1 ", b"HTTPS/1.1",
]  # fmt: skip
FIELDS = [
    *HEADS.values(), b"Host: x", b"Host:", b"Host: x\r\nHost: y", b"Connection: close", b"Connection: keep-alive, x",
    b"Connection: " + b"," * 3000, b"Expect: 100-continue", b"Expect: x",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings",
    b"Accept: application/openmetrics-text; version=\xff", b"Accept: " + b"a/b," * 2000, b"Accept-Encoding: gzip;q=x",
    b"Accept-Encoding: gzip", b"Authorization: Basic \xff\xfe", b"Range: bytes=0-1", b"X: " + b"y" * 40_000, b"X: \x00",
    b"\x00: y", b"X" * 300 + b": y", b"\r", b"X: y\r\n\tz", "X: größe".encode(),
]  # fmt: skip
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b""]
WHOLE = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    b"\x80\x2e\x01\x00\x02", b"\x00" * 5000, b"\r\n" * 3000, b"\n", b"SSH-2.0-x\r\n", b"GET /metrics\r\n\r\n", GET * 30,
    b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + GET, GET[:20], SMUGGLED * 100, b"a" * 70_000, b"*1\r\n$4\r\nPING\r\n",
]  # fmt: skip


def request(chance: random.Random) -> bytes:
    """A request that something may be wrong with."""
    if chance.random() < 0.15:
        return chance.choice(WHOLE)
    end = chance.choice(ENDS)
    line = b" ".join([chance.choice(METHODS[:4] if chance.random() < 0.7 else METHODS), chance.choice(TARGETS),
                      chance.choice(VERSIONS[:2] if chance.random() < 0.7 else VERSIONS)])  # fmt: skip
    fields = [b"Host: x", *chance.choices(FIELDS, k=chance.randrange(5))]
    content = bytearray(end.join([line, *fields, b"", chance.choice([b"", SMUGGLED, b"5\r\nhello\r\n0\r\n\r\n"])]))
    for _ in range(chance.choice([0, 0, 0, 1, 3])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def attack(exporter: ExporterProcess, chance: random.Random) -> None:
    """One client: some requests, sent at once or in pieces, and then one of the ways to leave."""
    client = RawClient(exporter)
    content = b"".join(request(chance) for _ in range(chance.choice([1, 1, 2, 4])))
    pieces = chance.choice([1, 1, 2, 5])
    size = len(content) // pieces + 1
    for start in range(0, len(content), size):
        client.send(content[start : start + size])
    leave = chance.choice(["listens", "half-closes", "vanishes", "resets"])
    with contextlib.suppress(OSError):
        if leave in ("listens", "half-closes"):
            client.socket.shutdown(socket.SHUT_WR)
        if leave == "listens":
            client.socket.settimeout(DEADLINE)
            told = client.file.read()
            assert not told or told.startswith(b"HTTP/1.1 "), told[:100]
            assert b"Traceback" not in told
        if leave == "resets":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def besiege(exporter: ExporterProcess, seed: int, attacks: int) -> None:
    """Attack that often, while good clients come in between; then nothing may be left of it."""
    process, chance, good = psutil.Process(exporter.process.pid), random.Random(seed), RawClient(exporter)
    assert good.ask(GET)
    resident, descriptors, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
    for number in range(attacks):
        attack(exporter, chance)
        if number % 20 == 0:
            answer = good.ask(GET)
            assert answer is not None
            assert answer.status == 200
            assert exporter.get("/-/ready")[0] == 200
    wait_until(lambda: process.num_threads() <= threads, "every thread ends")
    wait_until(lambda: process.num_fds() <= descriptors, "every connection is closed")
    assert process.memory_info().rss < 1.5 * resident
    assert [line for line in exporter.log if "listening on" not in line] == []
    assert good.ask(GET)
    good.close()


def test_malformed_requests_by_chance(exporter: ExporterProcess) -> None:
    besiege(exporter, seed=1, attacks=1500)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2, 6))
def test_malformed_requests_for_longer(exporter: ExporterProcess, seed: int) -> None:
    besiege(exporter, seed, attacks=5000)
