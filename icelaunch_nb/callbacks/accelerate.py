"""For a loop with accelerate: ``for batch in steps(accelerator, loader):``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from icelaunch_nb.context import get_context

T = TypeVar("T")


def steps(
    accelerator: Any,
    iterable: Iterable[T],
    total: int | None = None,
    *,
    save_to: str | os.PathLike[str] | None = "checkpoints",
) -> Iterator[T]:
    """`Context.steps`, with a checkpoint by ``accelerator.save_state`` where one is asked for.

    After a restart, ``accelerator.load_state(get_context().last_checkpoint)`` goes on from the newest one.

    Args:
        accelerator: The `accelerate.Accelerator`.
        iterable: A prepared DataLoader, or anything else to go through.
        total: How many there are; None: its `len`, where it has one.
        save_to: The folder in which each checkpoint gets a folder of its own, ``step_<n>``, or ``step_<n>_attempt_<k>`` after a
            restart; None: the loop's body asks `Context.should_checkpoint` itself.
    """
    context = get_context()
    # Steps count from 0 in every attempt, and the checkpoint that this one goes on from must not be overwritten.
    attempt = f"_attempt_{context.restart_count}" if context.restart_count else ""
    for item in context.steps(iterable, total):
        yield item
        if save_to is not None and context.should_checkpoint():
            path = os.path.join(save_to, f"step_{context.step}{attempt}")
            accelerator.save_state(path)
            if accelerator.is_main_process:
                context.checkpoint_saved(path)
