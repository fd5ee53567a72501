"""The events of a run's journal: one class each, written by the agent and read by everybody.

A line is ``{"t": 1795875081.2, "event": "restart", "attempt": 1, …}``. Fields at their defaults are
left out. An event that has another name in an older version is read by that name too. An event of a
newer version is kept as `UnknownEvent`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, ClassVar

from icelaunch_nb.errors import Failure
from icelaunch_nb.rundir.records import (
    Attempt,
    Bool,
    ExitCode,
    Grace,
    InvalidValueError,
    LocalRank,
    Node,
    Pid,
    Rank,
    Ranks,
    Record,
    Started,
    Text,
    Time,
    UpToRanks,
    Word,
    items,
    whole,
)
from icelaunch_nb.system.processes import Process

# The names of today, by those of older versions.
_RENAMED = {"moment": "timeline"}
_RENAMED_KINDS = {"heard": "recovered"}
_IN_DEBUGGER = ("debugger_start", "debugger_step", "debugger_end")


@dataclass(eq=False, repr=False, kw_only=True)
class Event(Record):
    """Something that happened.

    Attributes:
        t: When, in seconds since the epoch. The journal's writer sets it.
        node: The node of the run on which it happened.
    """

    t: Time = 0.0
    node: Node = 0

    name: ClassVar[str] = ""
    _names: ClassVar[dict[str, type[Event]]] = {}

    def __init_subclass__(cls, name: str = "") -> None:
        cls.name = name
        if name:
            Event._names[name] = cls

    def to_line(self) -> dict[str, Any]:
        """The JSON object of the journal's line, without the fields at their defaults."""
        body = self.to_json()
        for one in fields(self):
            default = one.default if one.default_factory is MISSING else one.default_factory()
            if body[one.name] == default:
                del body[one.name]
        return {
            "t": round(self.t, 4),
            "event": self.name,
            **{name: value for name, value in body.items() if name != "t"},
        }


@dataclass(eq=False, repr=False, kw_only=True)
class UnknownEvent(Event):
    """An event of a newer version, whose object is in `Record.unknown`."""


@dataclass(eq=False, repr=False, kw_only=True)
class AgentStarted(Event, name="agent"):
    """An agent has started.

    Attributes:
        pid: The agent's pid.
        started: When its process started, in seconds since the machine's boot.
    """

    pid: Pid
    started: Time

    @property
    def process(self) -> Process:
        """The agent's process."""
        return Process(self.pid, self.started)


@dataclass(eq=False, repr=False, kw_only=True)
class RankEntry(Record):
    """A rank of an attempt.

    Attributes:
        rank: Global rank.
        local_rank: Rank on its node.
        pid: The rank's pid.
        started: When its process started, in seconds since the machine's boot; -1: not known.
        device: ``"cpu"``, ``"cuda:1"``.
        node: The rank's node.
    """

    rank: Rank
    local_rank: LocalRank
    pid: Pid
    started: Started
    device: Text = ""
    node: Node = 0

    @property
    def process(self) -> Process:
        """The rank's process."""
        return Process(self.pid, self.started)


@dataclass(eq=False, repr=False, kw_only=True)
class AttemptStarted(Event, name="attempt"):
    """All ranks of an attempt were started.

    Attributes:
        attempt: The attempt's number, from 0.
        restart_count: How often the ranks have been restarted.
        world_size: Number of ranks on all nodes.
        ranks: The ranks of the event's node. In a `RunState`, the ranks of all nodes.
    """

    attempt: Attempt
    restart_count: Attempt = 0
    world_size: Rank
    ranks: Annotated[list[RankEntry], items(1, 100_000)]

    @classmethod
    def parse(cls, data: Any, where: str = "") -> AttemptStarted:
        """As `Record.parse`. A rank that is listed twice is an error too."""
        found = super().parse(data, where)
        for name in ("rank", "local_rank"):
            if len({getattr(entry, name) for entry in found.ranks}) < len(found.ranks):
                raise InvalidValueError(f"{where}ranks: a {name} stands there twice")
        return found

    def local_ranks(self, node: int = 0) -> list[RankEntry]:
        """Lists the ranks of one node."""
        return [entry for entry in self.ranks if entry.node == node]

    def entry(self, rank: int) -> RankEntry | None:
        """The entry of a global rank."""
        return next((entry for entry in self.ranks if entry.rank == rank), None)


@dataclass(eq=False, repr=False, kw_only=True)
class FailedRank(Record):
    """A `Failure` as a record of the journal."""

    rank: Rank
    local_rank: LocalRank
    attempt: Attempt
    time: Time
    pid: Pid
    kind: Text
    exitcode: ExitCode | None = None
    type_name: Text
    message: Text
    traceback: Text = ""
    hint: Text = ""
    consequence: Bool = False
    node: Node = 0

    @classmethod
    def of(cls, failure: Failure) -> FailedRank:
        """Makes the record of a failure."""
        return cls(**vars(failure))

    def failure(self) -> Failure:
        """The failure that this record holds."""
        return Failure(**{one.name: getattr(self, one.name) for one in fields(self)})


