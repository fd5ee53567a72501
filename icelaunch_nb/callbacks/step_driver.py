"""A loop over `Context.steps` whose steps somebody else makes: a framework's trainer, which tells callbacks of them."""

from __future__ import annotations

import itertools

from icelaunch_nb.context import Context

_OVER = object()


class Pace:
    """One loop of a trainer. To make it is the boundary before the first step.

    Args:
        context: The rank's.
        total: How many steps there will be; 0: not known.

    Attributes:
        goes_on: False once a stop was heeded.
    """

    def __init__(self, context: Context, total: int) -> None:
        self._loop = context.steps(itertools.repeat(None), total=max(0, total))
        self.goes_on = True
        self.step()

    def step(self) -> bool:
        """The boundary after a step: a pause waits here. Whether the loop goes on."""
        self.goes_on = self.goes_on and next(self._loop, _OVER) is not _OVER
        return self.goes_on

    def end(self) -> None:
        """The trainer's loop is over."""
        self._loop.close()
