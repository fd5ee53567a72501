"""Writes a run's timeline: changes of the board's flags, and events that ranks and kernels send."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from icelaunch_nb.rundir import timeline
from icelaunch_nb.rundir.checkpoint import read_checkpoint
from icelaunch_nb.rundir.events_board import CHECKPOINT_TIME_WORD, FLAGS_WORD, Board
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import TimelineEvent
from icelaunch_nb.rundir.paths import RunDir

# Seconds between two polls of the flags. A flag that is set for a shorter time may be missed. A
# poll costs 40 µs, nearly all of it to wake the thread.
_POLL_INTERVAL = 0.02
_IDLE_POLL_INTERVAL = 0.04  # the same after no flag has changed for `_IDLE_AFTER`
_IDLE_AFTER = 1.0  # seconds
# Events that may be written in a burst, and how many more each second. A loop that sets flags all
# day must not fill the disk.
_BURST = 100
_PER_SECOND = 0.5


class EventRecorder:
    """Polls the board in a thread, and writes events.

    Args:
        run_dir: The run.
        board: Its flags.
        journal: Where events are written.
    """

    def __init__(self, run_dir: RunDir, board: Board, journal: JournalWriter) -> None:
        self._journal = journal
        self._over, self._lock, self._polling = False, threading.Lock(), threading.Lock()
        self._allowance, self._counted, self._left_out = float(_BURST), time.monotonic(), 0
        self._changes = _changes(board, run_dir)
        threading.Thread(
            target=self._watch, args=(board.words,), name="icelaunch-recorder", daemon=True
        ).start()

    def stop(self) -> None:
        """Polls a last time. The thread ends when it wakes up."""
        self._over = True
        self._poll()

    def record(self, kind: str, text: str, **facts: Any) -> None:
        """Writes an event with these fields, as `write` does."""
        self.write(TimelineEvent(kind=kind, text=text, **facts))

    def write(self, event: TimelineEvent) -> None:
        """Writes an event, unless there were too many. A later event counts those left out."""
        with self._lock:
            now = time.monotonic()
            self._allowance = min(_BURST, self._allowance + (now - self._counted) * _PER_SECOND)
            self._counted = now
            if self._allowance < 1 and event.kind not in timeline.ALWAYS_WRITTEN:
                self._left_out += 1
                return
            self._allowance -= 1
            if self._left_out:
                event.left_out, self._left_out = self._left_out, 0
            # On a full disk the timeline lacks an event, but the run goes on.
            with contextlib.suppress(OSError):
                self._journal.write(event)

    def _watch(self, words: memoryview) -> None:
        before: tuple[int, int] | None = None
        idle = 0.0
        while not self._over:
            now = words[FLAGS_WORD], words[CHECKPOINT_TIME_WORD]  # each change alters one of them
            if now != before:
                before, idle = now, 0.0
                self._poll()
            pause = _POLL_INTERVAL if idle < _IDLE_AFTER else _IDLE_POLL_INTERVAL
            idle += pause
            time.sleep(pause)  # an Event's wait uses nearly twice as much CPU time

    def _poll(self) -> None:
        with self._polling:
            for kind, text in next(self._changes, ()):
                self.record(kind, text)


def _changes(board: Board, run_dir: RunDir) -> Iterator[list[tuple[str, str]]]:
    """Compares the flags at each poll with the last poll. Yields events, as kind and text."""
    pausing = False
    before: set[str] = set()
    saved: float | None = None
    while True:
        flags = set(board.flags())
        newly_set, cleared, found = flags - before, before - flags, []
        if "pause" in newly_set and "resume" not in flags:
            found.append(("pause", "asked to pause"))
            pausing = True
        if "paused" in newly_set:
            found.append(("paused", "paused"))
            pausing = True
        if pausing and ("resume" in newly_set or ("paused" in cleared and "pause" not in flags)):
            found.append(("resume", "resumed"))
            pausing = False
        if "trigger_save_checkpoint" in newly_set:
            found.append(("checkpoint", "asked for a checkpoint"))
        finished = board.checkpoint_finished
        # The time is written before the flag is set, and both are one event. A flag without a time
        # comes from user code.
        if finished != saved or ("finished_save_checkpoint" in newly_set and not finished):
            found.append(("saved", _describe_checkpoint(run_dir, saved or 0)))
            saved = finished
        if "stop_all_tasks" in newly_set:
            found.append(("stop", "asked to stop"))
        before = flags
        yield found


def _describe_checkpoint(run_dir: RunDir, since: float) -> str:
    """Where the checkpoint lies, if a rank has reported one since a time in s since the epoch."""
    checkpoint = read_checkpoint(run_dir)
    if checkpoint is None or checkpoint.time < since:
        return "checkpoint saved"
    return f"checkpoint saved: {checkpoint.path}, step {checkpoint.step}"
