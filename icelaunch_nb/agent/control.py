"""Carries out what the agent is asked for: requests in the control FIFO, SIGTERM, its host's end.

A thread does this, since the agent's main thread can be deep in a rendezvous. This thread alone
changes the flags of the board that ask ranks for something. It also makes sure that a run that was
asked to stop ends.
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
from icelaunch_nb.rundir.agent_requests import (
    Detach,
    Kill,
    Request,
    RequestReader,
    Stop,
    WriteEvent,
    change_flags,
)
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import Ended, Stopping
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import HOST_ENDED, ORPHANS_GRACE

# Seconds that the agent's main thread may take beyond the patience with its ranks. After that the
# watchdog ends the agent. A rendezvous may block in C++, for example.
_WATCHDOG_MARGIN = 3.0
_MAX_TERM_PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL at most
_MAX_LOGGED = 50  # requests that can't be carried out and are still written into the agent's log
_LOGGED_LENGTH = 200  # characters of such a request
_POLL_INTERVAL = 1.0  # seconds between two checks whether the run directory still exists


def term_patience(grace: float) -> float:
    """Seconds between SIGTERM and SIGKILL for ranks that did not stop by themselves within `grace`.

    After a short grace this is a part of it, since the host gives its agents 3.5 s for a grace
    of 2.
    """
    return min(_MAX_TERM_PATIENCE, grace / 2)


class ControlListener:
    """Carries out requests, once it is started.

    Args:
        run_dir: The run.
        board: Its flags.
        journal: Where each stop is recorded.
        recorder: Writes the events that ranks and kernels send.
        hang_detector: Gets those events too, since it must know which ranks are in the debugger.
        parent: A descriptor that becomes readable when the host is gone. None: the run outlives its
            host.

    Attributes:
        stop_fd: Descriptor that is readable once the run shall stop.
        kill_fd: Descriptor that is readable once the ranks shall be killed.
        grace: Seconds that ranks may take after a stop.
        reason: Why the run stops.
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
        self._requests = RequestReader(run_dir, self._log_rejected)
        self._rejected = 0
        self._stopping = threading.Event()
        self._closed = threading.Event()
        self._signalled, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)

    def start(self) -> None:
        """Starts the thread, and unblocks SIGTERM, which is a stop from here on."""
        # C's handler writes into the pipe at once. A Python handler would wait until the main
        # thread comes back from a rendezvous.
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        threading.Thread(target=self._listen, name="icelaunch-control", daemon=True).start()

    def stop_requested(self) -> bool:
        """Whether the run shall stop."""
        return self._stopping.is_set()

    def close(self) -> None:
        """Ends the watchdog, once the run is over."""
        self._closed.set()

    def fds(self) -> list[int]:
        """The descriptors that a forked rank must close."""
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
            ready, _, _ = select.select(watched, [], [], _POLL_INTERVAL)
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
                    # No request may end this thread: the run would be unstoppable.
                    except Exception as error:
                        reason = f"{type(error).__name__}: {error}"
                        self._log_rejected(repr(request).encode(), reason)

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
                self._hang_detector.handle_event(request.event)
            case _:
                change_flags(self._board, request)
        if request.number:
            self._board.mark_done(request.number)

    def _log_rejected(self, line: bytes, reason: str) -> None:
        self._rejected += 1
        if self._rejected <= _MAX_LOGGED:
            last = (
                "; from here on, such lines are passed over without a word"
                if self._rejected == _MAX_LOGGED
                else ""
            )
            shown, why = line[:_LOGGED_LENGTH], reason[:_LOGGED_LENGTH]
            _log(f"control: {shown!r} is passed over: {why}{last}")

    def _stop(self, grace: float, reason: str) -> None:
        deadline = time.monotonic() + grace
        if self._stopping.is_set():
            if deadline < self._deadline:  # another stop, with less patience
                self._deadline = deadline
                timer = threading.Timer(grace, self._end_patience)
                timer.daemon = True
                timer.start()
                self._record_stop(grace, reason)
            return
        self.grace, self.reason, self._deadline = grace, reason, deadline
        self._stopping.set()
        os.write(self._stop_writer, b"!")
        patience = grace + term_patience(grace) + _WATCHDOG_MARGIN
        threading.Thread(
            target=self._watchdog, args=(patience,), name="icelaunch-watchdog", daemon=True
        ).start()
        self._record_stop(grace, reason)

    def _record_stop(self, grace: float, reason: str) -> None:
        self._board.set("stop_all_tasks")
        try:
            self._journal.write(Stopping(grace=grace, reason=reason))
        except OSError as error:  # a full disk must not keep the run from stopping
            _log(f"the stop can't be written down: {error}")

    def _end_patience(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so kill_fd is readable
            os.write(self._kill_writer, b"!")

    def _watchdog(self, seconds: float) -> None:
        """Ends the agent if its main thread is stuck, and has not ended the run in time."""
        if not self._closed.wait(seconds):
            self._exit()

    def _exit(self) -> NoReturn:
        """Records how the run ended, and ends the agent. The ranks end with it."""
        self._journal.write(Ended(state="STOPPED", note=self.reason))
        os._exit(1)


def _log(text: str) -> None:
    """Writes a line into agent.log."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
