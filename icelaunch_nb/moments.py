"""Moments: what happens in a run beside its attempts — a pause, a checkpoint, a rank that waits in a debugger — for the timeline.

The agent alone writes the journal. It sees the flags of the events board change by itself; whoever else has something to say, a
rank or a kernel, sends it one line through the run's control FIFO, and it takes that line down.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.rundir import RunDir

WORD = "moment"  # what such a line begins with
_TEXT = 400  # characters
_TAKEN = ("t", "event", "self")  # names that the journal's writer gives itself
_LONGEST = 4096  # bytes of a line, which a FIFO takes whole or not at all (PIPE_BUF on Linux)


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
    moment = {"kind": kind, "text": text[:_TEXT], "rank": rank, **facts}
    line = f"{WORD} {json.dumps(moment)}\n".encode()
    if len(line) > _LONGEST:
        raise ValueError(f"a moment of {len(line)} bytes: at most {_LONGEST}")
    try:
        fd = os.open(run_dir.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.write(fd, line) == len(line)
    except OSError:
        return False
    finally:
        os.close(fd)


def told(words: str) -> Mapping[str, Any] | None:
    """The moment that a line tells, without its first word; None: it is none."""
    try:
        moment = json.loads(words)
    except ValueError:
        return None
    if not isinstance(moment, dict) or not isinstance(moment.get("kind"), str) or not isinstance(moment.get("text"), str):
        return None
    return {name: value for name, value in moment.items() if name not in _TAKEN}
