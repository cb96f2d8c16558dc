"""The command line of `trainvitals exporter`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import psutil
from trainvitals import rundir

from trainvitals_exporter import collectors, rendering
from trainvitals_exporter.run_table import KEEP_ENDED_SECONDS, RunTable
from trainvitals_exporter.runner import Runner
from trainvitals_exporter.server import Server
from trainvitals_exporter.settings import Settings

DEFAULT_LISTEN: Final = "127.0.0.1:10288"
_ENVIRONMENT: Final = "TRAINVITALS_EXPORTER_"

_log = logging.getLogger(__name__)


def command(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT, or print one scrape. Returns the exit code; usage errors exit with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    options.run_dir = options.run_dir or [Path(d) for d in _from_environment("RUN_DIR", "").split(os.pathsep) if d]
    logging.basicConfig(stream=sys.stderr, format="trainvitals exporter: %(message)s", level=logging.INFO)
    _check_folders(parser, options)
    psutil.PROCFS_PATH = str(options.procfs)
    table = RunTable(_run_directories(options.run_dir, options.rootfs), options.keep_ended)
    settings = Settings(options.procfs, options.rootfs, table)
    runner = Runner([collectors.create(name, settings) for name in options.collectors])
    return _print_once(runner) if options.once else _serve(runner, *options.listen)


def _serve(runner: Runner, host: str, port: int) -> int:
    try:
        server = Server(host, port, runner)
    except OSError as error:
        sys.stderr.write(
            f"trainvitals exporter: cannot listen on {_shown_address(host, port)}: {error.strerror or error}; "
            "choose another address with --listen, or stop what uses this one\n"
        )
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        runner.start()
        _log.info("listening on http://%s/metrics", _shown_address(host, server.server_address[1]))
        server.serve_forever()
    server.server_close()
    runner.stop()
    return 0


def _print_once(runner: Runner) -> int:
    runner.start()
    runner.wait_until_ready()
    runner.stop()
    sys.stdout.buffer.write(runner.render(rendering.TEXT))
    sys.stdout.flush()
    return 0


def _run_directories(chosen: list[Path], root: Path) -> Callable[[], Iterable[Path]]:
    """The folders to look for run files in: the chosen ones only, else those of every user."""
    return (lambda: chosen) if chosen else (lambda: rundir.everyone(root))


def _check_folders(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse folders that cannot work. A run directory may come later: the first run makes it."""
    for option, folder in (("--procfs", options.procfs), ("--rootfs", options.rootfs)):
        if not folder.is_dir():
            parser.error(f"{option}: {folder} is not a folder")
    for folder in options.run_dir:
        if not folder.exists():
            _log.warning("run directory %s does not exist yet; waiting for it", folder)
        elif not folder.is_dir():
            parser.error(f"--run-dir: {folder} is not a folder")
        elif not os.access(folder, os.R_OK | os.X_OK):
            parser.error(f"--run-dir: no permission to read {folder}; run as its owner or as root")


def _parser() -> argparse.ArgumentParser:
    known = collectors.known()
    parser = argparse.ArgumentParser(
        prog="trainvitals exporter",
        description="Serve this host's training runs, GPUs and vital parts as Prometheus metrics.",
        epilog=f"Each option can also be given as an environment variable, such as {_ENVIRONMENT}LISTEN.",
    )
    parser.add_argument(
        "--listen", type=_address, metavar="HOST:PORT", default=_from_environment("LISTEN", DEFAULT_LISTEN),
        help=f"address to serve on, {DEFAULT_LISTEN} by default; port 0 takes a free one",
    )  # fmt: skip
    parser.add_argument(
        "--run-dir", type=Path, action="append", metavar="DIR",
        help="folder with run files, may be repeated; those of every user by default",
    )  # fmt: skip
    parser.add_argument(
        "--collectors", type=_collectors, metavar="LIST", default=_from_environment("COLLECTORS", ",".join(known)),
        help=f"what to collect, separated by commas: {', '.join(known)} (all by default)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-ended", type=_seconds, metavar="SECONDS",
        default=_from_environment("KEEP_ENDED", str(KEEP_ENDED_SECONDS)),
        help=f"serve the last values of an ended run for this long ({KEEP_ENDED_SECONDS:.0f} by default)",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="print one scrape and exit")
    parser.add_argument(
        "--procfs", type=Path, metavar="DIR", default=_from_environment("PROCFS", "/proc"),
        help="where the host's /proc is mounted",
    )  # fmt: skip
    parser.add_argument(
        "--rootfs", type=Path, metavar="DIR", default=_from_environment("ROOTFS", "/"),
        help="where the host's root folder is mounted",
    )  # fmt: skip
    return parser


def _from_environment(name: str, default: str) -> str:
    return os.environ.get(_ENVIRONMENT + name) or default


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:10288")
    return host.strip("[]"), int(port)


def _shown_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _collectors(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = collectors.known()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        wrong = f"unknown collector {unknown[0]!r}" if unknown else "no collector chosen"
        raise argparse.ArgumentTypeError(f"{wrong}; there are: {', '.join(known)}")
    return names


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
