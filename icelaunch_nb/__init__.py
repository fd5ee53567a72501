"""icelaunch_nb: run a notebook function on every rank of torch.distributed, warm and safe.

Four folders are processes: `client` is the launching process, to which `notebook` adds what Jupyter
needs. `host` holds the warm forkserver. `agent` is the agent of one run. `worker` is a rank. They
meet in the run directory alone (`rundir`). `launching`, `pickling` and `system` are shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from icelaunch_nb.client import display_hooks
from icelaunch_nb.client.launch import launch, launch_agent
from icelaunch_nb.client.run import Run
from icelaunch_nb.client.runs import attach, runs
from icelaunch_nb.config import LaunchConfig, Std
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
    SingleProcessWarning,
)
from icelaunch_nb.events import Events
from icelaunch_nb.rundir.run_state import State
from icelaunch_nb.worker.breakpoints import set_trace
from icelaunch_nb.worker.context import Context, get_context

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
    "SingleProcessWarning",
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
    """Imports `LaunchPanel` on demand: it needs ipywidgets, which most processes never use."""
    if name == "LaunchPanel":
        from icelaunch_nb.notebook.form.widget import LaunchPanel

        return LaunchPanel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _panel_of(run: Run) -> Any:
    from icelaunch_nb.notebook.panel.panel import panel_of

    return panel_of(run)


display_hooks.set_panel_factory(_panel_of)


def __dir__() -> list[str]:
    """The public names, for TAB. `LaunchPanel` is among them, and no imported module is."""
    return list(__all__)


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext icelaunch_nb``: starts the host in the background, for a warm first launch."""
    from icelaunch_nb.notebook import extension

    extension.load(shell)
