"""What a trainer logs, as metrics. Names and values are its user's business: none of them is an error here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.context import Context
from icelaunch_nb.metrics import COLUMNS, number


def report(context: Context, logged: Mapping[str, Any], step: int | None = None) -> None:
    """Reports what are numbers; what has the name of a column that every row has is called ``logged_…`` instead.

    Args:
        context: The rank's.
        logged: Values by name.
        step: Number of the step; None: as `Context.steps` counts.
    """
    metrics = {}
    for name, value in logged.items():
        with contextlib.suppress(TypeError):
            metrics[f"logged_{name}" if name in COLUMNS else str(name)] = number(name, value)
    context.report(step=step, **metrics)
