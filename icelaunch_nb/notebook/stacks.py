"""Where the ranks are now: a signal makes faulthandler write their stacks, without ptrace and while a rank sits in a C call."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icelaunch_nb.processes import Process
from icelaunch_nb.rundir import RunDir

_LOOK = 0.02  # seconds between two looks at what was written


def ask(run_dir: RunDir, attempt: Mapping[str, Any], timeout: float) -> dict[int, str]:
    """The stacks of all threads of every rank of an attempt, by global rank; empty for a rank that didn't answer.

    Args:
        run_dir: The run directory.
        attempt: The journal's ``attempt`` event.
        timeout: Seconds to wait at most.
    """
    asked: dict[int, tuple[Path, int]] = {}
    for entry in attempt["ranks"]:
        path = run_dir.rank(attempt["attempt"], entry["local_rank"]).stacks
        with contextlib.suppress(OSError):
            # The file is there once the rank has a handler for the signal; before that, it would end the rank.
            asked[entry["rank"]] = (path, path.stat().st_size)
            Process(entry["pid"], entry["started"]).send(signal.SIGUSR1)
    found, deadline = {entry["rank"]: "" for entry in attempt["ranks"]}, time.monotonic() + timeout
    while asked and time.monotonic() < deadline:
        for rank, (path, before) in list(asked.items()):
            text = path.read_bytes()[before:].decode(errors="replace")
            if text.endswith("\n") and text == found[rank]:
                del asked[rank]
            found[rank] = text
        time.sleep(_LOOK)
    return found
