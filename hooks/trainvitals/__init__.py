"""trainvitals: the vital signs of a training run, from inside the training process.

`attach()` does in code what ``trainvitals run -- python train.py`` does from outside; `log()` adds scalars of the
script's own. Importing this package imports nothing but the standard library and changes nothing.
"""

from trainvitals.attachment import attach, detach, log

__all__ = ["__version__", "attach", "detach", "log"]
__version__ = "0.1.0"
