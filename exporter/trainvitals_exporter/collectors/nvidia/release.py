"""The release switch: lets an operator reset a GPU, change its MIG mode or unload the driver while the exporter runs.

Whoever has the driver open blocks all of these. SIGUSR1 makes the exporter let go of it, SIGUSR2 take it again; it also
lets go as long as a file exists.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path


class ReleaseSwitch:
    """Whether the driver is to be let go of."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._signalled = False

    def on(self) -> bool:
        """Whether a signal or the file asks for it now."""
        return self._signalled or os.path.lexists(self._file)

    def listen(self) -> None:
        """Obey the signals, where there are any. Only the main thread of a process can."""
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, lambda *_: self._set(True))
            signal.signal(signal.SIGUSR2, lambda *_: self._set(False))

    def _set(self, on: bool) -> None:
        self._signalled = on
