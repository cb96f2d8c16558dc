"""What `up` leaves for `status`, `down` and the next `up`: which way it went, and what it started."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from trainvitals_exporter.stack.errors import StackError
from trainvitals_exporter.stack.folder import default as default_folder
from trainvitals_exporter.stack.folder import replace
from trainvitals_exporter.stack.processes import Process

_NAME: Final = ".trainvitals-stack-state.json"
NATIVE: Final = "native"
DOCKER: Final = "docker"


@dataclass
class State:
    """`way` is NATIVE, DOCKER or None when nothing was started; `volumes` tells whether Docker keeps data of ours.

    By part: its `addresses`, its `processes`, `commands` (a digest of how it was started) and `configurations` (one of
    what it has taken).
    """

    way: str | None = None
    addresses: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    configurations: dict[str, str] = field(default_factory=dict)
    volumes: bool = False

    @classmethod
    def read(cls, folder: Path) -> State:
        """What was left in the folder. Raises StackError."""
        path = folder / _NAME
        try:
            content = json.loads(path.read_text())
            content["processes"] = {part: Process.from_json(each) for part, each in content["processes"].items()}
            return cls(**content)
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except OSError as error:
            raise StackError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StackError(
                f"{path} is damaged, so what runs is not known; end the stack's programs by hand, then remove the file"
            ) from None

    def save(self, folder: Path) -> None:
        """Leave it in the folder. Raises StackError."""
        try:
            replace(folder / _NAME, json.dumps(asdict(self), indent=1).encode())
        except OSError as error:
            raise StackError(f"cannot write to {folder}: {error.strerror}") from None

    @classmethod
    def address(cls, part: str, default: str) -> str:
        """Where a part of the stack in the default folder answers; `default` where none was started."""
        try:
            return cls.read(default_folder()).addresses.get(part, default)
        except (StackError, RuntimeError):  # RuntimeError: no home
            return default

    def alive(self, part: str) -> Process | None:
        """The part's process, if it runs."""
        process = self.processes.get(part)
        return process if process and process.lives() else None

    def forget(self, part: str) -> None:
        """It runs no longer."""
        for table in (self.addresses, self.processes, self.commands, self.configurations):
            table.pop(part, None)
