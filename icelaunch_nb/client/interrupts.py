"""Interrupts of a cell that waits for a run: the first stops the run, the second kills it."""

from __future__ import annotations

import time
from typing import Any

from icelaunch_nb.client import running_cell

# Seconds that a run may take to end after its ranks' grace, or after it was killed.
_END_TIMEOUT = 5.0


def stop_and_wait(run: Any) -> None:
    """Stops a run and waits for its end. Another interrupt meanwhile kills the run."""
    try:
        run.stop(running_cell.INTERRUPT_GRACE)
        _block_until_over(run, running_cell.INTERRUPT_GRACE + _END_TIMEOUT)
    except KeyboardInterrupt:
        run.kill()
        _block_until_over(run, _END_TIMEOUT)


async def wait_until_over(run: Any, wait: running_cell.Wait) -> None:
    """Waits for the end of a run whose ``await`` was interrupted. The event loop runs meanwhile.

    Raises:
        asyncio.CancelledError: The task was cancelled again.
    """
    import asyncio

    deadline, killed = time.monotonic() + running_cell.INTERRUPT_GRACE + _END_TIMEOUT, False
    while not run.state.over and time.monotonic() < deadline:
        if wait.interrupts > 1 and not killed:
            deadline, killed = time.monotonic() + _END_TIMEOUT, True
        await asyncio.sleep(0.005)


def _block_until_over(run: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not run.state.over and time.monotonic() < deadline:
        time.sleep(0.005)
