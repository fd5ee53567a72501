"""Takes down the moments of a run: flags of the events board that change, and what ranks and kernels tell."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from icelaunch_nb import moments
from icelaunch_nb.events import FLAGS_WORD, Events, Flag
from icelaunch_nb.journal import JournalWriter
from icelaunch_nb.rundir import RunDir

_LOOK = 0.02  # seconds; a flag that comes and goes faster is no moment. A look costs 3 µs
_BURST = 100  # moments that are written as they come; a loop that sets flags all day must not fill the disk
_PER_SECOND = 0.5  # and how many more each second


class Timekeeper:
    """Watches the board in a thread.

    Args:
        run_dir: The run.
        journal: Where moments are written.
    """

    def __init__(self, run_dir: RunDir, journal: JournalWriter) -> None:
        self._run_dir, self._journal = run_dir, journal
        self._over, self._lock = threading.Event(), threading.Lock()
        self._allowance, self._counted, self._left_out = float(_BURST), time.monotonic(), 0
        self._thread = threading.Thread(
            target=self._watch, name="icelaunch-timekeeper", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Looks once more and ends."""
        self._over.set()
        self._thread.join(1)

    def note(self, kind: str, text: str, **facts: Any) -> None:
        """Writes a moment, unless there were too many; the next one says how many were left out."""
        with self._lock:
            now = time.monotonic()
            self._allowance = min(_BURST, self._allowance + (now - self._counted) * _PER_SECOND)
            self._counted = now
            if self._allowance < 1 and kind not in moments.KEPT:
                self._left_out += 1
                return
            self._allowance -= 1
            if self._left_out:
                facts["left_out"], self._left_out = self._left_out, 0
            with contextlib.suppress(
                OSError
            ):  # a full disk costs a line of the timeline, not the run
                self._journal.write("moment", kind=kind, text=text, **facts)

    def _watch(self) -> None:
        try:
            events = Events.of_run(self._run_dir.path)
        except (OSError, ValueError):  # the run directory is gone
            return
        changes = _changes(events, self._run_dir)
        while not self._over.wait(_LOOK):
            for kind, text in next(changes):
                self.note(kind, text)
        for kind, text in next(changes):
            self.note(kind, text)


def _changes(events: Events, run_dir: RunDir) -> Iterator[list[tuple[str, str]]]:
    """What the flags say at each look, compared with the look before: moments, as kind and text."""
    pausing = False
    before: set[str] = set()
    saved: float | None = None
    while True:
        words = events.words
        flags = (
            {name for name in _SEEN if Flag.is_set(getattr(events, name))}
            if words[FLAGS_WORD]
            else set()
        )
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
        finished = events.checkpoint_finished
        # The time is written before the flag is set; a flag that comes with it is the same moment, one without it is user code's.
        if finished != saved or ("finished_save_checkpoint" in came and not finished):
            found.append(("saved", _saved(run_dir, saved or 0)))
            saved = finished
        if "stop_all_tasks" in came:
            found.append(("stop", "asked to stop"))
        before = flags
        yield found


_SEEN = (
    "pause",
    "paused",
    "resume",
    "trigger_save_checkpoint",
    "finished_save_checkpoint",
    "stop_all_tasks",
)


def _saved(run_dir: RunDir, since: float) -> str:
    """Where the checkpoint lies, if a rank has told of one `since`."""
    told = run_dir.read_checkpoint()
    if told is None or told.get("time", 0) < since:
        return "checkpoint saved"
    return f"checkpoint saved: {told.get('path')}, step {told.get('step')}"
