"""Writes the timeline of a run: flags of the board that change, and the events that ranks and kernels send."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from icelaunch_nb.rundir import timeline
from icelaunch_nb.rundir.board import CHECKPOINT_TIME_WORD, FLAGS_WORD, Board
from icelaunch_nb.rundir.checkpoint import read_checkpoint
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import TimelineEvent
from icelaunch_nb.rundir.paths import RunDir

_POLL = 0.02  # seconds; a flag that comes and goes faster is no event. A poll costs 40 µs, nearly all of it for waking the thread
_SELDOM_POLL = 0.04  # where no flag has changed for a while
_QUIET = 1.0  # seconds, this long
_BURST = 100  # events that are written as they come; a loop that sets flags all day must not fill the disk
_PER_SECOND = 0.5  # and how many more each second


class EventRecorder:
    """Watches the board in a thread.

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
        """Polls once more; the thread, which sleeps, ends at its next poll."""
        self._over = True
        self._poll()

    def record(self, kind: str, text: str, **facts: Any) -> None:
        """Writes an event of these fields, as `write` does."""
        self.write(TimelineEvent(kind=kind, text=text, **facts))

    def write(self, event: TimelineEvent) -> None:
        """Writes an event, unless there were too many; the next one says how many were left out."""
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
            with contextlib.suppress(
                OSError
            ):  # a full disk costs a line of the timeline, not the run
                self._journal.write(event)

    def _watch(self, words: memoryview) -> None:
        before: tuple[int, int] | None = None
        quiet = 0.0
        while not self._over:
            now = words[FLAGS_WORD], words[CHECKPOINT_TIME_WORD]  # all that a change shows in
            if now != before:
                before, quiet = now, 0.0
                self._poll()
            pause = _POLL if quiet < _QUIET else _SELDOM_POLL
            quiet += pause
            time.sleep(pause)  # an Event's wait takes nearly twice as much of the processor

    def _poll(self) -> None:
        with self._polling:
            for kind, text in next(self._changes, ()):
                self.record(kind, text)


def _changes(board: Board, run_dir: RunDir) -> Iterator[list[tuple[str, str]]]:
    """What the flags say at each poll, compared with the poll before: events, as kind and text."""
    pausing = False
    before: set[str] = set()
    saved: float | None = None
    while True:
        flags = set(board.flags())
        came, went, found = flags - before, before - flags, []
        if "pause" in came and "resume" not in flags:
            found.append(("pause", "asked to pause"))
            pausing = True
        if "paused" in came:
            found.append(("paused", "paused"))
            pausing = True
        if pausing and ("resume" in came or ("paused" in went and "pause" not in flags)):
            found.append(("resume", "resumed"))
            pausing = False
        if "trigger_save_checkpoint" in came:
            found.append(("checkpoint", "asked for a checkpoint"))
        finished = board.checkpoint_finished
        # The time is written before the flag is set; a flag that comes with it is the same event, one without it is user code's.
        if finished != saved or ("finished_save_checkpoint" in came and not finished):
            found.append(("saved", _saved(run_dir, saved or 0)))
            saved = finished
        if "stop_all_tasks" in came:
            found.append(("stop", "asked to stop"))
        before = flags
        yield found


def _saved(run_dir: RunDir, since: float) -> str:
    """Where the checkpoint lies, if a rank has told of one `since`."""
    checkpoint = read_checkpoint(run_dir)
    if checkpoint is None or checkpoint.time < since:
        return "checkpoint saved"
    return f"checkpoint saved: {checkpoint.path}, step {checkpoint.step}"
