"""The body of a ``%%icelaunch`` cell as a function: made in the kernel, run in a rank. Small, since each rank imports it."""

from __future__ import annotations

import asyncio
import inspect
import sys
import types
from typing import Any

from icelaunch_nb.launching import process_targets

# What every rank finds without having imported or defined it; torch as well, unless the notebook has its own idea of it.
FROM_THE_RANK = ("rank", "local_rank", "world_size", "device", "ctx")
_GET_CONTEXT = "icelaunch_nb.worker.context:get_context"
RESULT = (
    "__icelaunch_result__"  # the global that the body leaves the value of its last expression in
)


class CellFunction:
    """A cell's body as a function without arguments: its value is that of its last expression.

    Args:
        code: The body, compiled as a module.
        carried: A function that is never called: its globals are the notebook's, and those that it names go to the ranks.
        label: What the run is called.
    """

    def __init__(self, code: types.CodeType, carried: types.FunctionType, label: str) -> None:
        self.__qualname__ = label
        self.code, self.carried = code, carried

    def __call__(self) -> Any:
        context, namespace = process_targets.find(_GET_CONTEXT)(), self.carried.__globals__
        namespace.update(
            rank=context.rank,
            local_rank=context.local_rank,
            world_size=context.world_size,
            device=context.device,
            ctx=context,
        )
        namespace.setdefault("torch", sys.modules["torch"])
        try:
            running = eval(self.code, namespace)  # not exec: a body that awaits gives a coroutine
            if inspect.iscoroutine(running):
                asyncio.run(running)
        except BaseException as error:
            failure = error.with_traceback(
                self._from_the_body_on(error.__traceback__)
            )  # without the frames of asyncio
        else:
            return namespace.pop(RESULT, None)
        raise failure

    def _from_the_body_on(
        self, traceback: types.TracebackType | None
    ) -> types.TracebackType | None:
        step = traceback
        while step is not None and step.tb_frame.f_code is not self.code:
            step = step.tb_next
        return step or traceback
