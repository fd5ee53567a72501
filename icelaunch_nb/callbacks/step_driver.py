"""Drives `Context.steps` from the callbacks of a framework's trainer, which has the loop."""

from __future__ import annotations

import itertools

from icelaunch_nb.worker.context import Context

_EXHAUSTED = object()


class StepDriver:
    """One loop of a trainer. The constructor is the boundary before the first step.

    Args:
        context: The rank's context.
        total: Number of steps. 0: not known.

    Attributes:
        running: False once a stop was acted on.
    """

    def __init__(self, context: Context, total: int) -> None:
        self._loop = context.steps(itertools.repeat(None), total=max(0, total))
        self.running = True
        self.step()

    def step(self) -> bool:
        """Passes the boundary after a step. A pause waits here.

        Returns:
            Whether the loop goes on.
        """
        self.running = self.running and next(self._loop, _EXHAUSTED) is not _EXHAUSTED
        return self.running

    def close(self) -> None:
        """Ends the loop, once the trainer's loop is over."""
        self._loop.close()
