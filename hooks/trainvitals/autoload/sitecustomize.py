"""Attaches trainvitals to each Python process of a run.

`trainvitals run` puts this folder on PYTHONPATH, which every child inherits, however it is started; Python imports a
module of this name at its start. Nothing here may ever keep the script from starting.
"""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent


def _attach() -> None:
    if sys.version_info < (3, 10) or "TRAINVITALS_RUN_ID" not in os.environ:
        return
    # From beside this file, not from sys.path: the script's interpreter need not have trainvitals installed.
    package = _HERE.parent
    if "trainvitals" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "trainvitals", package / "__init__.py", submodule_search_locations=[str(package)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"no trainvitals in {package}")
        module = importlib.util.module_from_spec(spec)
        sys.modules["trainvitals"] = module
        spec.loader.exec_module(module)
    from trainvitals import imports

    imports.when_imported("torch", _attach_to_torch)


def _attach_to_torch(module: ModuleType) -> None:
    # Imported no earlier, so that processes which never import torch do not pay for it.
    try:
        from trainvitals import attachment, session

        attachment.start(session.Run.from_environment())
    except Exception as error:
        _tell(error)


def _tell(error: Exception) -> None:
    sys.stderr.write(f"trainvitals: this process is not being recorded: {error!r}\n")


def _run_the_other_sitecustomize() -> None:
    """The one that Python would have found without us."""
    path = [entry for entry in sys.path if Path(entry).resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


try:
    _attach()
except Exception as error:  # the script comes first
    _tell(error)
_run_the_other_sitecustomize()
