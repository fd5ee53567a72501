"""The results of a run: the values that the ranks returned, or the error to raise."""

from __future__ import annotations

import time
from typing import Any

from icelaunch_nb.errors import Failure, RunFailed, RunLost, RunStopped, UnreadableRunError
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import RunState, State


class Results:
    """The results of a run that is over. The files are loaded once.

    Args:
        run_dir: The run directory.
        run_state: The state by the whole journal.
        run_id: The run's id, for messages.
        program: Whether the ranks run a program, which returns nothing.
    """

    def __init__(self, run_dir: RunDir, run_state: RunState, *, run_id: str, program: bool) -> None:
        self._dir, self._run_state = run_dir, run_state
        self._run_id, self._program = run_id, program
        self._unloadable: dict[int, Exception] = {}
        self._results = self._load()

    def get(self) -> dict[int, Any]:
        """Gives the returned values by global rank.

        Raises:
            RunFailed: A rank failed, or a value can't be unpickled here.
            RunStopped: The run was stopped before all its ranks returned.
            RunLost: The agent vanished.
            UnreadableRunError: The run's files can't be read.
        """
        run_state, log_dir = self._run_state, str(self._dir.path)
        note = (run_state.end.note if run_state.end else None) or ""
        if run_state.state == State.LOST:
            text = f"the agent of run {self._run_id} vanished; logs: {log_dir}"
            raise RunLost("\n".join(filter(None, [text, note])))
        if run_state.state == State.UNREADABLE:
            raise UnreadableRunError(
                f"run {self._run_id} can't be read: {note}; it lies in {log_dir}"
            )
        if run_state.state == State.SUCCEEDED:
            if self._unloadable:
                rank = min(self._unloadable)
                raise self._unloadable_result(rank) from self._unloadable[rank]
            return dict(self._results)
        if run_state.state == State.STOPPED:
            if len(self._results) == (1 if self._program else max(1, len(run_state.ranks))):
                return dict(self._results)
            meanwhile = ""
            if run_state.failures:
                first = run_state.failures[0]
                meanwhile = f"; meanwhile rank {first.rank} failed: {first.title}"
            raise RunStopped(
                f"run {self._run_id} was stopped: {note or 'it was asked to'}{meanwhile}",
                dict(self._results),
            )
        raise self._failed(run_state.failures, note=note) from self._original_exception()

    def _load(self) -> dict[int, Any]:
        from icelaunch_nb.pickling import packing

        results: dict[int, Any] = {}
        for entry in self._run_state.ranks:
            path = self._dir.rank(
                self._run_state.attempts[-1].attempt, entry.local_rank, entry.node
            ).result
            if self._run_state.state == State.UNREADABLE:
                break
            if self._program:
                if self._run_state.state == State.SUCCEEDED:
                    results[entry.rank] = None
            elif path.exists():
                try:
                    results[entry.rank] = packing.load(path, self._dir)
                except Exception as error:
                    self._unloadable[entry.rank] = error
        return results

    def _failed(self, failures: Any, *, note: str = "") -> RunFailed:
        attempts = self._run_state.attempts
        return RunFailed(
            failures,
            dict(self._results),
            world_size=attempts[-1].world_size if attempts else 0,
            attempt=max(0, len(attempts) - 1),
            log_dir=str(self._dir.path),
            note=note,
        )

    def _unloadable_result(self, rank: int) -> RunFailed:
        """The error for a value that the rank could pickle and this process can't unpickle."""
        error, attempt = self._unloadable[rank], self._run_state.attempts[-1]
        (entry,) = (entry for entry in attempt.ranks if entry.rank == rank)
        text = f"rank {rank}'s result can't be built here: {type(error).__name__}: {error}"
        return self._failed(
            [
                Failure(
                    rank,
                    entry.local_rank,
                    attempt.attempt,
                    time.time(),
                    entry.pid,
                    "result",
                    0,
                    type(error).__name__,
                    str(error),
                    text,
                )
            ]
        )

    def _original_exception(self) -> BaseException | None:
        if not self._run_state.failures:
            return None
        from icelaunch_nb.pickling import packing

        root = self._run_state.failures[0]
        try:
            original = packing.load(
                self._dir.rank(root.attempt, root.local_rank).exception, self._dir
            )
        except Exception:
            # The exception's class can't be unpickled here. The failure's text describes it.
            return None
        return original if isinstance(original, BaseException) else None
