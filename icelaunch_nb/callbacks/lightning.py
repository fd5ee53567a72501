"""For a Lightning Trainer: ``Trainer(callbacks=[IceCallback()])``."""

from __future__ import annotations

import math
import os
from typing import Any

from icelaunch_nb.callbacks.metric_filter import report
from icelaunch_nb.callbacks.step_driver import StepDriver
from icelaunch_nb.worker.context import Context, get_context

try:
    from lightning.pytorch import Callback
except ImportError:
    # The same library under its older name.
    from pytorch_lightning import Callback


class IceCallback(Callback):  # type: ignore[misc]
    """Has a Lightning Trainer act on pause, stop and checkpoint requests.

    The panel shows its progress and metrics. A step is a training batch. A stop ends ``fit`` as
    early stopping does, even before ``min_epochs`` and ``min_steps``. After a restart,
    ``trainer.fit(model, ckpt_path=get_context().last_checkpoint)`` continues from the newest
    checkpoint.

    Args:
        dirpath: The folder of checkpoints that were requested. None: ``icelaunch`` in the trainer's
            ``default_root_dir``.
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None) -> None:
        self._dirpath = dirpath
        self._epochs: StepDriver | None = None
        self._batches: StepDriver | None = None
        # Names of metrics that come from validation. During training their values are old.
        self._validation_metrics: set[str] = set()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._epochs = StepDriver(get_context(), _known_count(trainer.max_epochs))
        self._stop_if_requested(trainer, self._epochs)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._batches = StepDriver(get_context(), _known_count(trainer.num_training_batches))
        self._stop_if_requested(trainer, self._batches)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        context = get_context()
        # log_every_n_steps=0 means that nothing is logged.
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            metrics = (
                {"loss": outputs["loss"]} if isinstance(outputs, dict) and "loss" in outputs else {}
            )
            metrics |= {
                name: value
                for name, value in trainer.callback_metrics.items()
                if name not in self._validation_metrics
            }
            report(context, metrics)
        if self._batches is not None:
            self._batches.step()
            self._stop_if_requested(trainer, self._batches)
        if context.should_checkpoint():
            self._save(trainer, context)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        metrics = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val") or name in self._validation_metrics
        }
        self._validation_metrics |= metrics.keys()
        if metrics:
            report(get_context(), metrics)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._batches is not None:
            self._batches.close()
        if self._epochs is not None:
            self._epochs.step()
            self._stop_if_requested(trainer, self._epochs)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for driver in (self._batches, self._epochs):
            if driver is not None:
                driver.close()

    def _stop_if_requested(self, trainer: Any, driver: StepDriver) -> None:
        if not driver.running:
            # The trainer would go on until it has reached these.
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
            trainer.should_stop = True

    def _save(self, trainer: Any, context: Context) -> None:
        folder = self._dirpath or os.path.join(trainer.default_root_dir, "icelaunch")
        path = os.path.join(folder, f"step={trainer.global_step}.ckpt")
        # Every rank calls this, since strategies gather their shards in it.
        trainer.save_checkpoint(path)
        if context.rank == 0:
            context.checkpoint_saved(path)


def _known_count(count: Any) -> int:
    """A count as an int. 0 for Lightning's -1, None and inf, which mean that it isn't known."""
    return int(count) if count is not None and 0 < count < math.inf else 0
