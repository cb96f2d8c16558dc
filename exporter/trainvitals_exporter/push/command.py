"""The command line of `trainvitals push`."""

from __future__ import annotations

import argparse
import logging
import os
import re
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from trainvitals import catalogue

from trainvitals_exporter import rendering
from trainvitals_exporter.command import Parser, add_options, create_runner
from trainvitals_exporter.configuration import OPTIONS, VARIABLE_PREFIX, Configuration
from trainvitals_exporter.endpoint.server import STOP_SIGNALS, stop_signals
from trainvitals_exporter.push import page
from trainvitals_exporter.push.client import Client, Push, shown
from trainvitals_exporter.push.credentials import BEARER_TOKEN, PASSWORD, USERNAME, Credentials
from trainvitals_exporter.push.pushgateway import Pushgateway
from trainvitals_exporter.push.remote_write import RemoteWrite
from trainvitals_exporter.push.sender import Sender
from trainvitals_exporter.runner import Runner

INTERVAL_SECONDS: Final = 15.0  # the longest that the rules go by
END_SECONDS: Final = 8.0  # a container or a batch job has ten at least, after it was told to end
ROOM_BYTES: Final = 16 * 2**20
_NOT_HERE: Final = ("listen", "web_config")  # nothing is served
_TAKEN: Final = {"job", "instance", "le"} | {name for metric in catalogue.METRICS for name in metric.all_labels}
_OWN_HEADERS: Final = {"host", "content-type", "content-encoding", "content-length", "transfer-encoding", "user-agent"}

_log = logging.getLogger(__name__)


class Destination(Protocol):
    """Who takes what is pushed."""

    def pushes(self, text: bytes, series: Mapping[str, float], time_ms: int, /) -> list[Push]:
        """What tells of one page."""
        ...

    def ending(self, series: Mapping[str, float], time_ms: int, /) -> list[Push]:
        """What tells that no more will come after this page."""
        ...


def command(argv: list[str]) -> int:
    """Push until SIGTERM or SIGINT, or until the runs are over. Returns the exit code; usage errors exit with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, format="trainvitals push: %(message)s", level=logging.INFO)
    try:
        configuration = Configuration.read({**vars(options), "listen": None}, os.environ, None)
        credentials = Credentials.read(options.username, options.password_file, options.bearer_token_file, os.environ)
        tls = _tls(options.ca_file)
        destination = _destination(options)
    except ValueError as error:
        parser.error(str(error))
    address = shown(options.remote_write or options.pushgateway)
    if credentials != Credentials() and _is_open(options.remote_write or options.pushgateway):
        _log.warning("%s: the password or token can be read on the way; use https", address)
    # The gateway keeps one page only, so there is no use in sending it an old one.
    room = ROOM_BYTES if options.remote_write else 0
    sender = Sender(Client(credentials, tls, dict(options.header)), address, room)
    watch = page.RunsWatch(time.time()) if options.until_runs_end else None
    return _push(create_runner(configuration), destination, sender, options.interval, watch)


def _push(
    runner: Runner, destination: Destination, sender: Sender, interval: float, watch: page.RunsWatch | None
) -> int:
    with stop_signals() as stop:
        runner.start()
        runner.wait_until_ready()
        sender.start()
        due, is_over = time.monotonic(), False
        while True:
            text, now = runner.render(rendering.TEXT), time.time_ns() // 1_000_000
            series = page.values(text)
            sender.put(destination.pushes(text, series, now))
            if is_over or (watch is not None and watch.over(series)):
                break
            # Once more after a signal: what happened since the last page is often how the run ended.
            due = max(due + interval, time.monotonic())
            is_over = _told_to_stop(stop, due)
        taken = sender.finish(destination.ending(series, max(time.time_ns() // 1_000_000, now + 1)), END_SECONDS)
    runner.stop()
    return 0 if taken else 1


def _told_to_stop(stop: socket.socket, until: float) -> bool:
    """Wait for a signal to stop, until then; tells whether it came."""
    while (left := until - time.monotonic()) > 0:
        if select.select([stop], [], [], left)[0] and not STOP_SIGNALS.isdisjoint(stop.recv(64)):
            return True
    return False


def _destination(options: argparse.Namespace) -> Destination:
    """Raises ValueError where something is missing."""
    labels = {"job": options.job, "instance": options.instance, **dict(options.label)}
    if options.pushgateway:
        return Pushgateway(options.pushgateway, labels, options.delete_at_end)
    if options.delete_at_end:
        raise ValueError("--delete-at-end is for --pushgateway; by remote write, series end by themselves")
    return RemoteWrite(options.remote_write, labels, _snappy())


def _snappy() -> Callable[[bytes], bytes]:
    """Compression to Snappy's block format. Raises ValueError without the library."""
    try:
        from cramjam import snappy
    except ImportError:
        raise ValueError("--remote-write needs one more package: pip install 'trainvitals[push]'") from None
    return lambda content: bytes(snappy.compress_raw(content))


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """Raises ValueError for a file that holds no certificates."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise ValueError(f"--ca-file: {ca_file} holds no certificates in PEM format") from None
    except OSError as error:
        raise ValueError(f"--ca-file: cannot read {ca_file}: {error.strerror}") from None


def _is_open(url: str) -> bool:
    """Whether others can listen on the way."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        correct = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        correct = False
    if not correct or re.search(r"[^\x21-\x7e]", text):
        raise argparse.ArgumentTypeError("that is no address such as http://HOST:PORT/PATH")
    if "@" in parts.netloc:
        raise argparse.ArgumentTypeError(
            "everyone on this machine can read a command line: give the user by --username, the password by "
            f"--password-file or {PASSWORD}"
        )
    return text


