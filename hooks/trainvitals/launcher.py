"""``trainvitals run -- CMD``: starts an unmodified command with trainvitals attached, and tells how it ended.

It stays as the command's parent and is otherwise not there: standard streams, signals, exit code and terminal are the
command's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

from trainvitals import endings, options, report, rundir, runfile, session
from trainvitals.endings import End

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_AUTOLOAD: Final = Path(__file__).parent / "autoload"
# SIGTSTP, SIGCONT and the like keep their meaning for both; SIGKILL and SIGSTOP cannot be passed on.
_PASSED_ON: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGALRM")
_SI_KERNEL: Final = 0x80  # siginfo's si_code of what the terminal sends
_SIGKILL: Final = 9  # which Windows has no name for


def command(arguments: list[str]) -> int:
    """The command ``run``; returns the exit code of CMD (127 where it does not exist, 126 where it cannot be run)."""
    told, output, argv = _parse(arguments)
    if options.disabled():
        return _replace_this_process(argv)
    run = session.Run(session.new_run_id(), told.name or name_of(argv), told.run_dir or rundir.own().absolute(), told)
    try:
        writer = run.create_file("launcher", Path(argv[0]).name)
    except (rundir.RunDirError, OSError) as error:
        sys.stderr.write(f"trainvitals run: {error}\n")
        return 2
    with _Signals() as signals:
        status = _run(argv, run, writer, signals, output)
    return _exit_like(status)


def _run(
    argv: list[str], run: session.Run, writer: runfile.RunFileWriter, signals: _Signals, output: report.Output
) -> int:
    """Run the command, record its start and end, and report it. Returns its status, as Popen does."""
    endings.record_state(writer, "starting")
    started, begun = time.time(), time.monotonic()
    writer.set("trainvitals_run_start_timestamp_seconds", started)
    oom_kills = endings.oom_kills()
    try:
        status = _supervise(argv, _environment(run), signals)
    except FileNotFoundError:
        return _not_started(writer, argv, "no such command", 127)
    except OSError as error:
        return _not_started(writer, argv, error.strerror or str(error), 126)
    seconds, exit_code = time.monotonic() - begun, status if status >= 0 else 128 - status
    files = _files(run)
    ended = _verdict(files, status, signals.received, oom_kills)
    writer.set("trainvitals_run_exit_code", float(exit_code))
    endings.record(writer, ended)
    _remark(files, ended)
    report.write(output, run, files, ended, exit_code=exit_code, started=started, seconds=seconds)
    writer.close()
    return status


def _parse(arguments: list[str]) -> tuple[options.Options, report.Output, list[str]]:
    parser = argparse.ArgumentParser(
        prog="trainvitals run",
        allow_abbrev=False,  # --nam is a typing error of one's own, or meant for the command
        usage="trainvitals run [OPTION]... -- COMMAND ...",
        description="Start COMMAND with trainvitals attached to every PyTorch process in it.",
    )
    options.add_arguments(parser)
    quiet = options.is_on(os.environ.get(report.QUIET))
    parser.add_argument(
        "--quiet", action="store_true", default=quiet, help=f"print no report at the end (${report.QUIET}=1)"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write the report to FILE as JSON (default: a file beside the run files)"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="for example: python train.py")
    given = vars(parser.parse_args(arguments))
    command, quiet, file = given.pop("command"), given.pop("quiet"), given.pop("report")
    argv = command[1:] if command[:1] == ["--"] else command
    if not argv:
        parser.error("no command given; for example: trainvitals run -- python train.py")
    if argv[0].startswith("-"):
        parser.error(f"unknown option {argv[0]}; options of the command go after --")
    environment = dict(os.environ)
    if session.RUN_ID in environment:  # a run inside a run has a name of its own
        environment.pop(options.RUN_NAME, None)

    def refuse(error: ValueError) -> None:
        parser.error(str(error))

    try:
        told = options.Options.read(environment, given, refuse)
    except ValueError as error:
        parser.error(str(error))
    try:
        return told, report.Output(quiet, None if file is None else report.usable_file(file)), argv
    except ValueError as error:
        parser.error(f"--report: {error}")


def name_of(argv: list[str]) -> str:
    """A readable name for a command: its script, its module (``-m``), or else the program."""
    for position, argument in enumerate(argv):
        if argument.endswith(".py"):
            return Path(argument).stem
        if argument == "-m" and position + 1 < len(argv) and Path(argv[0]).name.startswith("python"):
            return argv[position + 1].removesuffix(".__main__")
    return Path(argv[0]).stem


def _environment(run: session.Run) -> dict[str, str]:
    path = [str(_AUTOLOAD), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **run.to_environment(), "PYTHONPATH": os.pathsep.join(path)}


class _Signals:
    """The signals to pass on, held back from before the command's start until its end is recorded.

    What is ignored at the start (SIGHUP under nohup) stays ignored, by the command as well.
    """

    def __init__(self) -> None:
        known = {getattr(signal, name) for name in _PASSED_ON if hasattr(signal, name)}
        self.passed_on = {number for number in known if signal.getsignal(number) != signal.SIG_IGN}
        self.received: list[str] = []

    def __enter__(self) -> _Signals:
        if hasattr(signal, "pthread_sigmask"):
            # An inherited "ignore" would keep the kernel from telling that the command has ended.
            self._sigchld = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.passed_on | {signal.SIGCHLD})
        return self

    def __exit__(self, *exception: object) -> None:
        if hasattr(signal, "sigtimedwait"):
            while signal.sigtimedwait(self.passed_on, 0) is not None:
                pass  # came after the end of the command, which it was meant for
        self.as_before()

    def as_before(self) -> None:
        """Put back what this process was started with; the command is to start with it, too."""
        if hasattr(signal, "pthread_sigmask"):
            signal.signal(signal.SIGCHLD, self._sigchld or signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _supervise(argv: list[str], environment: dict[str, str], signals: _Signals) -> int:
    """Start the command and wait for its end, passing signals on. Returns its status, as Popen does."""
    if not hasattr(signal, "pthread_sigmask"):
        return _supervise_on_windows(argv, environment, signals)
    # One thread only is running here, so that code between fork and exec is safe.
    with subprocess.Popen(argv, env=environment, preexec_fn=signals.as_before) as child:
        if not hasattr(signal, "sigwaitinfo"):
            return _wait_with_handlers(child, signals)
        while child.poll() is None:
            received = signal.sigwaitinfo(signals.passed_on | {signal.SIGCHLD})
            if received.si_signo == signal.SIGCHLD:
                continue
            signals.received.append(_name_of_signal(received.si_signo))
            # What the terminal sends (Ctrl-C), the command has got too.
            if received.si_code != _SI_KERNEL:
                child.send_signal(received.si_signo)
        return child.returncode


def _wait_with_handlers(child: subprocess.Popen[bytes], signals: _Signals) -> int:
    """The same where sigwaitinfo is missing (macOS): a Ctrl-C then reaches the command twice."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        signals.received.append(_name_of_signal(number))
        child.send_signal(number)

    for number in signals.passed_on:
        signal.signal(number, pass_on)
    signals.as_before()
    return child.wait()


