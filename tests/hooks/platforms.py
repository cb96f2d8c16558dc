"""Makes a Linux process look like one on macOS or Windows, as far as this package can tell.

Taken away is what Python lacks there: modules, functions, constants, and files under /proc, /sys and /dev/shm. On Windows,
a file that is open can besides be neither renamed nor removed, and processes are not given signals' handling of POSIX.
What differs below Python (how the systems' own calls behave) is not simulated, nor are paths, the console, and `spawn`
as the only way to start a process.
"""

from __future__ import annotations

# Some of these are here because what they find at their import decides how they work, which is to stay as ever.
import asyncio  # noqa: F401
import builtins
import errno
import io
import multiprocessing.util  # noqa: F401
import os
import selectors  # noqa: F401
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile  # noqa: F401
from collections.abc import Callable
from pathlib import Path
from typing import Any

sysconfig.get_config_vars()

LACKS_MACOS = {
    os: ("posix_fallocate", "posix_fadvise", "sched_getaffinity", "sched_setaffinity", "memfd_create", "O_TMPFILE"),
    signal: ("sigwaitinfo", "sigtimedwait"),
}
LACKS_WINDOWS = {
    os: (
        *("getuid", "geteuid", "getgid", "fork", "forkpty", "register_at_fork", "posix_fallocate", "set_blocking"),
        *("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "statvfs", "getpgid", "killpg", "mkfifo", "sched_getaffinity"),
    ),
    signal: (
        *("SIGKILL", "SIGCHLD", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGWINCH", "SIGTSTP", "SIGCONT"),
        *("SIGSTOP", "pthread_sigmask", "sigwait", "sigwaitinfo", "sigtimedwait", "setitimer", "alarm", "pause"),
    ),
}  # fmt: skip
NO_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "pty")


def become(system: str) -> None:
    """From now on this process is one on "darwin" or "win32"."""
    free = shutil.disk_usage(os.sep)
    if system == "win32":
        shutil.disk_usage = lambda path: free  # which does not need statvfs there
    for module, names in (LACKS_MACOS if system == "darwin" else LACKS_WINDOWS).items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    _hide_linux_files()
    if system == "win32":
        for name in NO_MODULES:
            sys.modules[name] = None  # type: ignore[assignment]
        _hold_open_files()
        _start_without_preexec()
    sys.platform = system


def _hide_linux_files() -> None:
    def hiding(opens: Callable[..., Any]) -> Callable[..., Any]:
        def hidden(path: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and str(path).startswith(("/proc", "/sys", "/dev/shm")):  # noqa: S108
                raise FileNotFoundError(errno.ENOENT, "simulated", str(path))
            return opens(path, *args, **kwargs)

        return hidden

    builtins.open = io.open = hiding(open)
    os.open = hiding(os.open)
    os.access = hiding(os.access)


_listdir, _readlink = os.listdir, os.readlink


def _hold_open_files() -> None:
    def is_open(path: Any) -> bool:
        for fd in _listdir("/proc/self/fd"):
            try:
                if Path(_readlink(f"/proc/self/fd/{fd}")).samefile(path):
                    return True
            except OSError:
                continue
        return False

    def held(changes: Callable[..., Any]) -> Callable[..., Any]:
        def change(path: Any, *args: Any, **kwargs: Any) -> Any:
            if is_open(path):
                raise PermissionError(errno.EACCES, "The process cannot access the file, for it is open", str(path))
            return changes(path, *args, **kwargs)

        return change

    for name in ("rename", "replace", "unlink", "remove"):
        setattr(os, name, held(getattr(os, name)))


def _start_without_preexec() -> None:
    init = subprocess.Popen.__init__

    def __init__(self: Any, *args: Any, preexec_fn: Any = None, **kwargs: Any) -> None:  # noqa: N807
        if preexec_fn is not None:
            raise ValueError("preexec_fn is not supported on Windows platforms")
        init(self, *args, **kwargs)

    subprocess.Popen.__init__ = __init__  # type: ignore[method-assign]


def become_after_torch(system: str) -> None:
    """The same, once torch is imported, whose own parts for Linux are here, and before trainvitals sees that."""
    from trainvitals import imports

    attach = imports._watcher.actions["torch"]

    def act(module: Any) -> None:
        become(system)
        attach(module)

    imports._watcher.actions["torch"] = act
