"""Refuses the launchers of frameworks in a function that already runs on ranks.

``Trainer(strategy="ddp_notebook")`` starts processes of its own. They take this rank's number for
theirs, so they end in a network error, or wait for one another for ever.
"""

from __future__ import annotations

import functools
from typing import Any

from icelaunch_nb.errors import IcelaunchError

_ADVICE = {
    "lightning": 'set strategy="ddp" (or "fsdp", "deepspeed"), which takes the ranks as they are',
    "accelerate": "call the training function itself",
}
_FRAMEWORKS = {
    "lightning": "lightning",
    "pytorch_lightning": "lightning",
    "lightning_fabric": "lightning",
    "accelerate": "accelerate",
}


def refuse(torch: Any) -> None:
    """Makes frameworks' launchers raise an error from here on.

    ``torch.multiprocessing`` works as before for everybody else.

    Args:
        torch: The module.
    """
    start = torch.multiprocessing.start_processes

    @functools.wraps(start)
    def start_processes(fn: Any, *args: Any, **kwargs: Any) -> Any:
        launcher = getattr(fn, "__self__", fn)
        framework = _FRAMEWORKS.get(type(launcher).__module__.partition(".")[0])
        if framework is None:
            return start(fn, *args, **kwargs)
        names = {"fork": '"ddp_notebook" or "ddp_fork"', "spawn": '"ddp_spawn"'}.get(
            kwargs.get("start_method", "spawn"), "one of its own"
        )
        what = f"a strategy like {names}" if framework == "lightning" else "accelerate's launcher"
        raise IcelaunchError(
            f"{what} starts processes of its own, but this function runs on ranks already: "
            f"{_ADVICE[framework]}"
        )

    torch.multiprocessing.start_processes = start_processes