def _supervise_on_windows(argv: list[str], environment: dict[str, str], signals: _Signals) -> int:
    """The same where only a console sends signals (Ctrl-C and Ctrl-Break): it sends them to the command, too."""
    for number in signals.passed_on | {getattr(signal, "SIGBREAK", signal.SIGINT)}:
        signal.signal(number, lambda number, frame: signals.received.append(_name_of_signal(number)))
    with subprocess.Popen(argv, env=environment) as child:
        return child.wait()


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"  # a real-time signal


def _verdict(files: list[runfile.RunFile], status: int, received: list[str], oom_kills_before: int | None) -> End:
    """How the run ended, from the exit status, the signals passed on, and what its processes wrote down themselves."""
    ranks_first = sorted(files, key=lambda file: file.identity.kind != "rank")  # of equal ends, a rank's is the cause
    seen = endings.worst(end for file in ranks_first if (end := _end_of(file)) is not None) or End("finished")
    # Of a killed rank its parent knows but an exit code, and a shell only 128 + 9.
    dead_rank = any(f.identity.kind == "rank" and f.alive_pid is None and _end_of(f) is None for f in files)
    killed = dead_rank or status in (-_SIGKILL, 128 + _SIGKILL)
    if status != 0 and killed and (endings.oom_kills() or 0) > (oom_kills_before or 0):
        return End("out_of_memory", signal="SIGKILL", exception=seen.exception)
    if status < 0:
        return End("killed", signal=_name_of_signal(-status))
    terminating = [name for name in received if name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")]
    if terminating:
        return End("killed", signal=terminating[0], exception=seen.exception)
    if status == 0:
        return seen if seen.state == "killed" else End("finished")
    if seen.state in ("out_of_memory", "failed"):
        return seen
    return End("failed", signal=seen.signal)


def _files(run: session.Run) -> list[runfile.RunFile]:
    """What its processes wrote. This one's own file is not read: that would give up its lock."""
    own = f"{run.run_id}.launcher."

    def skip(entry: os.DirEntry[str]) -> bool:
        return not entry.name.startswith(f"{run.run_id}.") or entry.name.startswith(own)

    found = rundir.read_all([run.directory], skip)
    return [f for f in found if isinstance(f, runfile.RunFile) and f.identity.run_id == run.run_id]


def _end_of(file: runfile.RunFile) -> End | None:
    """What a process of the run wrote about its own end; None while it lives or when it could not write."""
    about = next(iter(file.labels("trainvitals_run_end_info")), None)
    if about is None or file.identity.kind == "launcher":
        return None
    state = endings.final_state(file)
    return None if state is None else End(state, about.get("signal", ""), about.get("exception", ""))


def _remark(files: list[runfile.RunFile], ended: End) -> None:
    """One line on what the user could not know otherwise."""
    ranks = [file for file in files if file.identity.kind == "rank"]
    alive = [file for file in ranks if file.alive_pid is not None and endings.final_state(file) is None]
    if alive:
        who = ", ".join(f"rank {max(file.rank, 0)} (pid {file.alive_pid or file.pid})" for file in alive)
        report.say(f"trainvitals: the command has ended, but {who} is still running\n")
    elif not ranks and ended.state == "finished":
        report.say(
            "trainvitals: no PyTorch training was seen in this command "
            "(python -E and -I shut trainvitals out; so does a Python older than 3.10)\n"
        )


def _replace_this_process(argv: list[str]) -> int:
    """The command alone, with nothing of ours beside it."""
    try:
        os.execvp(argv[0], argv)  # noqa: S606 (no shell is wanted)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        sys.stderr.write(f"trainvitals run: cannot start {argv[0]!r}: {error.strerror}\n")
        return 127 if missing else 126


def _not_started(writer: runfile.RunFileWriter, argv: list[str], why: str, code: int) -> int:
    """A mistyped command is told to whoever typed it; it is no run that failed."""
    path = writer.path
    writer.close()
    path.unlink(missing_ok=True)
    sys.stderr.write(f"trainvitals run: cannot start {argv[0]!r}: {why}\n")
    return code


def _exit_like(status: int) -> int:
    """End by the same signal as the command did, so that the caller sees no difference."""
    if status >= 0:
        return status if status < 2**31 else status - 2**32  # Windows: no exit() takes the upper half as it is
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has dumped its core already
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError, ValueError):
        signal.signal(-status, signal.SIG_DFL)  # fails for SIGKILL, which needs no handler
    os.kill(os.getpid(), -status)
    return 128 - status
