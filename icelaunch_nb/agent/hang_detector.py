"""The hang watch: marks ranks that say nothing and make no step, with where they stand.

It lives in the agent, which is there as long as the ranks are, whatever becomes of the kernel; what it finds are moments in the
journal. A rank's signs of life are its output, its metrics and its steps. While the run is paused or a rank is in the debugger
nobody is called silent, and neither are ranks of a run that is being stopped.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icelaunch_nb import places, stacks
from icelaunch_nb.agent.timekeeper import Timekeeper
from icelaunch_nb.debugsocket import in_debugger
from icelaunch_nb.events import Events, Flag
from icelaunch_nb.moments import in_words
from icelaunch_nb.processes import Process
from icelaunch_nb.rundir import RunDir
from icelaunch_nb.steps import steps_made

_LOOK = 1.0  # seconds between two looks, fewer where less than four times as long is a hang
_ANSWER = 2.0  # seconds that silent ranks may take to say where they stand


@dataclass
class _Rank:
    """A rank as far as it is known to live."""

    entry: Mapping[str, Any]
    process: Process
    signs: tuple[int, ...] = ()
    since: float = 0.0  # when its signs of life last changed
    told: str | None = None  # where it was said to stand; None: it isn't called silent
    next_asked: float = 0.0  # seconds of silence after which it is asked again


class HangWatch:
    """Looks at the ranks of the newest attempt, in a thread.

    Args:
        run_dir: The run.
        timekeeper: Who writes moments down.
        after: Seconds of silence that are a hang; None: none are.
    """

    def __init__(self, run_dir: RunDir, timekeeper: Timekeeper, after: float | None) -> None:
        self._run_dir, self._timekeeper, self._after = run_dir, timekeeper, after
        self._names = places.cell_names(run_dir)
        self._over, self._lock = threading.Event(), threading.Lock()
        self._followed: tuple[Mapping[str, Any], list[_Rank]] = (
            {},
            [],
        )  # attempt and ranks, replaced together
        self._debugged: set[int] = set()  # ranks that said that they are in the debugger
        self._gone: set[int] = set()  # those of them that weren't at the last look
        self._events: Events | None = None
        self._thread = threading.Thread(target=self._watch, name="icelaunch-hangs", daemon=True)

    def follow(self, attempt: Mapping[str, Any]) -> None:
        """From now on the ranks of this attempt.

        Args:
            attempt: The journal's ``attempt`` event.
        """
        now = time.monotonic()
        self._followed = (
            attempt,
            [
                _Rank(entry, Process(entry["pid"], entry["started"]), since=now)
                for entry in attempt["ranks"]
            ],
        )
        if not self._thread.is_alive() and not self._over.is_set():
            self._thread.start()

    def take(self, moment: Mapping[str, Any]) -> None:
        """Notices that a rank goes into the debugger or leaves it."""
        with self._lock:
            if moment["kind"] in ("debugger_start", "debugger_step"):
                self._debugged.add(moment["rank"])
            elif moment["kind"] == "debugger_end":
                self._debugged.discard(moment["rank"])

    def stop(self) -> None:
        """The ranks are gone: nobody is silent, and nobody in the debugger."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(1)
        if self._events is None:
            with contextlib.suppress(OSError, ValueError):
                self._events = Events.of_run(self._run_dir.path)
        if self._events is not None and self._events.debugger_start.is_set():
            self._no_debugger()

    def _watch(self) -> None:
        try:
            self._events = Events.of_run(self._run_dir.path)
        except (OSError, ValueError):  # the run directory is gone
            return
        while not self._over.wait(_LOOK if self._after is None else min(_LOOK, self._after / 4)):
            with contextlib.suppress(OSError):
                self._look(self._events, *self._followed)

    def _look(self, events: Events, attempt: Mapping[str, Any], ranks: list[_Rank]) -> None:
        debugged = in_debugger(self._run_dir.attempt(attempt["attempt"]))
        self._miss(debugged, ranks)
        now = time.monotonic()
        if (
            debugged
            or events.paused.is_set()
            or Flag.is_set(events.stop_all_tasks)
            or self._after is None
        ):
            for rank in ranks:
                rank.since = now
        else:
            self._look_for_signs(now, attempt["attempt"], ranks)
        heard = [
            rank
            for rank in ranks
            if rank.told is not None
            and (now - rank.since < (self._after or 0) or not rank.process.alive())
        ]
        for rank in heard:
            rank.told, rank.next_asked = None, 0.0
        if heard:
            numbers = [rank.entry["rank"] for rank in heard]
            self._timekeeper.note("heard", f"{in_words(numbers)} no longer silent", ranks=numbers)
        if self._after is not None:
            self._ask(
                attempt,
                [
                    rank
                    for rank in ranks
                    if now - rank.since >= max(self._after, rank.next_asked)
                    and rank.process.alive()
                ],
            )

    def _look_for_signs(self, now: float, number: int, ranks: list[_Rank]) -> None:
        made = steps_made(self._run_dir.steps(number), len(ranks))
        for rank in ranks:
            local = rank.entry["local_rank"]
            folder, signs = self._run_dir.rank(number, local), [made.get(local, 0)]
            for path in (folder.stdout, folder.stderr, folder.metrics):
                with contextlib.suppress(OSError):
                    found = os.stat(path)
                    signs += [found.st_size, found.st_mtime_ns]
            if tuple(signs) != rank.signs:
                rank.signs, rank.since = tuple(signs), now

    def _ask(self, attempt: Mapping[str, Any], ranks: list[_Rank]) -> None:
        """Asks silent ranks where they stand, and says so where it is new; rarer and rarer, should it last for days."""
        if not ranks:
            return
        texts = stacks.ask(
            self._run_dir,
            {**attempt, "ranks": [rank.entry for rank in ranks]},
            _ANSWER,
            self._over.is_set,
        )
        if self._over.is_set() or self._followed[0] is not attempt:
            return
        at: dict[str, list[_Rank]] = {}
        for rank in ranks:
            rank.next_asked = 2 * (time.monotonic() - rank.since)
            at.setdefault(stacks.stands(texts[rank.entry["rank"]], self._names), []).append(rank)
        for where, there in sorted(at.items(), key=lambda place: len(place[1])):
            new = [rank for rank in there if rank.told != where]
            if new:
                numbers, seconds = (
                    [rank.entry["rank"] for rank in new],
                    time.monotonic() - max(rank.since for rank in new),
                )
                text = f"{in_words(numbers)} silent for {seconds:.0f} s" + (
                    f", at {where}" if where else ""
                )
                self._timekeeper.note("silent", text, ranks=numbers, where=where)
            for rank in there:
                rank.told = where

    def _miss(self, debugged: set[int], ranks: list[_Rank]) -> None:
        """A thread or child process can be gone without a word while its rank goes on."""
        with self._lock:
            gone = {
                rank.entry["rank"] for rank in ranks if rank.entry["local_rank"] not in debugged
            } & self._debugged
            lost, self._gone = gone & self._gone, gone - self._gone
            self._debugged -= lost
        if lost and not debugged:
            self._no_debugger()
        for number in lost:
            self._timekeeper.note("debugger_end", "left the debugger without a word", rank=number)

    def _no_debugger(self) -> None:
        assert self._events is not None
        with self._events.locked():
            self._events.debugger_start.clear()
            self._events.debugger_end.set()
