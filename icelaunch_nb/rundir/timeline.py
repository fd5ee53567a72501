"""The timeline: what happens in a run beside its attempts, such as a pause or a checkpoint.

The agent alone writes the journal. It sees by itself when flags of the events board change. A rank
or a kernel that has another event for the timeline sends a `TimelineEvent` to the agent, through
the run's control FIFO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from icelaunch_nb.rundir import agent_requests
from icelaunch_nb.rundir.journal_events import TimelineEvent
from icelaunch_nb.rundir.paths import RunDir

# Characters.
_MAX_TEXT = 400
# Kinds of events that say what a rank's state is, so none may be left out.
ALWAYS_WRITTEN = (
    "debugger_start",
    "debugger_step",
    "debugger_end",
    "silent",
    "recovered",
)


def send(run_dir: RunDir, kind: str, text: str, *, rank: int | None = None, **facts: Any) -> bool:
    """Sends an event to the agent, which writes it into the journal.

    Panels find it there, now and later. Sending never waits, and never raises for an agent that is
    gone or doesn't read.

    Args:
        run_dir: The run.
        kind: The event's kind, in one word (``"debugger_start"``). A panel may draw events by it.
        text: A short sentence (``"waits at cell 5, line 7"``).
        rank: The global rank that it is about. None: the run.
        **facts: Other fields of `TimelineEvent`.

    Returns:
        Whether the event was written to the FIFO.
    """
    return agent_requests.send(
        run_dir,
        agent_requests.WriteEvent(
            event=TimelineEvent(kind=kind, text=text[:_MAX_TEXT], rank=rank, **facts)
        ),
    )


def format_ranks(ranks: Sequence[int]) -> str:
    """Formats ranks: ``rank 2``, or ``ranks 0, 2-7``."""
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