@dataclass(eq=False, repr=False, kw_only=True)
class RanksFailed(Event, name="failure"):
    """Ranks of an attempt failed, the cause first."""

    attempt: Attempt = 0
    failures: Annotated[list[FailedRank], UpToRanks]


@dataclass(eq=False, repr=False, kw_only=True)
class Restarted(Event, name="restart"):
    """The ranks are restarted.

    Attributes:
        attempt: Number of the attempt that begins.
        cause: Why.
        rank: The rank whose failure is the cause; None: nodes joined or left.
        failed_at: When that rank failed, in seconds since the epoch.
    """

    attempt: Attempt
    cause: Text
    rank: Rank | None = None
    failed_at: Time | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class TimelineEvent(Event, name="timeline"):
    """What happens beside the attempts: a pause, a checkpoint, a rank in the debugger.

    Attributes:
        kind: The event's kind, in one word.
        text: What happened, in a short sentence.
        rank: The rank that it is about; None: the run.
        left_out: How many events before it were not written, since there were too many.
        ranks: The ranks that it is about, for the kinds ``silent`` and ``recovered``.
        where: The location in the user's code: ``cell 5, line 7``.
        function: The function in which a rank waits in the debugger.
        why: Why the rank waits: ``breakpoint``, or the exception.
        who: Which thread or child of the rank waits; empty: its main thread.
    """

    kind: Word
    text: Text
    rank: Rank | None = None
    left_out: Annotated[int, whole(0, 1 << 62)] = 0
    ranks: Ranks = field(default_factory=list)
    where: Text = ""
    function: Text = ""
    why: Text = ""
    who: Text = ""

    @classmethod
    def parse(cls, data: Any, where: str = "") -> TimelineEvent:
        """As `Record.parse`. An event about a rank must say which one, and where it waits."""
        if type(data) is dict and type(data.get("kind")) is str:
            data = {**data, "kind": _RENAMED_KINDS.get(data["kind"], data["kind"])}
        found = super().parse(data, where)
        if found.kind in _IN_DEBUGGER and found.rank is None:
            raise InvalidValueError(f"{where}rank is missing: must be the rank in the debugger")
        if found.kind in ("debugger_start", "debugger_step") and "where" not in data:
            raise InvalidValueError(f"{where}where is missing: must be where the rank waits")
        if found.kind in ("silent", "recovered") and not found.ranks:
            raise InvalidValueError(f"{where}ranks is missing: must be the ranks")
        return found


@dataclass(eq=False, repr=False, kw_only=True)
class RankUnkillable(Event, name="unkillable"):
    """A process outlives SIGKILL: it waits in the operating system.

    Attributes:
        pid: The process.
        started: When it started, in seconds since the machine's boot; -1: not known.
    """

    pid: Pid
    started: Started = -1.0


@dataclass(eq=False, repr=False, kw_only=True)
class Stopping(Event, name="stopping"):
    """The ranks were asked to end.

    Attributes:
        grace: Seconds that they get to end by themselves.
        reason: Why.
    """

    grace: Grace
    reason: Text = ""


@dataclass(eq=False, repr=False, kw_only=True)
class Ended(Event, name="end"):
    """The run is over.

    Attributes:
        state: How it ended: the name of a `State` that is over.
        note: What else the user should know about it.
    """

    state: Word
    note: Text | None = None


def unreadable_end(when: float | None, note: str) -> Ended:
    """Makes the end of a run that can't be read.

    Args:
        when: The time of the end, in seconds since the epoch. None: not known, so it is now.
        note: What can't be read.
    """
    return Ended(t=time.time() if when is None else when, state="UNREADABLE", note=note)


def parse_event(data: Mapping[str, Any]) -> Event | None:
    """Parses the object of a line. None: a field has a wrong value.

    An end is never None. It says that the run is over, even if it can't be read how.
    """
    name = data.get("event")
    if type(name) is not str:
        return None
    kind = Event._names.get(_RENAMED.get(name, name))
    body = {key: value for key, value in data.items() if key != "event"}
    try:
        if kind is None:
            event: Event = UnknownEvent.parse(
                {key: body[key] for key in ("t", "node") if key in body}
            )
            event.unknown = dict(data)
            return event
        if "t" not in body:
            raise InvalidValueError("t is missing")
        return kind.parse(body)
    except InvalidValueError as error:
        if kind is not Ended:
            return None
        return unreadable_end(
            _time_of(body),
            f"how it ended can't be read: state={data.get('state')!r:.100} ({error})",
        )


def _time_of(body: Mapping[str, Any]) -> float | None:
    try:
        return Event.parse({"t": body.get("t")}).t
    except InvalidValueError:
        return None
