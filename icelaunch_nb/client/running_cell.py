"""The running cell, and a sure distinction between Jupyter's Interrupt and other cancellations.

ipykernel runs a cell that awaits as a task. While the cell runs, SIGINT completes a future of
ipykernel's, and that cancels the task. This module watches the future. A time-out or a cancelled
task never completes it. Interrupt completes it before anything is cancelled.

ipykernel's signal handler stays in place, except while an interrupted cell waits for its runs to
end. ipykernel ignores a second Interrupt, and this module must not.

A context variable holds the cell that a wait belongs to. It is right for tasks that the cell
creates, and for `asyncio.to_thread`. A task of an earlier cell keeps that cell.

`_future_of` knows the private names of ipykernel. Where a version has changed them, an Interrupt is
an ordinary cancellation.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from icelaunch_nb.system import cpython

if TYPE_CHECKING:
    import asyncio

# Seconds that an interrupted cell gives its ranks.
INTERRUPT_GRACE = 5.0


class Wait:
    """One wait for a run.

    Args:
        run: The run.
        cell: The cell that the wait belongs to, if any.

    Attributes:
        interrupts: Number of Interrupts during the wait. The first stops the run, a second kills
            it.
    """

    def __init__(self, run: Any, cell: Cell | None) -> None:
        self.interrupts = 0
        self._run, self._cell = run, cell
        if cell is not None:
            cell.add(self)

    def handle_interrupt(self) -> None:
        """Stops the run at the first Interrupt, and kills it at another."""
        self.interrupts += 1
        # A run whose directory was removed must not keep other runs from being stopped.
        with contextlib.suppress(Exception):
            if self.interrupts == 1:
                self._run.stop(INTERRUPT_GRACE)
            else:
                self._run.kill()

    def was_interrupted(self) -> bool:
        """Whether an Interrupt has just cancelled this wait.

        A later cell may await the task in which this wait takes place. Then an Interrupt of that
        cell counts, and the wait belongs to it from here on.
        """
        if not self.interrupts:
            cell = running()
            if cell is not None and cell is not self._cell and cell.interrupted:
                self.close()
                self._cell = cell
                cell.add(self)
                self.handle_interrupt()
            elif cpython.ctrl_c_cancels_main_task():
                self.handle_interrupt()
        return self.interrupts > 0

    def wake_loop(self) -> None:
        """Wakes the cell's loop, from another thread, so that it sees an Interrupt.

        SIGINT alone doesn't wake a loop.
        """
        if self._cell is not None and not _in_main_thread():
            # A loop that is closed raises RuntimeError.
            with contextlib.suppress(RuntimeError):
                self._cell.future.get_loop().call_soon_threadsafe(int)

    def close(self) -> None:
        """Ends the wait."""
        if self._cell is not None:
            self._cell.remove(self)


class Cell:
    """A cell that awaits, and its waits for runs.

    Args:
        future: ipykernel's future, which Interrupt completes.
        handler: ipykernel's handler of SIGINT.

    Attributes:
        interrupted: Whether there was an Interrupt.
        waits: The waits that take place now.
    """

    def __init__(self, future: asyncio.Future[Any], handler: Callable[..., Any]) -> None:
        self.interrupted = False
        self.future, self.handler = future, handler
        self.waits: list[Wait] = []
        future.add_done_callback(self._handle_first_interrupt)

    def add(self, wait: Wait) -> None:
        """Adds a wait. Safe in any thread."""
        self.waits.append(wait)
        if self.interrupted:
            self._catch_next_interrupt()

    def remove(self, wait: Wait) -> None:
        """Removes a wait. Safe in any thread."""
        if wait in self.waits:
            self.waits.remove(wait)
        if (
            not self.waits
            and _in_main_thread()
            and signal.getsignal(signal.SIGINT) == self.handle_next_interrupt
        ):
            signal.signal(signal.SIGINT, self.handler)

    def handle_next_interrupt(self, *_: object) -> None:
        """Handles SIGINT after the first Interrupt.

        A signal can arrive at any instruction, so the loop does the work at its next step.
        """
        self.future.get_loop().call_soon_threadsafe(self._interrupt_waits)

    def _catch_next_interrupt(self) -> None:
        """Replaces ipykernel's handler, which ignores all Interrupts but the first.

        ipykernel restores the handler from before the cell when the cell ends.
        """
        if _in_main_thread() and signal.getsignal(signal.SIGINT) is self.handler:
            signal.signal(signal.SIGINT, self.handle_next_interrupt)

    def _handle_first_interrupt(self, future: asyncio.Future[Any]) -> None:
        """Stops the runs. The loop calls this before it cancels the cell's task."""
        # ipykernel cancels the future when the cell is over.
        if not future.cancelled():
            self.interrupted = True
            if self.waits:
                self._catch_next_interrupt()
            self._interrupt_waits()

    def _interrupt_waits(self) -> None:
        for wait in list(self.waits):
            wait.handle_interrupt()


