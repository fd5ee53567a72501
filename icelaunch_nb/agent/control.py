"""The agent's ear: requests from the control FIFO, SIGTERM, and the end of its host.

A thread listens, since the agent's main thread can be deep in a rendezvous. It alone changes the flags of the board that ask ranks for
something, and it makes sure that a run which was told to stop does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from icelaunch_nb.agent.event_recorder import EventRecorder
from icelaunch_nb.agent.hang_detector import HangDetector
from icelaunch_nb.rundir.board import Board
from icelaunch_nb.rundir.control import (
    Detach,
    Kill,
    Request,
    RequestReader,
    Stop,
    WriteEvent,
    change_flags,
)
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import Ended, Stopping
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import HOST_ENDED, ORPHANS_GRACE

# Seconds beyond the grace after which the agent stops waiting for itself (a rendezvous that blocks in C++, say).
_MARGIN = 3.0
_TERM_PATIENCE = 5.0
_NOTED = 50  # lines that can't be read, for the agent's log
_SHOWN = 200  # characters of such a line
_POLL = 1.0  # seconds between two looks whether the run directory is still there


def term_patience(grace: float) -> float:
    """Seconds between SIGTERM and SIGKILL for ranks that took longer than `grace` to stop by themselves.

    A part of a short grace: the host gives its agents 3.5 s for a grace of 2.
    """
    return min(_TERM_PATIENCE, grace / 2)


class ControlListener:
    """Carries out requests, once it is started.

    Args:
        run_dir: The run.
        board: Its flags.
        journal: Where a stop is written down.
        recorder: Takes the events that ranks and kernels send.
        hang_detector: Is told of ranks in the debugger.
        parent: A descriptor that becomes readable when the host is gone; None: the run outlives its host.

    Attributes:
        stop_fd: Descriptor that is readable once the run shall stop.
        kill_fd: Descriptor that is readable once patience is over.
        grace: Seconds that ranks may take after a stop.
        reason: Who asked for it.
    """

    def __init__(
        self,
        run_dir: RunDir,
        board: Board,
        journal: JournalWriter,
        recorder: EventRecorder,
        hang_detector: HangDetector,
        parent: int | None,
    ) -> None:
        self._run_dir, self._board, self._journal = run_dir, board, journal
        self._recorder, self._hang_detector, self._parent = recorder, hang_detector, parent
        self.grace, self.reason, self._deadline = 0.0, "", 0.0
        self.stop_fd, self._stop_writer = os.pipe()
        self.kill_fd, self._kill_writer = os.pipe()
        os.set_blocking(self._kill_writer, False)
        self._requests = RequestReader(run_dir, self._pass_over)
        self._passed_over = 0
        self._stopping = threading.Event()
        self._closed = threading.Event()
        self._signalled, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)

    def start(self) -> None:
        """From here on requests are carried out, in a thread; SIGTERM, which was blocked until now, is a stop."""
        # C's handler writes there at once; Python's would wait until the main thread comes back from a rendezvous.
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        threading.Thread(target=self._listen, name="icelaunch-control", daemon=True).start()

    def stop_requested(self) -> bool:
        """Whether the run shall stop."""
        return self._stopping.is_set()

    def close(self) -> None:
        """The run is over; nobody needs to insist any more."""
        self._closed.set()

    def fds(self) -> list[int]:
        """Descriptors that a forked rank must not keep."""
        return [
            self.stop_fd,
            self._stop_writer,
            self.kill_fd,
            self._kill_writer,
            self._requests.fileno(),
            self._signalled,
        ]

    def _listen(self) -> None:
        control = self._requests.fileno()
        while True:
            watched: list[Any] = [
                control,
                self._signalled,
                *([self._parent] if self._parent is not None else []),
            ]
            ready, _, _ = select.select(watched, [], [], _POLL)
            if not ready and not self._run_dir.control.exists():
                self._stop(ORPHANS_GRACE, "its directory is gone")
            if self._parent is not None and self._parent in ready:
                self._parent = None
                self._stop(ORPHANS_GRACE, HOST_ENDED)
            if self._signalled in ready and signal.SIGTERM in os.read(self._signalled, 64):
                self._stop(ORPHANS_GRACE, "its agent got SIGTERM")
            if control in ready:
                for request in self._requests.read():
                    try:
                        self._carry_out(request)
                    except (
                        Exception
                    ) as error:  # whoever may write to the FIFO can't make the run unstoppable
                        self._pass_over(repr(request).encode(), f"{type(error).__name__}: {error}")

    def _carry_out(self, request: Request) -> None:
        match request:
            case Stop():
                self._stop(request.grace, request.reason)
            case Kill():
                self._stop(0.0, Stop.reason)
                self._end_patience()
            case Detach():
                self._parent = None
            case WriteEvent():
                self._recorder.write(request.event)
                self._hang_detector.notice(request.event)
            case _:
                change_flags(self._board, request)
        if request.number:
            self._board.mark_done(request.number)

    def _pass_over(self, line: bytes, reason: str) -> None:
        self._passed_over += 1
        if self._passed_over <= _NOTED:
            last = (
                "; from here on, such lines are passed over without a word"
                if self._passed_over == _NOTED
                else ""
            )
            _log(f"control: {line[:_SHOWN]!r} is passed over: {reason[:_SHOWN]}{last}")

    def _stop(self, grace: float, reason: str) -> None:
        deadline = time.monotonic() + grace
        if self._stopping.is_set():
            if deadline < self._deadline:  # asked again, with less patience
                self._deadline = deadline
                timer = threading.Timer(grace, self._end_patience)
                timer.daemon = True
                timer.start()
                self._announce(grace, reason)
            return
        self.grace, self.reason, self._deadline = grace, reason, deadline
        self._stopping.set()
        os.write(self._stop_writer, b"!")
        patience = grace + term_patience(grace) + _MARGIN
        threading.Thread(
            target=self._watchdog, args=(patience,), name="icelaunch-watchdog", daemon=True
        ).start()
        self._announce(grace, reason)

    def _announce(self, grace: float, reason: str) -> None:
        self._board.set("stop_all_tasks")
        try:
            self._journal.write(Stopping(grace=grace, reason=reason))
        except OSError as error:  # a full disk: the run stops all the same
            _log(f"the stop can't be written down: {error}")

    def _end_patience(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it was said often enough
            os.write(self._kill_writer, b"!")

    def _watchdog(self, seconds: float) -> None:
        """The agent did not end by itself in time: its main thread is stuck."""
        if not self._closed.wait(seconds):
            self._give_up()

    def _give_up(self) -> NoReturn:
        """Says how the run ended and goes; the ranks end with the agent."""
        self._journal.write(Ended(state="STOPPED", note=self.reason))
        os._exit(1)


def _log(text: str) -> None:
    """Writes a line into agent.log."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
