"""Moments: what happens in a run beside its attempts — a pause, a checkpoint, a rank that waits in a debugger — for the timeline.

The agent alone writes the journal. It sees the flags of the events board change by itself; whoever else has something to say, a
rank or a kernel, sends it one line through the run's control FIFO, and it takes that line down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from icelaunch_nb.rundir import RunDir, tell_agent

WORD = "moment"  # what such a line begins with
_TEXT = 400  # characters
_TAKEN = ("t", "event", "self")  # names that the journal's writer gives itself
KEPT = (
    "debugger_start",
    "debugger_step",
    "debugger_end",
    "silent",
    "heard",
)  # kinds that say how a rank stands: none of them may be left out


def tell(run_dir: RunDir, kind: str, text: str, *, rank: int | None = None, **facts: Any) -> bool:
    """Has the agent write a moment into the journal, where every panel finds it, now and next week.

    Args:
        run_dir: The run.
        kind: One word for what it is (``"debugger"``), by which a panel may draw it.
        text: A short sentence (``"waits at cell 5, line 7"``).
        rank: Whom it is about; None: the run.
        **facts: Whatever else JSON can hold.

    Returns:
        Whether the line is on its way; never waits, and never raises for an agent that is gone or doesn't read.
    """
    return tell_agent(
        run_dir, f"{WORD} {json.dumps({'kind': kind, 'text': text[:_TEXT], 'rank': rank, **facts})}"
    )


def told(words: str) -> Mapping[str, Any] | None:
    """The moment that a line tells, without its first word; None: it is none."""
    try:
        moment = json.loads(words)
    except ValueError:
        return None
    if (
        not isinstance(moment, dict)
        or not isinstance(moment.get("kind"), str)
        or not isinstance(moment.get("text"), str)
    ):
        return None
    return {name: value for name, value in moment.items() if name not in _TAKEN}


def in_words(ranks: Sequence[int]) -> str:
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
