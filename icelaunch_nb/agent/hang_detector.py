"""The hang detector: marks ranks that say nothing and make no step, with where they stand.

It lives in the agent, which is there as long as the ranks are, whatever becomes of the kernel; what it finds are events of the
timeline. A rank's signs of life are its output, its metrics and its steps. While the run is paused or a rank is in the debugger
nobody is called silent, and neither are ranks of a run that is being stopped.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass

from icelaunch_nb.agent.event_recorder import EventRecorder
from icelaunch_nb.rundir import source_locations, stacks
from icelaunch_nb.rundir.board import Board
from icelaunch_nb.rundir.debug_socket import in_debugger
from icelaunch_nb.rundir.journal_events import AttemptStarted, RankEntry, TimelineEvent
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.step_board import steps_made
from icelaunch_nb.rundir.timeline import format_ranks

_POLL = 1.0  # seconds between two looks, fewer where less than four times as long is a hang
_ANSWER = 2.0  # seconds that silent ranks may take to say where they stand


@dataclass
class _Rank:
    """A rank as far as it is known to live."""

    entry: RankEntry
    signs: tuple[int, ...] = ()
    since: float = 0.0  # when its signs of life last changed
    reported: str | None = None  # where it was said to stand; None: it isn't called silent
    next_asked: float = 0.0  # seconds of silence after which it is asked again


class HangDetector:
    """Looks at the ranks of the newest attempt, in a thread.

    Args:
        run_dir: The run.
        board: Its flags.
        recorder: Writes what is found.
        after: Seconds of silence that are a hang; None: none are.
    """

    def __init__(
        self, run_dir: RunDir, board: Board, recorder: EventRecorder, after: float | None
    ) -> None:
        self._run_dir, self._board, self._recorder, self._after = run_dir, board, recorder, after
        self._names = source_locations.cell_names(run_dir)
        self._over, self._lock = threading.Event(), threading.Lock()
        self._followed: tuple[AttemptStarted | None, list[_Rank]] = (None, [])  # replaced together
        self._debugged: set[int] = set()  # ranks that said that they are in the debugger
        self._gone: set[int] = set()  # those of them that weren't at the last look
        self._thread = threading.Thread(target=self._watch, name="icelaunch-hangs", daemon=True)

    def follow(self, attempt: AttemptStarted) -> None:
        """From now on the ranks of this attempt."""
        now = time.monotonic()
        self._followed = attempt, [_Rank(entry, since=now) for entry in attempt.ranks]
        if not self._thread.is_alive() and not self._over.is_set():
            self._thread.start()

    def notice(self, event: TimelineEvent) -> None:
        """Notices that a rank goes into the debugger or leaves it."""
        if event.rank is None:
            return
        with self._lock:
            if event.kind in ("debugger_start", "debugger_step"):
                self._debugged.add(event.rank)
            elif event.kind == "debugger_end":
                self._debugged.discard(event.rank)

    def stop(self) -> None:
        """The ranks are gone: nobody is silent, and nobody in the debugger."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(1)
        if self._board.is_set("debugger_start"):
            self._no_debugger()

    def _watch(self) -> None:
        while not self._over.wait(_POLL if self._after is None else min(_POLL, self._after / 4)):
            attempt, ranks = self._followed
            with contextlib.suppress(OSError):
                if attempt is not None:
                    self._poll(attempt, ranks)

    def _poll(self, attempt: AttemptStarted, ranks: list[_Rank]) -> None:
        debugged = in_debugger(self._run_dir, attempt.attempt)
        self._notice_gone(debugged, ranks)
        now = time.monotonic()
        if (
            debugged
            or self._board.is_set("paused")
            or self._board.is_set("stop_all_tasks")
            or self._after is None
        ):
            for rank in ranks:
                rank.since = now
        else:
            self._look_for_signs(now, attempt.attempt, ranks)
        recovered = [
            rank
            for rank in ranks
            if rank.reported is not None
            and (now - rank.since < (self._after or 0) or not rank.entry.process.alive())
        ]
        for rank in recovered:
            rank.reported, rank.next_asked = None, 0.0
        if recovered:
            numbers = [rank.entry.rank for rank in recovered]
            self._recorder.record(
                "recovered", f"{format_ranks(numbers)} no longer silent", ranks=numbers
            )
        if self._after is not None:
            self._ask(
                attempt,
                [
                    rank
                    for rank in ranks
                    if now - rank.since >= max(self._after, rank.next_asked)
                    and rank.entry.process.alive()
                ],
            )

    def _look_for_signs(self, now: float, number: int, ranks: list[_Rank]) -> None:
        made = steps_made(self._run_dir.steps(number), len(ranks))
        for rank in ranks:
            local = rank.entry.local_rank
            folder, signs = self._run_dir.rank(number, local), [made.get(local, 0)]
            for path in (folder.stdout, folder.stderr, folder.metrics):
                with contextlib.suppress(OSError):
                    found = os.stat(path)
                    signs += [found.st_size, found.st_mtime_ns]
            if tuple(signs) != rank.signs:
                rank.signs, rank.since = tuple(signs), now

    def _ask(self, attempt: AttemptStarted, ranks: list[_Rank]) -> None:
        """Asks silent ranks where they stand, and says so where it is new; rarer and rarer, should it last for days."""
        if not ranks:
            return
        texts = stacks.collect(
            self._run_dir,
            attempt.attempt,
            [rank.entry for rank in ranks],
            _ANSWER,
            self._over.is_set,
        )
        if self._over.is_set() or self._followed[0] is not attempt:
            return
        at: dict[str, list[_Rank]] = {}
        for rank in ranks:
            rank.next_asked = 2 * (time.monotonic() - rank.since)
            at.setdefault(stacks.user_location(texts[rank.entry.rank], self._names), []).append(
                rank
            )
        for where, there in sorted(at.items(), key=lambda place: len(place[1])):
            new = [rank for rank in there if rank.reported != where]
            if new:
                numbers, seconds = (
                    [rank.entry.rank for rank in new],
                    time.monotonic() - max(rank.since for rank in new),
                )
                text = f"{format_ranks(numbers)} silent for {seconds:.0f} s" + (
                    f", at {where}" if where else ""
                )
                self._recorder.record("silent", text, ranks=numbers, where=where)
            for rank in there:
                rank.reported = where

    def _notice_gone(self, debugged: set[int], ranks: list[_Rank]) -> None:
        """A thread or child process can be gone without a word while its rank goes on."""
        with self._lock:
            gone = {
                rank.entry.rank for rank in ranks if rank.entry.local_rank not in debugged
            } & self._debugged
            lost, self._gone = gone & self._gone, gone - self._gone
            self._debugged -= lost
        if lost and not debugged:
            self._no_debugger()
        for number in lost:
            self._recorder.record("debugger_end", "left the debugger without a word", rank=number)

    def _no_debugger(self) -> None:
        with self._board.locked():
            self._board.clear("debugger_start")
            self._board.set("debugger_end")
