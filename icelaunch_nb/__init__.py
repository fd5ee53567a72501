"""icelaunch_nb: run a notebook function on every rank of torch.distributed, warm and safe, and have its results back.

The rooms: `notebook` is the kernel, `host` holds the warm forkserver, `agent` is one run's agent, `worker` is a rank. They meet
only in the run directory (`rundir`), and share the modules beside this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from icelaunch_nb.breakpoints import set_trace
from icelaunch_nb.config import LaunchConfig, Std
from icelaunch_nb.context import Context, get_context
from icelaunch_nb.errors import (
    BigCaptureWarning,
    ConfigError,
    Failure,
    HostError,
    IcelaunchError,
    PackingError,
    RunFailed,
    RunLost,
    RunStopped,
)
from icelaunch_nb.events import Events
from icelaunch_nb.launch import launch, launch_agent
from icelaunch_nb.run import Run
from icelaunch_nb.runs import attach, runs
from icelaunch_nb.story import State

if TYPE_CHECKING:
    from icelaunch_nb.notebook.form.widget import LaunchPanel

__all__ = [
    "BigCaptureWarning",
    "ConfigError",
    "Context",
    "Events",
    "Failure",
    "HostError",
    "IcelaunchError",
    "LaunchConfig",
    "LaunchPanel",
    "PackingError",
    "Run",
    "RunFailed",
    "RunLost",
    "RunStopped",
    "State",
    "Std",
    "attach",
    "get_context",
    "launch",
    "launch_agent",
    "runs",
    "set_trace",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`LaunchPanel` brings ipywidgets, which a notebook without a form, a script and a rank needn't pay for."""
    if name == "LaunchPanel":
        from icelaunch_nb.notebook.form.widget import LaunchPanel

        return LaunchPanel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext icelaunch_nb``: starts the host in the background, so that the first launch finds it warm."""
    from icelaunch_nb.notebook import extension

    extension.load(shell)
