"""Acting right after a module is imported, so that libraries can be patched before the script uses them.

Every Python process of a run loads this module, and most of them never train: it imports nothing that Python has not
loaded already.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class _Watcher:
    """Finds nothing itself: it lets the other finders find, and adds an action to the loader of a watched module."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.actions:
            return None
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self._act_after(spec.loader, name)
                return spec
        return None

    def _act_after(self, loader: Loader, name: str) -> None:
        original = getattr(loader, "exec_module", None)
        if original is None or isinstance(loader, type):  # a class loads all that is built in
            return

        def exec_module(module: ModuleType) -> None:
            # Some finders have one loader for all modules, and what is found need not be loaded.
            if module.__name__ != name:
                original(module)
                return
            if vars(loader).get("exec_module") is exec_module:
                del loader.exec_module  # back to the class's own method
            original(module)
            self._act(module)

        try:
            loader.exec_module = exec_module  # type: ignore[method-assign]
        except (AttributeError, TypeError):
            return  # a loader without attributes: its library stays unwatched

    def _act(self, module: ModuleType) -> None:
        action = self.actions.pop(module.__name__, None)
        if action is not None:
            act(action, module)


_watcher = _Watcher()


def act(action: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Call ``action(module)``, whose errors must not reach the script's import statement."""
    try:
        action(module)
    except Exception as error:
        tell(f"{module.__name__} is not being watched: {error!r}")


def tell(message: str) -> None:
    """One line for the user on stderr, if there is one."""
    try:
        sys.stderr.write(f"trainvitals: {message}\n")
    except Exception:
        return  # a daemon has none, and a closed one is the script's own affair


def when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call ``action(module)`` once: now if `name` is imported already, else right after its import.

    An error of the action is told in one line and goes no further.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        act(action, module)
        return
    _watcher.actions[name] = action
    if not any(finder is _watcher for finder in sys.meta_path):
        sys.meta_path.insert(0, _watcher)


def forget() -> None:
    """Watch for no import any more."""
    _watcher.actions.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _watcher]
