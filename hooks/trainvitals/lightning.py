"""Recording in one line with Lightning: ``Trainer(callbacks=[TrainVitalsCallback()])``.

For those who do not want a launcher. Works with the packages ``lightning`` and ``pytorch_lightning``. Importing this
module imports the first of them that is installed, or the one that is imported already.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from trainvitals.framework_callback import Recording

if TYPE_CHECKING:
    from lightning.pytorch import Callback
elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback
else:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:
        from pytorch_lightning import Callback

__all__ = ["TrainVitalsCallback"]

# Lightning collects its metrics anew whenever it is asked for them.
_EVERY_SECONDS: Final = 1.0


class TrainVitalsCallback(Callback):
    """Records a fit as the run `name` (by default named after the script), with the metrics given to ``self.log``.

    Where ``trainvitals run`` or ``attach()`` records already, it only adds these metrics and the number of the epoch.
    Metrics arrive once a second and at the ends of epochs. It has no state and adds nothing to checkpoints.
    """

    def __init__(self, name: str | None = None) -> None:
        self._recording = Recording(name)
        self._due = 0.0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin, before the strategy wraps the model."""
        if stage == "fit":
            self._recording.begin()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the epoch."""
        self._recording.epoch(trainer.current_epoch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Pass on the metrics, now and then."""
        now = monotonic()
        if now >= self._due:
            self._due = now + _EVERY_SECONDS
            self._recording.log(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Pass on the metrics."""
        self._recording.log(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Pass on the metrics, but not those of the check before training."""
        if not trainer.sanity_checking:
            self._recording.log(trainer.callback_metrics)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Pass on the last metrics and the number of epochs."""
        self._recording.epoch(trainer.current_epoch)
        self._recording.log(trainer.callback_metrics)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End. After an exception this is not called: then the end of the process tells how it ended."""
        if stage == "fit":
            self._recording.end()
