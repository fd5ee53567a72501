"""Launchers of frameworks, left in a function that runs on ranks already: refused by a clear error.

``Trainer(strategy="ddp_notebook")`` starts processes of its own, which take this rank's number for theirs: they end in an error of
the network, or wait for ever for one another.
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
    """From here on a framework's launcher raises an error; ``torch.multiprocessing`` serves everybody else as before."""
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
            f"{what} starts processes of its own, but this function runs on ranks already: {_ADVICE[framework]}"
        )

    torch.multiprocessing.start_processes = start_processes
