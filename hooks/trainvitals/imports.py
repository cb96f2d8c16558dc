"""Acting right after a module is imported, so that libraries can be patched before the script uses them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType


class _Watcher(MetaPathFinder):
    """Finds nothing itself: it lets the other finders find, and adds an action to the loader of a watched module."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.actions:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self._act_after(spec.loader, name)
                return spec
        return None

    def _act_after(self, loader: Loader, name: str) -> None:
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # back to the class's own method
            original(module)
            action = self.actions.pop(name, None)
            if action is not None:
                action(module)

        loader.exec_module = exec_module  # type: ignore[method-assign]


_watcher = _Watcher()


def when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call ``action(module)`` once: now if `name` is imported already, else right after its import.

    The action must not raise: it runs inside the script's own import statement.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        action(module)
        return
    _watcher.actions[name] = action
    if _watcher not in sys.meta_path:
        sys.meta_path.insert(0, _watcher)


def forget() -> None:
    """Watch for no import any more."""
    _watcher.actions.clear()
    if _watcher in sys.meta_path:
        sys.meta_path.remove(_watcher)
