"""The command line of `trainvitals top`."""

from __future__ import annotations

import argparse
import locale
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final, NoReturn

from trainvitals_exporter.command import create_runner
from trainvitals_exporter.configuration import Configuration
from trainvitals_exporter.endpoint.listeners import DEFAULT_LISTEN
from trainvitals_exporter.stack.state import State
from trainvitals_exporter.top.model import HostView
from trainvitals_exporter.top.overview import Choices, overview
from trainvitals_exporter.top.sources import HttpSource, LocalSource, Prometheus, Source, SourceError
from trainvitals_exporter.top.text import plain, spelled
from trainvitals_exporter.top.watch import Watch

DEFAULT_EXPORTER: Final = f"http://{DEFAULT_LISTEN}/metrics"
DEFAULT_PROMETHEUS: Final = "http://127.0.0.1:9090"
USER_VARIABLE: Final = "TRAINVITALS_TOP_USER"
PASSWORD_VARIABLE: Final = "TRAINVITALS_TOP_PASSWORD"  # noqa: S105  # the name of a variable
_LOCAL_REMARK: Final = "no exporter here: read by this program itself"
_BAD_TERMINALS: Final = ("", "dumb", "unknown")
_ONCE_WIDTH: Final = 120
_ONCE_SECONDS: Final = 7.0
_ONCE_HEIGHT: Final = 500  # of which the blank lines at the end are left out


def command(argv: list[str]) -> int:
    """Show the hosts until the user quits, or once. Returns the exit code; usage errors exit with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.getLogger().addHandler(logging.NullHandler())  # what collectors have to say would tear the picture
    if not arguments.once:
        _require_terminal(parser)
    try:
        watch = _watch(arguments)
    except ValueError as error:
        parser.error(str(error))
    watch.start()
    try:
        return _once(watch) if arguments.once else _live(watch, arguments.interval)
    finally:
        watch.stop()


def _live(watch: Watch, interval: float) -> int:
    from trainvitals_exporter.top.app import Top

    app = Top(watch.picture, interval, _encoding())
    app.run()
    return app.return_code or 0


def _once(watch: Watch) -> int:
    """Print one screen. Rates need two scrapes, and collectors that have read twice."""
    deadline = time.monotonic() + _ONCE_SECONDS
    picture = watch.picture()
    while not watch.asked() or (time.monotonic() < deadline and any(_lacks_rates(m.host) for m in picture.machines)):
        time.sleep(0.1)
        picture = watch.picture()
    width = shutil.get_terminal_size((_ONCE_WIDTH, 0)).columns if sys.stdout.isatty() else _ONCE_WIDTH
    lines = [plain(line) for line in overview(picture, Choices(), width, _ONCE_HEIGHT)]
    text = "\n".join(spelled(line, sys.stdout.encoding or "ascii").rstrip() for line in lines)
    sys.stdout.write(text.rstrip() + "\n")
    return 0 if picture.machines else 1


def _lacks_rates(host: HostView) -> bool:
    return host.cores > 0 and host.cpu is None


def _watch(arguments: argparse.Namespace) -> Watch:
    """Raises ValueError for an address that is none."""
    user, password = os.environ.get(USER_VARIABLE, ""), os.environ.get(PASSWORD_VARIABLE, "")
    sources: Sequence[Source] = [HttpSource(url, user, password) for url in arguments.exporter or [_default_exporter()]]
    remark = ""
    if not arguments.exporter and _nothing_listens(sources[0]):
        # The exporter's variables and defaults: what it would serve here is what is shown.
        sources = [LocalSource(create_runner(Configuration.read({}, os.environ, None)))]
        remark = _LOCAL_REMARK
    prometheus = Prometheus(arguments.prometheus or State.address("prometheus", DEFAULT_PROMETHEUS), user, password)
    return Watch(sources, prometheus, arguments.interval, strict=arguments.prometheus is not None, remark=remark)


def _default_exporter() -> str:
    mine = State.address("exporter", "")
    return f"{mine}/metrics" if mine else DEFAULT_EXPORTER


def _nothing_listens(source: Source) -> bool:
    try:
        source.fetch()
    except SourceError as error:
        return error.refused
    return False


def _require_terminal(parser: argparse.ArgumentParser) -> None:
    if find_spec("textual") is None:
        parser.error("it needs Textual; install it with: pip install 'textual>=8'   (--once does without)")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        parser.error("this is no terminal; --once prints one screen as text")
    if os.environ.get("TERM", "") in _BAD_TERMINALS:
        term = os.environ.get("TERM", "")
        parser.error(f"this terminal (TERM={term}) cannot be drawn on; --once prints one screen as text")


def _encoding() -> str:
    """What the terminal shows, as far as the locale tells."""
    return sys.stdout.encoding or locale.getpreferredencoding(do_setlocale=False)


class _Parser(argparse.ArgumentParser):
    """Tells of an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trainvitals top",
        description="Watch training runs and GPUs in a terminal. No Prometheus is needed.",
        epilog=f"User and password of an exporter or Prometheus: in the address (http://user:password@host:10288), or "
        f"unseen by other users in {USER_VARIABLE} and {PASSWORD_VARIABLE}. Keys: press ? in it.",
    )
    parser.add_argument(
        "--exporter", metavar="URL", action="append",
        help=f"an exporter to ask; may be repeated (default: your stack's, else {DEFAULT_EXPORTER}; where nothing "
        "listens there, this program collects by itself)",
    )  # fmt: skip
    parser.add_argument(
        "--prometheus", metavar="URL",
        help=f"where to ask for alerts (default: your stack's, else {DEFAULT_PROMETHEUS}, if it answers)",
    )  # fmt: skip
    parser.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=1.0,
        help="how often to ask and draw (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="print one screen as text, and exit")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.2 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.2 to 60")
    return seconds
