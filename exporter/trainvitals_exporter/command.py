"""The command line of `trainvitals exporter`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import psutil
from trainvitals import rundir

from trainvitals_exporter import collectors, rendering, systemd, whole_files
from trainvitals_exporter.configuration import OPTIONS, VARIABLE_PREFIX, Configuration
from trainvitals_exporter.endpoint import listeners
from trainvitals_exporter.endpoint.listeners import DEFAULT_LISTEN, Address
from trainvitals_exporter.endpoint.server import Server, stop_signals
from trainvitals_exporter.endpoint.web_config import WebConfigFile
from trainvitals_exporter.process_tree import ProcessTrees
from trainvitals_exporter.run_table import RunTable
from trainvitals_exporter.runner import Runner
from trainvitals_exporter.settings import Settings

_STDOUT: Final = "-"
# Those of the NVIDIA collector's release switch; by default, they end a process.
_RELEASE_SIGNALS: Final = tuple(number for number in signal.Signals if number.name in ("SIGUSR1", "SIGUSR2"))

_log = logging.getLogger(__name__)


def command(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT, or write one scrape. Returns the exit code; usage errors exit with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, format="trainvitals exporter: %(message)s", level=logging.INFO)
    file = arguments.config or os.environ.get(f"{VARIABLE_PREFIX}CONFIG")
    try:
        configuration = Configuration.read(vars(arguments), os.environ, Path(file) if file else None)
        web = WebConfigFile(configuration.web_config)
    except ValueError as error:
        parser.error(str(error))
    runner = _runner(configuration)
    _survive_release_signals()
    return _write_once(runner, arguments.once) if arguments.once else _serve(runner, web, configuration.listen)


def _runner(configuration: Configuration) -> Runner:
    """The chosen collectors, ready to be started."""
    for folder in configuration.run_dir:
        if not folder.exists():
            _log.warning("run directory %s does not exist yet", folder)
    psutil.PROCFS_PATH = str(configuration.procfs)
    table = RunTable(_run_directories(configuration.run_dir, configuration.rootfs), configuration.keep_ended)
    trees = ProcessTrees(table, configuration.procfs)
    settings = Settings(configuration.procfs, configuration.rootfs, table, configuration.gpu_release_file, trees)
    return Runner([collectors.create(name, settings) for name in configuration.wanted_collectors])


def _survive_release_signals() -> None:
    """Where no collector obeys these signals, say so at the first one, and go on."""
    unobeyed = [number for number in _RELEASE_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def explain(number: int, _frame: FrameType | None) -> None:
        for each in unobeyed:  # once, and never while it is being said: logging is not made for that
            signal.signal(each, lambda *_: None)
        name = signal.Signals(number).name
        _log.warning("%s changes nothing: it is for the collector nvidia, which is switched off", name)

    for number in unobeyed:
        signal.signal(number, explain)


def _serve(runner: Runner, web: WebConfigFile, addresses: Iterable[Address]) -> int:
    manager = systemd.ServiceManager()
    try:
        sockets = _listen(addresses)
    except OSError as error:
        sys.stderr.write(f"trainvitals exporter: {error}\n")
        return 1
    server = Server(sockets, runner, web)
    with stop_signals() as stop:
        runner.start()
        scheme = "https" if web.current().tls else "http"
        for listener in sockets:
            _log.info("listening on %s", listeners.url(listener, scheme))
        manager.ready(f"listening on {', '.join(map(listeners.shown, sockets))}")
        server.serve(stop, manager.watchdog_seconds, manager.alive)
    manager.stopping()
    server.close()
    runner.stop()
    return 0


def _listen(addresses: Iterable[Address]) -> list[socket.socket]:
    """Sockets of the service manager, and those of the addresses; of the default one where there is nothing else.

    Raises OSError, with a message for people.
    """
    sockets = systemd.activated_sockets()
    for address in addresses or ([] if sockets else [Address.parse(DEFAULT_LISTEN)]):
        try:
            sockets.append(listeners.listen(address))
        except OSError as error:
            raise OSError(
                f"cannot listen on {address}: {error.strerror or error}; "
                "choose another address with --listen, or stop what uses this one"
            ) from None
    return sockets


def _write_once(runner: Runner, target: str) -> int:
    runner.start()
    runner.wait_until_ready()
    runner.stop()
    scrape = runner.render(rendering.TEXT)
    if target == _STDOUT:
        sys.stdout.buffer.write(scrape)
        sys.stdout.flush()
        return 0
    try:
        whole_files.replace(Path(target), scrape)
    except OSError as error:
        sys.stderr.write(f"trainvitals exporter: cannot write {target}: {error.strerror or error}\n")
        return 1
    return 0


def _run_directories(chosen: tuple[Path, ...], root: Path) -> Callable[[], Iterable[Path]]:
    """The folders to look for run files in: the chosen ones only, else those of every user."""
    return lambda: chosen or rundir.everyone(root)


class _Parser(argparse.ArgumentParser):
    """Tells of an error in one line: the usage of so many options would bury it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trainvitals exporter",
        description="Serve this host's training runs, GPUs and vital parts as Prometheus metrics.",
        epilog=f"Each option but --once is also an environment variable, such as {VARIABLE_PREFIX}LISTEN, and a key of "
        "the configuration file, such as listen. A flag counts more than a variable, and that more than the file. "
        f"Collectors: {', '.join(collectors.known())}.",
    )
    for option in OPTIONS:
        # Of an option with one value, the last counts, as usual.
        keywords: dict[str, Any] = {"action": "append"} if option.separator else {"nargs": 1}
        about = f"{option.help} (default: {option.default})".replace("%", "%%")
        parser.add_argument(option.flag, metavar=option.metavar, help=about, **keywords)
    parser.add_argument("--config", metavar="FILE", help="a YAML file with options")
    parser.add_argument(
        "--once", nargs="?", const=_STDOUT, metavar="FILE",
        help="print one scrape, or put it into FILE for node_exporter's textfile collector, and exit",
    )  # fmt: skip
    return parser
