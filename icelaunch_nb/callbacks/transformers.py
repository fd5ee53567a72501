"""For a transformers Trainer: ``Trainer(..., callbacks=[IceCallback()])``."""

from __future__ import annotations

import os
from typing import Any

from transformers import TrainerCallback

from icelaunch_nb.callbacks.metric_filter import report
from icelaunch_nb.callbacks.step_driver import StepDriver
from icelaunch_nb.worker.context import get_context


class IceCallback(TrainerCallback):  # type: ignore[misc]
    """Has a transformers Trainer act on pause, stop and checkpoint requests.

    The panel shows its progress and logs. A step is an optimizer step, as the Trainer counts them.
    The Trainer saves a requested checkpoint in its ``output_dir``. The checkpoints that it saves
    unasked count too. After a restart,
    ``trainer.train(resume_from_checkpoint=get_context().last_checkpoint)`` continues from the
    newest checkpoint.
    """

    def __init__(self) -> None:
        self._driver: StepDriver | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._driver = StepDriver(get_context(), state.max_steps - state.global_step)
        self._stop_if_requested(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._driver is not None:
            self._driver.step()
            self._stop_if_requested(control)
        if get_context().checkpoint_due():
            # The Trainer saves right after this. With save_strategy="best" it may not: there, an
            # evaluation decides.
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        context = get_context()
        # The checkpoint is saved. This has the next boundary report the request as done.
        context.should_checkpoint()
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
        if self._driver is not None:
            self._driver.close()

    def _stop_if_requested(self, control: Any) -> None:
        if self._driver is not None and not self._driver.running:
            control.should_training_stop = True
