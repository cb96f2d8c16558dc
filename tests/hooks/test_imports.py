"""Acting after an import, beside everything else that has a hand in Python's imports."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from trainvitals import imports


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with the modules `one` and `two`, of which `one` is watched: `acted` names the modules."""
    for name in ("watched_one", "watched_two"):
        (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    acted.clear()
    imports.when_imported("watched_one", lambda module: acted.append(module.__name__))
    yield tmp_path
    imports.forget()
    for name in ("watched_one", "watched_two"):
        sys.modules.pop(name, None)


acted: list[str] = []


class OneLoaderForAll(importlib.machinery.SourceFileLoader):
    """As pytest's: the finder is the loader of all that it finds."""

    def __init__(self, folder: Path) -> None:
        super().__init__("any", str(folder))
        self.folder = folder

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        file = self.folder / f"{name}.py"
        return importlib.util.spec_from_file_location(name, file, loader=self) if file.exists() else None

    def exec_module(self, module: ModuleType) -> None:
        exec(Path(str(module.__file__)).read_text(), vars(module))  # noqa: S102 (the test's own text)


class Slotted:
    __slots__ = ()

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["value"] = 1


class Finder:
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self.loader) if name.startswith("watched_") else None


def test_asking_for_a_module_without_importing_it(library: Path) -> None:
    for _ in range(3):
        assert importlib.util.find_spec("watched_one") is not None
    assert acted == []
    importlib.import_module("watched_one")
    assert acted == ["watched_one"]
    importlib.reload(sys.modules["watched_one"])
    assert acted == ["watched_one"]
    assert "exec_module" not in vars(sys.modules["watched_one"].__loader__)


def test_one_loader_for_all_modules(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = OneLoaderForAll(library)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path[:1], finder, *sys.meta_path[1:]])
    for _ in range(3):
        importlib.util.find_spec("watched_one")
    importlib.import_module("watched_two")
    assert acted == []
    assert importlib.import_module("watched_one").value == 1
    assert acted == ["watched_one"]
    del sys.modules["watched_two"]
    assert importlib.import_module("watched_two").value == 1
    assert acted == ["watched_one"]


def test_a_loader_that_takes_no_attributes_and_one_that_is_a_class(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path[:1], Finder(Slotted()), *sys.meta_path[1:]])
    assert importlib.import_module("watched_one").value == 1
    assert acted == []  # not watched, but imported
    imports.when_imported("watched_two", lambda module: acted.append(module.__name__))
    before = dict(vars(importlib.machinery.BuiltinImporter))
    monkeypatch.setattr(
        sys, "meta_path", [*sys.meta_path[:1], Finder(importlib.machinery.BuiltinImporter), *sys.meta_path[1:]]
    )
    imports._watcher.find_spec("watched_two", None)
    assert dict(vars(importlib.machinery.BuiltinImporter)) == before


def test_a_module_whose_import_fails_at_first(library: Path) -> None:
    (library / "watched_one.py").write_text("raise ValueError('not yet')\n")
    with pytest.raises(ValueError, match="not yet"):
        importlib.import_module("watched_one")
    (library / "watched_one.py").write_text("value = 1234\n")
    importlib.invalidate_caches()
    importlib.import_module("watched_one")
    assert acted == ["watched_one"]


def test_an_action_that_raises_is_told_in_one_line(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imports.when_imported("watched_one", lambda module: 1 / 0)  # type: ignore[arg-type]
    assert importlib.import_module("watched_one").value == 1
    assert capsys.readouterr().err == (
        "trainvitals: watched_one is not being watched: ZeroDivisionError('division by zero')\n"
    )


def test_no_stderr_to_tell_anything(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stderr in (None, open(library / "closed", "w")):  # noqa: SIM115, PTH123
        monkeypatch.setattr(sys, "stderr", stderr)
        if stderr is not None:
            stderr.close()
        imports.tell("nobody hears this")


def test_a_lazy_loader(library: Path) -> None:
    spec = importlib.util.find_spec("watched_one")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["watched_one"] = module
    assert spec.loader is not None
    spec.loader.exec_module(module)
    assert acted == []
    assert module.value == 1
    assert acted == ["watched_one"]


def test_two_threads_import_at_once(library: Path) -> None:
    (library / "watched_one.py").write_text("import time\ntime.sleep(0.05)\nvalue = 1\n")
    threads = [threading.Thread(target=importlib.import_module, args=("watched_one",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert acted == ["watched_one"]
