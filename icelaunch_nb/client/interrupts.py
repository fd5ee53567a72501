"""What an interrupt of a waiting cell does: it stops the run, and a second one kills it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

_GRACE = 5.0  # seconds that an interrupted cell gives its ranks
_AFTER_KILL = 5.0


def end(run: Any) -> None:
    """Stops a run and waits for its end; another interrupt meanwhile kills it."""
    try:
        run.stop(_GRACE)
        _wait_for_the_end(run, _GRACE + 5)
    except KeyboardInterrupt:
        run.kill()
        _wait_for_the_end(run, _AFTER_KILL)


def end_of_await(run: Any, error: asyncio.CancelledError) -> BaseException:
    """Ends a run whose ``await`` was cancelled; what to raise in place of the cancellation."""
    import asyncio

    interrupted = _is_a_cells(asyncio.current_task())
    with _interrupts_raise():
        end(run)
    return KeyboardInterrupt() if interrupted else error


@contextlib.contextmanager
def _interrupts_raise() -> Iterator[None]:
    """ipykernel turns only the first interrupt of an awaiting cell into a cancellation, and swallows the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_a_cells(task: asyncio.Task[Any] | None) -> bool:
    """Whether a task is a notebook cell's own, so that a KeyboardInterrupt raised in it ends in the cell and not in the loop."""
    code = getattr(task.get_coro() if task else None, "cr_code", None)
    return code is not None and any(name in code.co_filename for name in ("ipykernel", "IPython"))


def _wait_for_the_end(run: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not run.state.over and time.monotonic() < deadline:
        time.sleep(0.005)
