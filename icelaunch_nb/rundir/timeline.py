"""The timeline: what happens in a run beside its attempts — a pause, a checkpoint, a rank that waits in a debugger.

The agent alone writes the journal. It sees the flags of the events board change by itself; whoever else has something to tell, a
rank or a kernel, sends it a `TimelineEvent` through the run's control FIFO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from icelaunch_nb.rundir import control
from icelaunch_nb.rundir.journal_events import TimelineEvent
from icelaunch_nb.rundir.paths import RunDir

_TEXT = 400  # characters
ALWAYS_WRITTEN = (
    "debugger_start",
    "debugger_step",
    "debugger_end",
    "silent",
    "recovered",
)  # kinds that say how a rank stands: none may be left out


def send(run_dir: RunDir, kind: str, text: str, *, rank: int | None = None, **facts: Any) -> bool:
    """Has the agent write an event into the journal, where every panel finds it, now and next week.

    Args:
        run_dir: The run.
        kind: One word for what it is (``"debugger_start"``), by which a panel may draw it.
        text: A short sentence (``"waits at cell 5, line 7"``).
        rank: Whom it is about; None: the run.
        **facts: Other fields of `TimelineEvent`.

    Returns:
        Whether it is on its way; never waits, and never raises for an agent that is gone or doesn't read.
    """
    return control.send(
        run_dir,
        control.WriteEvent(event=TimelineEvent(kind=kind, text=text[:_TEXT], rank=rank, **facts)),
    )


def format_ranks(ranks: Sequence[int]) -> str:
    """``rank 2``, or ``ranks 0, 2-7``."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    words = ", ".join(
        str(first) if first == last else f"{first}{', ' if last == first + 1 else '-'}{last}"
        for first, last in parts
    )
    return f"rank{'s' * (len(ranks) != 1)} {words}"