_cell_of_context: ContextVar[Cell | None] = ContextVar("icelaunch_nb.cell")
# The cell that `running` gave last, if any.
_newest_cell: list[Cell] = []


def hook() -> None:
    """Has each cell stored in its context. A second call does nothing."""
    shell = _shell()
    if shell is not None and _set_cell_of_context not in shell.events.callbacks["pre_run_cell"]:
        shell.events.register("pre_run_cell", _set_cell_of_context)
        if in_cell_task():
            _set_cell_of_context()


@contextlib.contextmanager
def waiting_for(run: Any) -> Iterator[Wait]:
    """Registers a wait for a run with the cell that this task or thread belongs to.

    Meanwhile an Interrupt of that cell stops the run, and a second one kills it.
    """
    cell = _cell_of_context.get(None)
    # The first cell may have started before `hook`.
    if cell is None and in_cell_task():
        cell = running()
    wait = Wait(run, cell)
    try:
        yield wait
    finally:
        wait.close()


def running() -> Cell | None:
    """The cell that ipykernel runs as a task now. None in any thread but the main one."""
    if not _in_main_thread():
        return None
    handler: Any = signal.getsignal(signal.SIGINT)
    listening = getattr(handler, "__self__", None)
    if isinstance(listening, Cell):
        return listening
    future = _future_of(handler)
    if future is None:
        return None
    if not _newest_cell or _newest_cell[0].future is not future:
        _newest_cell[:] = [Cell(future, handler)]
    return _newest_cell[0]


@contextlib.contextmanager
def raising_interrupts() -> Iterator[None]:
    """Lets Interrupt end a call that blocks the loop, as it does in a cell without ``await``.

    Raises:
        KeyboardInterrupt: There was an Interrupt.
        asyncio.CancelledError: There was an Interrupt, and this isn't the cell's own task. Here
            KeyboardInterrupt would end the kernel's loop. The cell is interrupted too.
    """
    cell = running()
    if cell is None:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        if in_cell_task():
            raise
        import asyncio

        cell.handler(signal.SIGINT, None)
        raise asyncio.CancelledError from None
    finally:
        signal.signal(signal.SIGINT, before)


def in_cell_task() -> bool:
    """Whether the current task is IPython running a cell.

    IPython catches all that a cell raises, KeyboardInterrupt too.
    """
    # Code that awaits has imported asyncio.
    asyncio: Any = sys.modules.get("asyncio")
    try:
        task = asyncio.current_task() if asyncio else None
    # No loop runs in this thread.
    except RuntimeError:
        return False
    root = getattr(task.get_coro(), "cr_code", None) if task is not None else None
    return root is not None and root is getattr(
        getattr(_shell(), "run_cell_async", None), "__code__", None
    )


def _set_cell_of_context(*_: object) -> None:
    _cell_of_context.set(running())


def _shell() -> Any:
    """The shell, if this process is an ipykernel."""
    ipython: Any = sys.modules.get("IPython.core.getipython")
    shell = ipython.get_ipython() if ipython else None
    return shell if getattr(shell, "kernel", None) is not None else None


def _future_of(handler: Any) -> asyncio.Future[Any] | None:
    """The future that a handler of SIGINT completes.

    In ipykernel 6 and 7, the handler is ``handle_sigint`` of ``IPythonKernel._cancel_on_sigint``.
    """
    code = getattr(handler, "__code__", None)
    if (
        code is None
        or "sigint_future" not in code.co_freevars
        or not handler.__module__.startswith("ipykernel")
    ):
        return None
    return handler.__closure__[code.co_freevars.index("sigint_future")].cell_contents


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
