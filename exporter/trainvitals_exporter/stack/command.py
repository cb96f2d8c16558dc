"""The command line of `trainvitals stack`."""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import urlsplit

from trainvitals_exporter.stack.send_test import send_test_alert


def command(argv: list[str]) -> int:
    """Run ``trainvitals stack SUBCOMMAND ...``; returns its exit code. Usage errors exit with 2."""
    options = _parser().parse_args(argv)
    return send_test_alert(options.alertmanager, options.secrets, options.timeout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trainvitals stack", description="Look after the monitoring.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    test = commands.add_parser(
        "test-alert",
        help="send a test notification, and tell whether the channel took it",
        description="Give Alertmanager a test alert, see whether its channel takes it, and ask chat robots themselves, "
        "since they answer 200 to what they refuse. Exit code 0: taken; 1: refused, or not known.",
    )
    test.add_argument(
        "--alertmanager", metavar="URL", type=_url, default="http://127.0.0.1:9093",
        help="where Alertmanager answers (default: %(default)s)",
    )  # fmt: skip
    test.add_argument(
        "--secrets", metavar="DIR", type=Path, default=Path("secrets"),
        help="where the secrets of robots lie if not where Alertmanager has them (default: ./%(default)s)",
    )  # fmt: skip
    test.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=60.0,
        help="how long to wait for Alertmanager to send it (default: %(default)s)",
    )  # fmt: skip
    return parser


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as http://127.0.0.1:9093")
    return text.rstrip("/")
