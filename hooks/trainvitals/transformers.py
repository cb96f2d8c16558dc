"""Recording in one line with Hugging Face's Trainer: ``Trainer(..., callbacks=[TrainVitalsCallback()])``.

For those who do not want a launcher. Importing this module imports transformers.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from trainvitals.framework_callback import Recording

__all__ = ["TrainVitalsCallback"]


class TrainVitalsCallback(TrainerCallback):
    """Records a training as the run `name` (by default named after the script), with what the Trainer logs.

    Where ``trainvitals run`` or ``attach()`` records already, it only adds these scalars and the number of the epoch.
    """

    def __init__(self, name: str | None = None) -> None:
        self._recording = Recording(name)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin."""
        self._recording.begin()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the epoch."""
        self._recording.epoch(int(state.epoch or 0))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Pass on what is logged."""
        self._recording.log(logs or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End. After an exception this is not called: then the end of the process tells how it ended."""
        self._recording.epoch(int(state.epoch or 0))
        self._recording.end()
