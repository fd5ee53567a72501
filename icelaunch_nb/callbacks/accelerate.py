"""For a loop with accelerate: ``for batch in steps(accelerator, loader):``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from icelaunch_nb.worker.context import get_context

T = TypeVar("T")


def steps(
    accelerator: Any,
    iterable: Iterable[T],
    total: int | None = None,
    *,
    save_to: str | os.PathLike[str] | None = "checkpoints",
) -> Iterator[T]:
    """Yields as `Context.steps` does, and saves by ``accelerator.save_state`` on request.

    After a restart, ``accelerator.load_state(get_context().last_checkpoint)`` continues from the
    newest checkpoint.

    Args:
        accelerator: The `accelerate.Accelerator`.
        iterable: A prepared DataLoader, or any other iterable.
        total: Number of items. None: the iterable's `len`, if it has one.
        save_to: The folder of the checkpoints. Each gets a folder in it, ``step_<n>``, or
            ``step_<n>_attempt_<k>`` after a restart. None: nothing is saved, and the loop's body
            calls `Context.should_checkpoint`.
    """
    context = get_context()
    # Steps count from 0 in every attempt. A checkpoint of an earlier attempt must not be
    # overwritten.
    attempt = f"_attempt_{context.restart_count}" if context.restart_count else ""
    for item in context.steps(iterable, total):
        yield item
        if save_to is not None and context.should_checkpoint():
            path = os.path.join(save_to, f"step_{context.step}{attempt}")
            accelerator.save_state(path)
            if accelerator.is_main_process:
                context.checkpoint_saved(path)
