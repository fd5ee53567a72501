"""For a transformers Trainer: ``Trainer(..., callbacks=[IceCallback()])``."""

from __future__ import annotations

import os
from typing import Any

from transformers import TrainerCallback

from icelaunch_nb.callbacks.logged import report
from icelaunch_nb.callbacks.pace import Pace
from icelaunch_nb.context import get_context


class IceCallback(TrainerCallback):  # type: ignore[misc]
    """Has a transformers Trainer heed pause, stop and checkpoint requests, and shows its progress and logs in the panel.

    A step is an optimizer step, as the Trainer counts them. A checkpoint is the Trainer's own, in its ``output_dir``; those that it
    saves by itself count too. After a restart, ``trainer.train(resume_from_checkpoint=get_context().last_checkpoint)`` goes on
    from the newest one.
    """

    def __init__(self) -> None:
        self._pace: Pace | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._pace = Pace(get_context(), state.max_steps - state.global_step)
        self._stop_if_asked(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._pace is not None:
            self._pace.step()
            self._stop_if_asked(control)
        if get_context().checkpoint_due():
            control.should_save = True  # heeded right after this, or not: with save_strategy="best" an evaluation has the last word

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        context = get_context()
        context.should_checkpoint()  # what was asked for is had, and the next boundary tells so
        path = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if context.rank == 0 and os.path.isdir(path):
            context.checkpoint_saved(path)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        numbers = {
            name: value for name, value in (logs or {}).items() if isinstance(value, int | float)
        }
        report(get_context(), numbers, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._pace is not None:
            self._pace.end()

    def _stop_if_asked(self, control: Any) -> None:
        if self._pace is not None and not self._pace.goes_on:
            control.should_training_stop = True
