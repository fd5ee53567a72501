"""The body of a ``%%icelaunch`` cell as a function. The kernel makes it and ranks run it.

The module is small, since each rank imports it.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import types
from typing import Any

from icelaunch_nb.launching import process_targets

# The names that every rank has without defining them. It has torch, too, unless the notebook
# defines that name.
FROM_THE_RANK = ("rank", "local_rank", "world_size", "device", "ctx")
_GET_CONTEXT = "icelaunch_nb.worker.context:get_context"
RESULT = "__icelaunch_result__"  # the body assigns its last expression's value to this global


class CellFunction:
    """A cell's body as a function without arguments. It returns the value of its last expression.

    Args:
        code: The body, compiled as a module.
        carried: A function that is never called. Its globals are the notebook's. Those that it
            names are pickled with it.
        label: The run's name.
    """

    def __init__(self, code: types.CodeType, carried: types.FunctionType, label: str) -> None:
        self.__qualname__ = label
        self.code, self.carried = code, carried

    def __call__(self) -> Any:
        context, namespace = process_targets.resolve(_GET_CONTEXT)(), self.carried.__globals__
        namespace.update(
            rank=context.rank,
            local_rank=context.local_rank,
            world_size=context.world_size,
            device=context.device,
            ctx=context,
        )
        namespace.setdefault("torch", sys.modules["torch"])
        try:
            # Not exec: a body that awaits evaluates to a coroutine.
            running = eval(self.code, namespace)
            if inspect.iscoroutine(running):
                asyncio.run(running)
        except BaseException as error:
            # Without the frames of asyncio.
            failure = error.with_traceback(self._without_outer_frames(error.__traceback__))
        else:
            return namespace.pop(RESULT, None)
        raise failure

    def _without_outer_frames(
        self, traceback: types.TracebackType | None
    ) -> types.TracebackType | None:
        step = traceback
        while step is not None and step.tb_frame.f_code is not self.code:
            step = step.tb_next
        return step or traceback
