"""The state of a run, as the events of its journal make it.

A `RunState` is never changed: each event makes a new one. So code that is interrupted between two
events (a KeyboardInterrupt can come anywhere) still has a whole state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from icelaunch_nb.errors import Failure
from icelaunch_nb.rundir.journal_events import (
    AgentStarted,
    AttemptStarted,
    Ended,
    Event,
    RankEntry,
    RanksFailed,
    RankUnkillable,
    Restarted,
    Stopping,
    TimelineEvent,
    unreadable_end,
)
from icelaunch_nb.system.processes import Process

# Events that are kept: more than anybody reads.
_TIMELINE_LENGTH = 200
# The note of an end. An agent can't know more. The kernel, whose child the host was, completes it.
HOST_ENDED = "its host ended"
STOPPED_ITSELF = "stop_all_tasks was set"
# Seconds that ranks get to return when their kernel or host is gone.
ORPHANS_GRACE = 2.0


class State(str, Enum):
    """The stages of a run. Each member equals its name as a string.

    PAUSED isn't in the journal: a running run is PAUSED if its ``events.paused`` is set. A run is
    UNREADABLE if its files are damaged, made up, or written by a newer version.
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
    UNREADABLE = "UNREADABLE"

    __str__ = str.__str__

    @property
    def over(self) -> bool:
        """Whether the run is over."""
        return self in (State.SUCCEEDED, State.FAILED, State.STOPPED, State.LOST, State.UNREADABLE)


@dataclass(frozen=True)
class RunState:
    """The state of a run after some events.

    Attributes:
        state: The stage of the run.
        agents: The run's agents, by node.
        attempts: The attempts that were started, each with the ranks of all nodes.
        restarts: The restarts between the attempts.
        failures: Every failed rank of the newest attempt that failed, the cause first.
        timeline: The newest events beside the attempts.
        stopping: The newest event that asks the ranks to end, with its time and grace.
        debugged: The newest event about each rank that is in the debugger, by global rank.
        silent: The location in the user's code of each rank that the hang detector calls silent, by
            global rank. Empty if it can't be found out.
        end: The end, or what stands for it in a run without one. None: the run isn't over.
    """

    state: State = State.STARTING
    agents: Mapping[int, Process] = field(default_factory=dict)
    attempts: tuple[AttemptStarted, ...] = ()
    restarts: tuple[Restarted, ...] = ()
    failures: tuple[Failure, ...] = ()
    timeline: tuple[TimelineEvent, ...] = ()
    stopping: Stopping | None = None
    debugged: Mapping[int, TimelineEvent] = field(default_factory=dict)
    silent: Mapping[int, str] = field(default_factory=dict)
    end: Ended | None = None

    @property
    def agent(self) -> Process | None:
        """The agent of the home node, once there is one."""
        return self.agents.get(0)

    @property
    def ranks(self) -> list[RankEntry]:
        """The ranks of the newest attempt."""
        return self.attempts[-1].ranks if self.attempts else []

    def after(self, event: Event) -> RunState:
        """Returns the state after `event`. Events of a newer version change nothing."""
        match event:
            case AgentStarted():
                return replace(self, agents={**self.agents, event.node: event.process})
            case AttemptStarted():
                state = self.state if self.state == State.STOPPING else State.RUNNING
                # `debugged` stays: the attempt's first ranks may be in the debugger already.
                return replace(self, state=state, attempts=self._with_attempt(event))
            case RanksFailed():
                return replace(self, failures=tuple(failed.failure() for failed in event.failures))
            case Restarted():
                return replace(
                    self,
                    state=State.RESTARTING,
                    restarts=(*self.restarts, event),
                    debugged={},
                    silent={},
                )
            case TimelineEvent():
                return self._after_timeline_event(event)
            case RankUnkillable():
                ranks = [
                    entry.rank
                    for attempt in self.attempts
                    for entry in attempt.ranks
                    if (entry.node, entry.pid) == (event.node, event.pid)
                ]
                text = f"pid {event.pid} outlives SIGKILL: it waits in the operating system"
                return self._after_timeline_event(
                    TimelineEvent(
                        t=event.t, kind="unkillable", text=text, rank=ranks[-1] if ranks else None
                    )
                )
            case Stopping():
                return replace(self, state=State.STOPPING, stopping=event)
            case Ended():
                if event.state not in State.__members__ or not State(event.state).over:
                    event = unreadable_end(
                        event.t, f"how it ended can't be read: state={event.state!r:.100}"
                    )
                return replace(self, state=State(event.state), end=event, debugged={}, silent={})
        return self

    def _with_attempt(self, event: AttemptStarted) -> tuple[AttemptStarted, ...]:
        """Adds an attempt, or a node's ranks: each node of an attempt has an event of its own."""
        entries = [replace(entry, node=event.node) for entry in event.ranks]
        last = self.attempts[-1] if self.attempts else None
        if (
            last is not None
            and last.attempt == event.attempt
            and event.node not in {entry.node for entry in last.ranks}
        ):
            return (
                *self.attempts[:-1],
                replace(last, ranks=sorted([*last.ranks, *entries], key=lambda entry: entry.rank)),
            )
        return (*self.attempts, replace(event, ranks=entries) if event.node else event)

    def _after_timeline_event(self, event: TimelineEvent) -> RunState:
        state = (
            self
            if event.kind == "debugger_step"
            else replace(self, timeline=(*self.timeline, event)[-_TIMELINE_LENGTH:])
        )
        if event.kind in ("debugger_start", "debugger_step") and event.rank is not None:
            return replace(state, debugged={**self.debugged, event.rank: event})
        if event.kind == "debugger_end":
            return replace(
                state,
                debugged={other: at for other, at in self.debugged.items() if other != event.rank},
            )
        if event.kind == "silent":
            return replace(state, silent={**self.silent, **dict.fromkeys(event.ranks, event.where)})
        if event.kind == "recovered":
            return replace(
                state,
                silent={rank: at for rank, at in self.silent.items() if rank not in event.ranks},
            )
        return state

    def hangs(self) -> list[tuple[list[int], str]]:
        """Groups the silent ranks by their location, the smallest group first.

        The rank that differs from the others is the one to look at.

        Returns:
            The global ranks and the location of each group.
        """
        at: dict[str, list[int]] = {}
        for rank, where in sorted(self.silent.items()):
            at.setdefault(where, []).append(rank)
        return sorted(
            ((ranks, where) for where, ranks in at.items()),
            key=lambda hang: (len(hang[0]), hang[0]),
        )
