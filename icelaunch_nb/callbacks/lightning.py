"""For a Lightning Trainer: ``Trainer(callbacks=[IceCallback()])``."""

from __future__ import annotations

import math
import os
from typing import Any

from icelaunch_nb.callbacks.logged import report
from icelaunch_nb.callbacks.pace import Pace
from icelaunch_nb.context import Context, get_context

try:
    from lightning.pytorch import Callback
except ImportError:  # the same library under its older name
    from pytorch_lightning import Callback


class IceCallback(Callback):  # type: ignore[misc]
    """Has a Lightning Trainer heed pause, stop and checkpoint requests, and shows its progress and metrics in the panel.

    A step is a training batch. A stop ends ``fit`` as early stopping does, also before ``min_epochs`` and ``min_steps``. After a
    restart, ``trainer.fit(model, ckpt_path=get_context().last_checkpoint)`` goes on from the newest checkpoint.

    Args:
        dirpath: Where checkpoints are saved on request; None: ``icelaunch`` in the trainer's ``default_root_dir``.
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None) -> None:
        self._dirpath = dirpath
        self._epochs: Pace | None = None
        self._batches: Pace | None = None
        self._validated: set[str] = (
            set()
        )  # names of metrics that validation gave; between two of them they are old

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._epochs = Pace(get_context(), _known(trainer.max_epochs))
        self._stop_if_asked(trainer, self._epochs)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._batches = Pace(get_context(), _known(trainer.num_training_batches))
        self._stop_if_asked(trainer, self._batches)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        context = get_context()
        if (
            trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0
        ):  # 0: its user wants nothing logged
            found = (
                {"loss": outputs["loss"]} if isinstance(outputs, dict) and "loss" in outputs else {}
            )
            found |= {
                name: value
                for name, value in trainer.callback_metrics.items()
                if name not in self._validated
            }
            report(context, found)
        if self._batches is not None:
            self._batches.step()
            self._stop_if_asked(trainer, self._batches)
        if context.should_checkpoint():
            self._save(trainer, context)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        found = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val") or name in self._validated
        }
        self._validated |= found.keys()
        if found:
            report(get_context(), found)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._batches is not None:
            self._batches.end()
        if self._epochs is not None:
            self._epochs.step()
            self._stop_if_asked(trainer, self._epochs)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for pace in (self._batches, self._epochs):
            if pace is not None:
                pace.end()

    def _stop_if_asked(self, trainer: Any, pace: Pace) -> None:
        if not pace.goes_on:
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = (
                None  # else it would train on up to these
            )
            trainer.should_stop = True

    def _save(self, trainer: Any, context: Context) -> None:
        folder = self._dirpath or os.path.join(trainer.default_root_dir, "icelaunch")
        path = os.path.join(folder, f"step={trainer.global_step}.ckpt")
        trainer.save_checkpoint(path)  # on every rank: strategies gather their shards here
        if context.rank == 0:
            context.checkpoint_saved(path)


def _known(count: Any) -> int:
    """Lightning's -1, None and inf stand for "not known"."""
    return int(count) if count is not None and 0 < count < math.inf else 0
