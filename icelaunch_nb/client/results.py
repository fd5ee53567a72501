"""What a run comes to: the values that its ranks returned, or the error to raise."""

from __future__ import annotations

import time
from typing import Any

from icelaunch_nb import packing
from icelaunch_nb.errors import Failure, RunFailed, RunLost, RunStopped
from icelaunch_nb.rundir import RunDir
from icelaunch_nb.story import State, Story


class Outcome:
    """The results of a run that is over, loaded once.

    Args:
        run_dir: The run directory.
        story: The whole story.
        run_id: What messages call it.
        program: Whether its ranks are programs, which return nothing.
    """

    def __init__(self, run_dir: RunDir, story: Story, *, run_id: str, program: bool) -> None:
        self._dir, self._story, self._run_id, self._program = run_dir, story, run_id, program
        self._unloadable: dict[int, Exception] = {}
        self._results = self._load()

    def results(self) -> dict[int, Any]:
        """The values by global rank.

        Raises:
            RunFailed: A rank failed, or a value can't be built here.
            RunStopped: It was stopped before all its ranks returned.
            RunLost: Its agent vanished.
        """
        story, log_dir = self._story, str(self._dir.path)
        note = (story.end or {}).get("note", "")
        if story.state == State.LOST:
            raise RunLost(
                "\n".join(
                    filter(
                        None, [f"the agent of run {self._run_id} vanished; logs: {log_dir}", note]
                    )
                )
            )
        if story.state == State.SUCCEEDED:
            if self._unloadable:
                rank = min(self._unloadable)
                raise self._result_failed(rank) from self._unloadable[rank]
            return dict(self._results)
        if story.state == State.STOPPED:
            expected = (
                story.attempts[-1]["ranks"] if story.attempts and not self._program else [None]
            )
            if len(self._results) == len(expected):
                return dict(self._results)
            meanwhile = (
                f"; meanwhile rank {story.failures[0].rank} failed: {story.failures[0].title}"
                if story.failures
                else ""
            )
            raise RunStopped(
                f"run {self._run_id} was stopped: {note or 'it was asked to'}{meanwhile}",
                dict(self._results),
            )
        raise self._failed(story.failures, note=note) from self._original_exception()

    def _load(self) -> dict[int, Any]:
        results: dict[int, Any] = {}
        for entry in self._story.attempts[-1]["ranks"] if self._story.attempts else []:
            path = self._dir.rank(self._story.attempts[-1]["attempt"], entry["local_rank"]).result
            if self._program:
                if self._story.state == State.SUCCEEDED:
                    results[entry["rank"]] = None
            elif path.exists():
                try:
                    results[entry["rank"]] = packing.load(path)
                except Exception as error:
                    self._unloadable[entry["rank"]] = error
        return results

    def _failed(self, failures: Any, *, note: str = "") -> RunFailed:
        attempts = self._story.attempts
        return RunFailed(
            failures,
            dict(self._results),
            world_size=attempts[-1]["world_size"] if attempts else 0,
            attempt=max(0, len(attempts) - 1),
            log_dir=str(self._dir.path),
            note=note,
        )

    def _result_failed(self, rank: int) -> RunFailed:
        """What to raise for a value that the rank could pack but this process can't build."""
        error, attempt = self._unloadable[rank], self._story.attempts[-1]
        (entry,) = (entry for entry in attempt["ranks"] if entry["rank"] == rank)
        said = f"rank {rank}'s result can't be built here: {type(error).__name__}: {error}"
        return self._failed(
            [
                Failure(
                    rank,
                    entry["local_rank"],
                    attempt["attempt"],
                    time.time(),
                    entry["pid"],
                    "result",
                    0,
                    type(error).__name__,
                    str(error),
                    said,
                )
            ]
        )

    def _original_exception(self) -> BaseException | None:
        if not self._story.failures:
            return None
        root = self._story.failures[0]
        try:
            original = packing.load(self._dir.rank(root.attempt, root.local_rank).exception)
        except Exception:
            return None  # its class can't be built here; the text of the failure says what it was
        return original if isinstance(original, BaseException) else None