def _endpoint(text: str) -> str:
    if urlsplit(_address(text)).path in ("", "/"):
        raise argparse.ArgumentTypeError(
            f"{shown(text)} has no path: Prometheus and VictoriaMetrics take /api/v1/write, Mimir takes /api/v1/push"
        )
    return text


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 1 <= float(text) <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 3600")
    return float(text)


def _label_value(text: str) -> str:
    if not text.isprintable() or not text:
        raise argparse.ArgumentTypeError("a label needs a value that can be printed")
    return text


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, where the name is of letters, digits and _")
    if name in _TAKEN:
        raise argparse.ArgumentTypeError(f"{name} is a label of trainvitals itself; choose another name")
    return name, _label_value(value)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not re.fullmatch(r"[A-Za-z0-9-]+", name) or not re.fullmatch(r"[\x20-\x7e]+", value):
        raise argparse.ArgumentTypeError("that is not NAME: VALUE")
    if name.lower() in ("authorization", "proxy-authorization", "cookie"):
        raise argparse.ArgumentTypeError("everyone on this machine can read a command line: see --bearer-token-file")
    if name.lower() in _OWN_HEADERS:
        raise argparse.ArgumentTypeError(f"{name} cannot be chosen")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="trainvitals push",
        description="Collect what `trainvitals exporter` would serve, and push it: for jobs that nobody can scrape.",
        epilog=f"Secrets come from files or from {USERNAME}, {PASSWORD} and "
        f"{BEARER_TOKEN}. Options that the exporter has too can also be set by its variables, such as "
        f"{VARIABLE_PREFIX}RUN_DIR. Proxies are those of the environment: https_proxy, no_proxy.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--remote-write", metavar="URL", type=_endpoint,
        help="where Prometheus, VictoriaMetrics, Mimir or another takes remote write, such as "
        "https://HOST/api/v1/write",
    )  # fmt: skip
    where.add_argument("--pushgateway", metavar="URL", type=_address, help="a Pushgateway, such as http://HOST:9091")
    add = parser.add_argument
    add("--interval", metavar="SECONDS", type=_seconds, default=INTERVAL_SECONDS,
        help="how often to push; the rules need 15 or less (default: %(default)g)")  # fmt: skip
    add("--until-runs-end", action="store_true",
        help="wait for a run, and end when none goes on (default: end by SIGTERM or SIGINT)")  # fmt: skip
    add("--delete-at-end", action="store_true", help="take the group out of the Pushgateway, unless a run ended badly")
    add("--job", type=_label_value, default="trainvitals", help="the label job (default: %(default)s)")
    add("--instance", type=_label_value, default=socket.gethostname() or "unknown",
        help="the label instance: what to call this machine (default: its host name)")  # fmt: skip
    add("--label", metavar="NAME=VALUE", type=_label, action="append", default=[],
        help="a label to add to all series; may be repeated")  # fmt: skip
    add("--username", metavar="NAME", help="the user to push as")
    add("--password-file", metavar="FILE", type=Path, help="the file that holds the user's password")
    add("--bearer-token-file", metavar="FILE", type=Path, help="the file that holds a token, instead of a user")
    add("--header", metavar="NAME: VALUE", type=_header, action="append", default=[],
        help="a header to add, such as X-Scope-OrgID: TEAM; nothing secret; may be repeated")  # fmt: skip
    add("--ca-file", metavar="FILE", type=Path, help="certificates to trust (default: those of the system)")
    add_options(parser, (option for option in OPTIONS if option.name not in _NOT_HERE))
    return parser
