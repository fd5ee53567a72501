"""Reports what a trainer logs as metrics. No name or value of a user's is an error here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.rundir.metrics import COLUMNS, number
from icelaunch_nb.worker.context import Context


def report(context: Context, logged: Mapping[str, Any], step: int | None = None) -> None:
    """Reports the values that are numbers.

    A value with the name of a standard column is reported as ``logged_<name>``.

    Args:
        context: The rank's context.
        logged: Values by name.
        step: Number of the step. None: the step of `Context.steps`.
    """
    metrics = {}
    for name, value in logged.items():
        with contextlib.suppress(TypeError):
            metrics[f"logged_{name}" if name in COLUMNS else str(name)] = number(name, value)
    context.report(step=step, **metrics)
