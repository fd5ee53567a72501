"""Hooks for what a notebook adds to a run: a panel, and clicks that work while a cell waits.

`icelaunch_nb` and the notebook's widgets register their functions here, since the client imports
neither. In a script nothing is registered, and a run shows as text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_panel_factory: list[Callable[[Any], Any]] = []
_wait_callbacks: list[Callable[[], None]] = []


def set_panel_factory(panel_of: Callable[[Any], Any]) -> None:
    """Registers the function that makes the panel of a run."""
    _panel_factory[:] = [panel_of]


def add_wait_callback(function: Callable[[], None]) -> None:
    """Registers a function for the thread that waits for a run to call every few milliseconds."""
    if function not in _wait_callbacks:
        _wait_callbacks.append(function)


def panel_of(run: Any) -> Any:
    """Makes the panel of a run.

    Raises:
        ImportError: ipywidgets isn't installed.
    """
    return _panel_factory[0](run)


def run_wait_callbacks() -> None:
    """Calls the registered functions. Whatever waits for a run calls this."""
    for function in _wait_callbacks:
        function()
