"""The story of a run: what its journal adds up to.

A value, never changed: each event makes the next one. So whoever is interrupted between two events (a KeyboardInterrupt can
come anywhere) still holds a whole story.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from icelaunch_nb.errors import Failure
from icelaunch_nb.processes import Process

_MOMENTS = 200  # more than anybody reads
HOST_ENDED = "its host ended"  # all that an agent can know; the kernel, whose child the host was, completes it
STOPPED_ITSELF = "stop_all_tasks was set"
ORPHANS_GRACE = 2.0  # seconds that ranks get whose kernel or host is gone


class State(str, Enum):
    """The life of a run; each member equals its name as a string.

    PAUSED isn't in the journal: `Run.state` says so of a running run whose ``events.paused`` is set.
    """

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    RESTARTING = "RESTARTING"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    LOST = "LOST"

    __str__ = str.__str__

    @property
    def over(self) -> bool:
        """Whether nothing will happen any more."""
        return self in (State.SUCCEEDED, State.FAILED, State.STOPPED, State.LOST)


@dataclass(frozen=True)
class Story:
    """A run so far.

    Attributes:
        state: Where it stands.
        agent: Its agent, once there is one.
        attempts: The journal's ``attempt`` events: ``attempt``, ``world_size`` and ``ranks``, each with ``rank``,
            ``local_rank``, ``pid``, ``started`` and ``device``.
        restarts: The ``restart`` events: ``attempt``, ``rank``, ``cause``, ``failed_at`` and ``t``.
        failures: Every failed rank of the newest attempt that failed, the cause first.
        moments: The newest ``moment`` events: ``kind``, ``text``, ``t`` and, where it is about one, ``rank``.
        stopping: The newest ``stopping`` event: when ranks were told to end (``t``), and how many seconds they were given (``grace``).
        debugged: The moment that tells of it, for each rank that is in the debugger: ``where`` it waits (``cell 5, line 7``),
            ``function``, ``why`` (``breakpoint``, or the exception), ``who`` (empty, or which thread or child).
        silent: Where each rank stands that the hang watch calls silent; empty where that can't be told.
        end: The ``end`` event, or what stands for it where there is none; empty before.
    """

    state: State = State.STARTING
    agent: Process | None = None
    attempts: tuple[Mapping[str, Any], ...] = ()
    restarts: tuple[Mapping[str, Any], ...] = ()
    failures: tuple[Failure, ...] = ()
    moments: tuple[Mapping[str, Any], ...] = ()
    stopping: Mapping[str, Any] | None = None
    debugged: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    silent: Mapping[int, str] = field(default_factory=dict)
    end: Mapping[str, Any] | None = None

    def after(self, event: Mapping[str, Any]) -> Story:
        """The story once `event` has happened; events of a newer version change nothing."""
        match event["event"]:
            case "agent":
                return replace(self, agent=Process(event["pid"], event["started"]))
            case "attempt":
                state = self.state if self.state == State.STOPPING else State.RUNNING
                return replace(
                    self, state=state, attempts=(*self.attempts, event)
                )  # its first ranks may be in the debugger already
            case "failure":
                return replace(
                    self,
                    failures=tuple(Failure.from_json(failure) for failure in event["failures"]),
                )
            case "restart":
                return replace(
                    self,
                    state=State.RESTARTING,
                    restarts=(*self.restarts, event),
                    debugged={},
                    silent={},
                )
            case "moment":
                return self._after_moment(event)
            case "unkillable":
                ranks = [
                    entry["rank"]
                    for attempt in self.attempts
                    for entry in attempt["ranks"]
                    if entry["pid"] == event["pid"]
                ]
                text = f"pid {event['pid']} outlives SIGKILL: it waits in the operating system"
                return self._after_moment(
                    {
                        "t": event["t"],
                        "kind": "unkillable",
                        "text": text,
                        "rank": ranks[-1] if ranks else None,
                    }
                )
            case "stopping":
                return replace(self, state=State.STOPPING, stopping=event)
            case "end":
                return replace(self, state=State(event["state"]), end=event, debugged={}, silent={})
        return self

    def _after_moment(self, moment: Mapping[str, Any]) -> Story:
        kind = moment["kind"]
        story = (
            self
            if kind == "debugger_step"
            else replace(self, moments=(*self.moments, moment)[-_MOMENTS:])
        )
        if kind in ("debugger_start", "debugger_step"):
            return replace(story, debugged={**self.debugged, moment["rank"]: moment})
        if kind == "debugger_end":
            return replace(
                story,
                debugged={
                    other: at for other, at in self.debugged.items() if other != moment["rank"]
                },
            )
        if kind == "silent":
            return replace(
                story, silent={**self.silent, **dict.fromkeys(moment["ranks"], moment["where"])}
            )
        if kind == "heard":
            return replace(
                story,
                silent={
                    rank: at for rank, at in self.silent.items() if rank not in moment["ranks"]
                },
            )
        return story

    def hangs(self) -> list[tuple[list[int], str]]:
        """Silent ranks by where they stand, the fewest ranks first: the odd one out is where to look."""
        at: dict[str, list[int]] = {}
        for rank, where in sorted(self.silent.items()):
            at.setdefault(where, []).append(rank)
        return sorted(
            ((ranks, where) for where, ranks in at.items()),
            key=lambda hang: (len(hang[0]), hang[0]),
        )
