"""A run in plain data, as the front end and the static summary draw it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from icelaunch_nb import steps
from icelaunch_nb.events import FLAGS, Events
from icelaunch_nb.processes import Process
from icelaunch_nb.rundir import RunDir

_TRACEBACK = 8000  # characters of a rank's traceback that a panel holds
_FAILURES = 64
_SAMPLE = 1.0  # seconds between two looks at the memory of ranks


class Portrait:
    """Draws a run from its directory.

    Args:
        run: A `Run`.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self.dir = RunDir(Path(run.log_dir))
        self._spec = run._spec  # a directory that vanished meanwhile keeps its panel
        self._events: Events | None = (
            None  # not the run's own: its file stays open as long as it, and users keep runs
        )
        self._processes: dict[int, psutil.Process | None] = {}
        self._memory: dict[int, int] = {}
        self._returned: set[tuple[int, int]] = set()
        self._sampled = 0.0

    def story(self) -> dict[str, Any]:
        """What the journal says: it changes when something happens."""
        story, spec = self.run.story, self._spec
        failures = [
            {
                "rank": failure.rank,
                "attempt": failure.attempt,
                "time": failure.time,
                "kind": failure.kind,
                "type": failure.type_name,
                "title": failure.title[:400],
                "hint": failure.hint,
                "traceback": "" if number else failure.traceback[-_TRACEBACK:],
            }
            for number, failure in enumerate(story.failures[:_FAILURES])
        ]
        attempts = [
            {
                "attempt": attempt["attempt"],
                "t": attempt["t"],
                "world_size": attempt["world_size"],
                "ranks": [
                    [entry["rank"], entry["local_rank"], entry.get("device", ""), entry["pid"]]
                    for entry in attempt["ranks"]
                ],
            }
            for attempt in story.attempts
        ]
        restarts = [
            {name: restart.get(name) for name in ("attempt", "rank", "cause", "failed_at", "t")}
            for restart in story.restarts
        ]
        return {
            "run_id": spec["run_id"],
            "name": spec.get("name", ""),
            "path": str(self.dir.path),
            "state": str(story.state),
            "over": story.state.over,
            "started": spec["time"],
            "end": story.end["t"] if story.end else None,
            "note": (story.end or {}).get("note") or "",
            "nproc": spec["config"]["nproc_per_node"],
            "max_restarts": spec["config"]["max_restarts"],
            "attempts": attempts,
            "restarts": restarts,
            "failures": failures,
            "moments": [
                {name: moment.get(name) for name in ("t", "kind", "text", "rank")}
                for moment in story.moments
            ],
            "kill_at": story.stopping["t"] + story.stopping["grace"] if story.stopping else None,
            "debugged": {
                str(rank): {name: at.get(name, "") for name in ("where", "who", "why")}
                for rank, at in story.debugged.items()
            },
            "silent": {str(rank): where for rank, where in story.silent.items()},
        }

    def pulse(self, written: Mapping[int, float], reported: Mapping[int, int]) -> dict[str, Any]:
        """What moves all the time: progress, flags, and each rank's signs of life.

        Args:
            written: When each rank of the newest attempt wrote last, in seconds since the epoch.
            reported: Its newest reported step, by place in that attempt; for ranks whose loops aren't ours.
        """
        story = self.run.story
        if self._events is None:
            self._events = Events.of_run(self.dir.path)
        events = self._events
        ranks = story.attempts[-1]["ranks"] if story.attempts else []
        made = self._steps_made(story.attempts[-1]) if story.attempts else {}
        if time.monotonic() - self._sampled > _SAMPLE:
            self._sampled = time.monotonic()
            self._memory = (
                {}
                if story.state.over
                else {entry["rank"]: self._memory_of(entry) for entry in ranks}
            )
        return {
            "t": round(time.time(), 2),
            "bars": events.bars,
            "flags": [name for name in FLAGS if getattr(events, name).is_set()],
            "ranks": [
                [
                    self._memory.get(entry["rank"], 0),
                    round(written.get(entry["rank"], 0.0), 1),
                    self._has_returned(story.attempts[-1], entry),
                    made.get(entry["local_rank"], reported.get(place)),
                ]
                for place, entry in enumerate(ranks)
            ],
        }

    def _steps_made(self, attempt: Mapping[str, Any]) -> dict[int, int]:
        """By local rank, of those whose loops are ours."""
        try:
            return steps.steps_made(
                self.dir.steps(attempt["attempt"]),
                1 + max((entry["local_rank"] for entry in attempt["ranks"]), default=0),
            )
        except (OSError, ValueError):  # the directory is gone, or another version's
            return {}

    def _memory_of(self, entry: Mapping[str, Any]) -> int:
        """Resident memory in MB; 0 for a process that is gone."""
        pid = entry["pid"]
        try:
            if pid not in self._processes:
                process = psutil.Process(pid)
                self._processes[pid] = process if Process(pid, entry["started"]).alive() else None
            found = self._processes[pid]
            return 0 if found is None else found.memory_info().rss >> 20
        except psutil.Error:
            self._processes[pid] = None
            return 0

    def _has_returned(self, attempt: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
        key = attempt["attempt"], entry["local_rank"]
        if key not in self._returned and self.dir.rank(*key).result.exists():
            self._returned.add(key)
        return key in self._returned
