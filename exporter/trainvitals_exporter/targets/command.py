"""The command line of `trainvitals targets`."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path
from typing import Final

from trainvitals_exporter import whole_files
from trainvitals_exporter.endpoint import listeners
from trainvitals_exporter.endpoint.listeners import DEFAULT_LISTEN, Address
from trainvitals_exporter.endpoint.server import Server, stop_signals
from trainvitals_exporter.endpoint.web_config import WebConfigFile
from trainvitals_exporter.targets import hosts
from trainvitals_exporter.targets.endpoint import PATH, TargetRequests, TargetSource
from trainvitals_exporter.targets.sources import Targets, Unavailable

_PORT: Final = Address.parse(DEFAULT_LISTEN).port
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

_log = logging.getLogger(__name__)


def command(argv: list[str]) -> int:
    """Print, write or serve a list of hosts. Returns the exit code; usage errors exit with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    named = tuple(host for each in options.hosts for host in each)
    if not named and not options.file and not options.slurm:
        parser.error("which hosts? Name some, or give --file FILE or --slurm")
    if options.web_config and not options.listen:
        parser.error("--web-config is for --listen")
    logging.basicConfig(stream=sys.stderr, format="trainvitals targets: %(message)s", level=logging.INFO)
    targets = Targets(named, options.file, options.slurm, options.port, dict(options.label))
    if not options.listen:
        return _write(targets, options.write)
    try:
        return _serve(targets, options.listen, WebConfigFile(options.web_config))
    except ValueError as error:
        parser.error(str(error))


def _write(targets: Targets, file: Path | None) -> int:
    """Print the list or put it into the file; without a list, the file stays as it is."""
    try:
        content = targets.render()
        if file:
            whole_files.replace(file, content)
        else:
            sys.stdout.write(content.decode())
    except Unavailable as error:
        sys.stderr.write(f"trainvitals targets: {error}{f'; {file} stays as it is' if file else ''}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"trainvitals targets: cannot write {file}: {error.strerror or error}\n")
        return 1
    return 0


def _serve(targets: Targets, address: Address, web: WebConfigFile) -> int:
    try:
        listener = listeners.listen(address)
    except OSError as error:
        sys.stderr.write(
            f"trainvitals targets: cannot listen on {address}: {error.strerror or error}; "
            "choose another address with --listen, or stop what uses this one\n"
        )
        return 1
    server = Server([listener], TargetSource(targets), web, TargetRequests)
    with stop_signals() as stop:
        scheme = "https" if web.current().tls else "http"
        _log.info("the list is at %s://%s%s", scheme, listeners.shown(listener), PATH)
        server.serve(stop)
    server.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainvitals targets",
        usage="trainvitals targets [HOST ...] [--file FILE] [--slurm] [options]",
        description="List the hosts that have an exporter, as Prometheus reads it: for file_sd_configs, or served for "
        "http_sd_configs. Exit code 1: there is no list to tell.",
    )
    parser.add_argument(
        "hosts", metavar="HOST", nargs="*", type=_hosts, help="such as node01, node01:10288, node[01-08]"
    )
    parser.add_argument("--file", metavar="FILE", type=Path, help="a file with hosts; # begins a comment")
    parser.add_argument(
        "--slurm", action="store_true", help="ask sinfo for the cluster's nodes, but for those that are powered off"
    )
    parser.add_argument(
        "--port", metavar="PORT", type=_port, default=_PORT, help="of hosts without one (default: %(default)s)"
    )
    parser.add_argument(
        "--label",
        metavar="K=V",
        type=_label,
        action="append",
        default=[],
        help="a label of all of them; may be repeated",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--write", metavar="FILE", type=Path, help="put the list into this file, in one move")
    where.add_argument(
        "--listen", metavar="HOST:PORT", type=_address, help=f"serve it at {PATH} instead, made anew for each request"
    )
    parser.add_argument(
        "--web-config", metavar="FILE", type=Path, help="TLS and users for --listen, as for the exporter"
    )
    return parser


def _hosts(text: str) -> list[str]:
    try:
        found = hosts.expand(text)
        for host in found:
            hosts.target(host, _PORT)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return found


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not _LABEL.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text!r} is not K=V, such as cluster=lab, K of letters, digits and _")
    return name, value


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
