"""The command line of `trainvitals stack`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from trainvitals_exporter.messages import printable
from trainvitals_exporter.stack import folder as stack_folder
from trainvitals_exporter.stack import lifecycle
from trainvitals_exporter.stack.errors import StackError, WrongUse
from trainvitals_exporter.stack.packaged import NotPackaged
from trainvitals_exporter.stack.send_test import send_test_alert
from trainvitals_exporter.stack.state import DOCKER, NATIVE, State

_DEFAULT_ALERTMANAGER: Final = "http://127.0.0.1:9093"


def command(argv: list[str]) -> int:
    """Run ``trainvitals stack SUBCOMMAND ...``; returns its exit code. Usage errors exit with 2."""
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except (StackError, NotPackaged) as error:
        lines = [printable(line) for line in str(error).splitlines()]  # they may quote other users and programs
        sys.stderr.write("trainvitals stack: " + "\n".join(lines) + "\n")
        return 2 if isinstance(error, WrongUse) else 1
    except KeyboardInterrupt:
        sys.stderr.write("trainvitals stack: interrupted; `trainvitals stack status` tells what runs\n")
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.command == "test-alert":
        alertmanager = options.alertmanager or State.address("alertmanager", _DEFAULT_ALERTMANAGER)
        return send_test_alert(alertmanager, options.secrets, options.timeout)
    try:
        folder = options.dir.expanduser().absolute()
    except RuntimeError:
        raise WrongUse(f"{options.dir}: there is no such user") from None
    if options.command == "write":
        return lifecycle.write(folder, force=options.force)
    if options.command == "up":
        return lifecycle.up(folder, options.way)
    if options.command == "down":
        return lifecycle.down(folder, delete_data=options.delete_data)
    return lifecycle.status(folder, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainvitals stack",
        description="Exporter, Prometheus, Alertmanager and Grafana, with our rules and dashboards, on this machine.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    up = commands.add_parser(
        "up",
        help="write the files and start everything, or bring what runs up to date",
        description="Write the files to DIR and start everything: with Docker where an engine answers, otherwise as "
        "programs of this machine. What runs already is left alone, or takes what changed. Ports, alert channel and "
        "language are chosen as for compose.yaml, by variables in the environment or in DIR/.env.",
    )
    way = up.add_mutually_exclusive_group()
    way.add_argument("--docker", dest="way", action="store_const", const=DOCKER, help="with Docker, or not at all")
    way.add_argument(
        "--native", dest="way", action="store_const", const=NATIVE, help="without Docker, even where an engine answers"
    )
    down = commands.add_parser("down", help="stop everything; data stay", description="Stop what `up` started.")
    down.add_argument("--delete-data", action="store_true", help="delete what Prometheus and the others have stored")
    status = commands.add_parser(
        "status",
        help="tell what runs and whether it works",
        description="Tell what runs and whether it works. Exit code 0: all is well; 1: something is not.",
    )
    status.add_argument("--json", action="store_true", help="as JSON")
    write = commands.add_parser(
        "write",
        help="write compose file, rules, dashboards and the rest to a folder",
        description="Write the files to DIR, or bring those that are there up to date. What you changed is left alone.",
    )
    write.add_argument(
        "--force", action="store_true", help="replace files that you changed, too; a copy of each is kept"
    )
    for each in (up, down, status):
        each.add_argument(
            "dir", metavar="DIR", type=Path, nargs="?", default=stack_folder.default(),
            help="where the stack lives (default: %(default)s)",
        )  # fmt: skip
    write.add_argument("dir", metavar="DIR", type=Path, help="a new folder, an empty one, or one written before")
    _add_test_alert(commands)
    return parser


def _add_test_alert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    test = commands.add_parser(
        "test-alert",
        help="send a test notification, and tell whether the channel took it",
        description="Give Alertmanager a test alert, see whether its channel takes it, and ask chat robots themselves, "
        "since they answer 200 to what they refuse. Exit code 0: taken; 1: refused, or not known.",
    )
    test.add_argument(
        "--alertmanager", metavar="URL", type=_url,
        help=f"where Alertmanager answers (default: that of your stack, else {_DEFAULT_ALERTMANAGER})",
    )  # fmt: skip
    test.add_argument(
        "--secrets", metavar="DIR", type=Path, default=Path("secrets"),
        help="where the secrets of robots lie if not where Alertmanager has them (default: ./%(default)s)",
    )  # fmt: skip
    test.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=60.0,
        help="how long to wait for Alertmanager to send it (default: %(default)s)",
    )  # fmt: skip


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, up to a day")
    return seconds


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as http://127.0.0.1:9093")
    return text.rstrip("/")
