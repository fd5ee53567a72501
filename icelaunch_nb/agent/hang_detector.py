"""Reports ranks that print nothing and make no step, and the line of code where they are.

A rank's signs of life are its output, its metrics and its steps. The detector reports a rank
without any as silent, by an event of the timeline. It reports no rank while the run is paused,
while a rank is in the debugger, or while the run is being stopped.

It runs in the agent, which lives as long as the ranks, whatever happens to the kernel.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass

from icelaunch_nb.agent.event_recorder import EventRecorder
from icelaunch_nb.rundir import source_locations, stacks
from icelaunch_nb.rundir.debug_socket import in_debugger
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal_events import AttemptStarted, RankEntry, TimelineEvent
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.step_board import steps_made
from icelaunch_nb.rundir.timeline import format_ranks

# Seconds between two polls. Fewer where less than four times as long is a hang.
_POLL_INTERVAL = 1.0
_STACKS_TIMEOUT = 2.0  # seconds that silent ranks may take to write their stacks


@dataclass
class _Rank:
    """A rank and its last sign of life.

    Attributes:
        entry: The rank.
        signs: Its signs of life at the last poll: steps, and sizes and times of its files.
        since: When these last changed, by the monotonic clock.
        reported: The location at which it was reported silent. None: it isn't reported as silent.
        next_query: Seconds of silence after which it is asked for its stacks again.
    """

    entry: RankEntry
    signs: tuple[int, ...] = ()
    since: float = 0.0
    reported: str | None = None
    next_query: float = 0.0


class HangDetector:
    """Watches the ranks of the newest attempt, in a thread.

    Args:
        run_dir: The run.
        board: Its flags.
        recorder: Writes the events.
        after: Seconds of silence after which a rank is reported. None: no rank is reported.
    """

    def __init__(
        self, run_dir: RunDir, board: Board, recorder: EventRecorder, after: float | None
    ) -> None:
        self._run_dir, self._board, self._recorder, self._after = run_dir, board, recorder, after
        self._names = source_locations.cell_names(run_dir)
        self._over, self._lock = threading.Event(), threading.Lock()
        # The newest attempt and its ranks. One assignment replaces both.
        self._watched: tuple[AttemptStarted | None, list[_Rank]] = (None, [])
        self._in_debugger: set[int] = set()  # ranks that are in the debugger by their own events
        self._lock_free: set[int] = set()  # those of them whose lock was free at the last poll
        self._thread = threading.Thread(target=self._run, name="icelaunch-hangs", daemon=True)

    def watch(self, attempt: AttemptStarted) -> None:
        """Watches the ranks of this attempt from now on."""
        now = time.monotonic()
        self._watched = attempt, [_Rank(entry, since=now) for entry in attempt.ranks]
        if not self._thread.is_alive() and not self._over.is_set():
            self._thread.start()

    def handle_event(self, event: TimelineEvent) -> None:
        """Notes whether a rank enters or leaves the debugger by this event."""
        if event.rank is None:
            return
        with self._lock:
            if event.kind in ("debugger_start", "debugger_step"):
                self._in_debugger.add(event.rank)
            elif event.kind == "debugger_end":
                self._in_debugger.discard(event.rank)

    def stop(self) -> None:
        """Ends the thread, once the ranks are gone. No rank is in the debugger any more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(1)
        if self._board.is_set("debugger_start"):
            self._end_debugger_flags()

    def _run(self) -> None:
        interval = _POLL_INTERVAL
        if self._after is not None:
            interval = min(interval, self._after / 4)
        while not self._over.wait(interval):
            attempt, ranks = self._watched
            with contextlib.suppress(OSError):
                if attempt is not None:
                    self._poll(attempt, ranks)

    def _poll(self, attempt: AttemptStarted, ranks: list[_Rank]) -> None:
        lock_held = in_debugger(self._run_dir, attempt.attempt)
        self._end_lost_visits(lock_held, ranks)
        now = time.monotonic()
        if (
            lock_held
            or self._board.is_set("paused")
            or self._board.is_set("stop_all_tasks")
            or self._after is None
        ):
            for rank in ranks:
                rank.since = now
        else:
            self._update_signs(now, attempt.attempt, ranks)
        recovered = [
            rank
            for rank in ranks
            if rank.reported is not None
            and (now - rank.since < (self._after or 0) or not rank.entry.process.alive())
        ]
        for rank in recovered:
            rank.reported, rank.next_query = None, 0.0
        if recovered:
            numbers = [rank.entry.rank for rank in recovered]
            self._recorder.record(
                "recovered", f"{format_ranks(numbers)} no longer silent", ranks=numbers
            )
        if self._after is not None:
            silent = [
                rank
                for rank in ranks
                if now - rank.since >= max(self._after, rank.next_query)
                and rank.entry.process.alive()
            ]
            self._report_silent(attempt, silent)

    def _update_signs(self, now: float, number: int, ranks: list[_Rank]) -> None:
        made = steps_made(self._run_dir.steps(number), len(ranks))
        for rank in ranks:
            local = rank.entry.local_rank
            folder, signs = self._run_dir.rank(number, local), [made.get(local, 0)]
            for path in (folder.stdout, folder.stderr, folder.metrics):
                with contextlib.suppress(OSError):
                    status = os.stat(path)
                    signs += [status.st_size, status.st_mtime_ns]
            if tuple(signs) != rank.signs:
                rank.signs, rank.since = tuple(signs), now

    def _report_silent(self, attempt: AttemptStarted, ranks: list[_Rank]) -> None:
        """Asks silent ranks for their stacks, and reports each location that is new.

        Each query comes after twice the silence of the one before, since a hang may last for days.
        """
        if not ranks:
            return
        texts = stacks.collect(
            self._run_dir,
            attempt.attempt,
            [rank.entry for rank in ranks],
            _STACKS_TIMEOUT,
            self._over.is_set,
        )
        if self._over.is_set() or self._watched[0] is not attempt:
            return
        by_location: dict[str, list[_Rank]] = {}
        for rank in ranks:
            rank.next_query = 2 * (time.monotonic() - rank.since)
            location = stacks.user_location(texts[rank.entry.rank], self._names)
            by_location.setdefault(location, []).append(rank)
        for location, group in sorted(by_location.items(), key=lambda item: len(item[1])):
            new = [rank for rank in group if rank.reported != location]
            if new:
                numbers = [rank.entry.rank for rank in new]
                seconds = time.monotonic() - max(rank.since for rank in new)
                text = f"{format_ranks(numbers)} silent for {seconds:.0f} s" + (
                    f", at {location}" if location else ""
                )
                self._recorder.record("silent", text, ranks=numbers, where=location)
            for rank in group:
                rank.reported = location

    def _end_lost_visits(self, lock_held: set[int], ranks: list[_Rank]) -> None:
        """Reports who left the debugger without an event of its own.

        A rank's thread or child may end while it is in the debugger, and the rank goes on. Its lock
        must be free at two polls in a row, since the rank's own event may still be on its way.

        Args:
            lock_held: Local ranks whose debugger lock is held.
            ranks: The ranks of the attempt.
        """
        with self._lock:
            lock_free = {
                rank.entry.rank for rank in ranks if rank.entry.local_rank not in lock_held
            } & self._in_debugger
            lost, self._lock_free = lock_free & self._lock_free, lock_free - self._lock_free
            self._in_debugger -= lost
        if lost and not lock_held:
            self._end_debugger_flags()
        for number in lost:
            self._recorder.record("debugger_end", "left the debugger without a word", rank=number)

    def _end_debugger_flags(self) -> None:
        with self._board.locked():
            self._board.clear("debugger_start")
            self._board.set("debugger_end")
