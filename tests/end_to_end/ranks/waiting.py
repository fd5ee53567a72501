"""Helpers that wait for a condition, and count steps."""

from __future__ import annotations

import time
from collections.abc import Callable

import icelaunch_nb as ice
from icelaunch_nb.rundir import step_board


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Waits until `condition` returns something true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.002)


def steps_passed(run: ice.Run, ranks: int) -> list[int]:
    """How many step boundaries each rank has passed."""
    board = step_board.open_board(run._dir.steps(run.attempt))
    return [
        board[step_board.SLOTS + step_board.SLOT * rank + step_board.PASSED]
        for rank in range(ranks)
    ]
