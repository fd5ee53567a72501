"""A run as plain data, which the front end and the static summary show."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import psutil

from icelaunch_nb.rundir import step_board
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal_events import AttemptStarted, RankEntry
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.system.plaintext import sendable

# Characters of the first traceback that a panel shows. The last ones stay.
_MAX_TRACEBACK_LENGTH = 8000
# Failures that a panel shows.
_MAX_FAILURES = 64
# Seconds between two samples of the ranks' memory.
_MEMORY_INTERVAL = 1.0


class ViewModel:
    """Reads from a run's directory what a front end shows.

    Args:
        run: A `Run`.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self.dir: RunDir = run._dir
        # The panel still works after the directory was removed.
        self._spec = run._spec
        # This isn't the run's board, whose file stays open as long as the run: users keep runs.
        self._board: Board | None = None
        self._processes: dict[int, psutil.Process | None] = {}
        self._memory: dict[int, int] = {}
        self._returned_ranks: set[tuple[int, int, int]] = set()
        self._memory_sampled_at = 0.0

    def run_state(self) -> dict[str, Any]:
        """What the journal reports. It changes when an event is written."""
        run_state, spec = self.run._run_state, self._spec
        end, stopping = run_state.end, run_state.stopping
        failures = [
            {
                "rank": failure.rank,
                "attempt": failure.attempt,
                "time": failure.time,
                "kind": failure.kind,
                "type": failure.type_name,
                "title": failure.title[:400],
                "hint": failure.hint,
                "traceback": "" if number else failure.traceback[-_MAX_TRACEBACK_LENGTH:],
            }
            for number, failure in enumerate(run_state.failures[:_MAX_FAILURES])
        ]
        attempts = [
            {
                "attempt": attempt.attempt,
                "t": attempt.t,
                "world_size": attempt.world_size,
                "ranks": [
                    [entry.rank, entry.local_rank, entry.device, entry.pid]
                    for entry in attempt.ranks
                ],
            }
            for attempt in run_state.attempts
        ]
        restarts = [
            {
                name: getattr(restart, name)
                for name in ("attempt", "rank", "cause", "failed_at", "t")
            }
            for restart in run_state.restarts
        ]
        return sendable(
            {
                "run_id": spec.run_id,
                "name": spec.name,
                "path": str(self.dir.path),
                "state": str(run_state.state),
                "over": run_state.state.over,
                "started": spec.time,
                "end": end.t if end else None,
                "note": (end.note if end else None) or "",
                "nproc": spec.nproc_per_node,
                "max_restarts": spec.config.max_restarts,
                "attempts": attempts,
                "restarts": restarts,
                "failures": failures,
                "timeline": [
                    {name: getattr(event, name) for name in ("t", "kind", "text", "rank")}
                    for event in run_state.timeline
                ],
                "kill_at": stopping.t + stopping.grace if stopping else None,
                "in_debugger": {
                    str(rank): {name: getattr(event, name) for name in ("where", "who", "why")}
                    for rank, event in run_state.debugged.items()
                },
                "silent": {str(rank): where for rank, where in run_state.silent.items()},
            }
        )

    def live_state(
        self, written: Mapping[int, float], reported: Mapping[int, int]
    ) -> dict[str, Any]:
        """What changes all the time: progress, flags, and each rank's memory, output and step.

        Args:
            written: When each rank of the newest attempt last wrote, in seconds since the epoch.
            reported: The newest step that each rank reported with a metric, by index in that
                attempt. It is used for ranks that don't use ``ctx.steps``.
        """
        run_state = self.run._run_state
        if self._board is None:
            # The directory may lack a board, or have another file in its place.
            with contextlib.suppress(OSError, ValueError):
                self._board = Board(self.dir.board)
        board = self._board
        ranks = run_state.ranks
        steps = self._steps_made(run_state.attempts[-1]) if run_state.attempts else {}
        if time.monotonic() - self._memory_sampled_at > _MEMORY_INTERVAL:
            self._memory_sampled_at = time.monotonic()
            running = [] if run_state.state.over else ranks
            self._memory = {entry.rank: self._memory_of(entry) for entry in running}
        return {
            "t": round(time.time(), 2),
            "progress": board.bars if board is not None else [],
            "flags": board.flags() if board is not None else [],
            "ranks": [
                [
                    self._memory.get(entry.rank, 0),
                    round(written.get(entry.rank, 0.0), 1),
                    self._has_returned(run_state.attempts[-1], entry),
                    steps.get(entry.local_rank, reported.get(index)),
                ]
                for index, entry in enumerate(ranks)
            ],
        }

    def _steps_made(self, attempt: AttemptStarted) -> dict[int, int]:
        """The steps that ranks made, by local rank, for those that use ``ctx.steps``."""
        try:
            return step_board.steps_made(
                self.dir.steps(attempt.attempt),
                1 + max((entry.local_rank for entry in attempt.local_ranks()), default=0),
            )
        except (OSError, ValueError):
            # The directory was removed, or another version wrote the file.
            return {}

    def _memory_of(self, entry: RankEntry) -> int:
        """Resident memory in MB; 0 for a process that is gone."""
        pid = entry.pid
        try:
            if pid not in self._processes:
                process = psutil.Process(pid)
                self._processes[pid] = process if entry.process.alive() else None
            found = self._processes[pid]
            return 0 if found is None else found.memory_info().rss >> 20
        except psutil.Error:
            self._processes[pid] = None
            return 0

    def _has_returned(self, attempt: AttemptStarted, entry: RankEntry) -> bool:
        key = attempt.attempt, entry.local_rank, entry.node
        if key not in self._returned_ranks and self.dir.rank(*key).result.exists():
            self._returned_ranks.add(key)
        return key in self._returned_ranks
