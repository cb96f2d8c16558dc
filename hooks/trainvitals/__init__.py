"""trainvitals: the vital signs of a training run, from inside the training process.

`attach()` does in code what ``trainvitals run -- python train.py`` does from outside; `log()` adds scalars of the
script's own. Importing this package imports nothing else and changes nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in the module typing, which not every process of a run has to load
if TYPE_CHECKING:
    from typing import Any

    from trainvitals.attachment import attach, detach, log

__all__ = ["__version__", "attach", "detach", "log"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the rest when it is asked for: this module is imported in every Python process of a run."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trainvitals import attachment

    return getattr(attachment, name)


def __dir__() -> list[str]:
    return __all__
