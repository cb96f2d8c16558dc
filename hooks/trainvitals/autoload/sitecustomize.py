"""Attaches trainvitals to each Python process of a run.

`trainvitals run` puts this folder on PYTHONPATH, which every child inherits, however it is started; Python imports a
module of this name at its start. Nothing here may ever keep the script from starting, nor slow down the start of the
many processes that train nothing: no module is imported that Python has not loaded by then.
"""

import os
import sys

_HERE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 (pathlib is no cheap import)


def _attach() -> None:
    if sys.version_info < (3, 10) or "TRAINVITALS_RUN_ID" not in os.environ:
        return
    if "trainvitals" not in sys.modules:
        # From beside this file: the script's interpreter need not have trainvitals installed.
        sys.path.insert(0, os.path.dirname(os.path.dirname(_HERE)))  # noqa: PTH120
        try:
            import trainvitals  # noqa: F401 (it imports nothing else, so the path is not for others)
        finally:
            del sys.path[0]
    from trainvitals import imports

    imports.when_imported("torch", _attach_to_torch)


def _attach_to_torch(module: object) -> None:
    # Imported no earlier, so that processes which never import torch do not pay for it.
    try:
        from trainvitals import attachment, options, session

        if not options.disabled():
            attachment.start(session.Run.from_environment())
    except Exception as error:
        _tell(error)


def _tell(error: Exception) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"trainvitals: this process is not being recorded: {error!r}\n")


def _run_the_other_sitecustomize() -> None:
    """The one that Python would have found without us."""
    ours = sys.modules.pop("sitecustomize")
    places = [place for place, entry in enumerate(sys.path) if os.path.realpath(entry or ".") == _HERE]
    hidden = [sys.path.pop(place) for place in reversed(places)]
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", ours)
        for place in places:
            sys.path.insert(place, hidden.pop())


try:
    _attach()
except Exception as error:  # the script comes first
    _tell(error)
_run_the_other_sitecustomize()
