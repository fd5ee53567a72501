"""The events of a run's journal: one class each, written by the agent and read by everybody.

A line is ``{"t": 1795875081.2, "event": "restart", "attempt": 1, …}``; fields at their defaults are left out. What an older version called
otherwise is read by its old name, and an event of a newer version is kept as `UnknownEvent`.
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

_RENAMED = {"moment": "timeline"}  # events that an older version called otherwise
_RENAMED_KINDS = {"heard": "recovered"}
_IN_DEBUGGER = ("debugger_start", "debugger_step", "debugger_end")


@dataclass(eq=False, repr=False, kw_only=True)
class Event(Record):
    """Something that happened.

    Attributes:
        t: When, in seconds since the epoch; the journal's writer says so.
        node: On which node of the run.
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
        """The object of the journal's line; a field at its default isn't there."""
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
    """An event of a newer version, in `Record.unknown`."""


@dataclass(eq=False, repr=False, kw_only=True)
class AgentStarted(Event, name="agent"):
    """An agent is at work.

    Attributes:
        pid: Its process.
        started: When that started, in seconds since the machine did.
    """

    pid: Pid
    started: Time

    @property
    def process(self) -> Process:
        """Its process."""
        return Process(self.pid, self.started)


@dataclass(eq=False, repr=False, kw_only=True)
class RankEntry(Record):
    """A rank of an attempt.

    Attributes:
        rank: Global rank.
        local_rank: Rank on its node.
        pid: Its process.
        started: When that started, in seconds since the machine did.
        device: ``"cpu"``, ``"cuda:1"``.
        node: Its node.
    """

    rank: Rank
    local_rank: LocalRank
    pid: Pid
    started: Started
    device: Text = ""
    node: Node = 0

    @property
    def process(self) -> Process:
        """Its process."""
        return Process(self.pid, self.started)


@dataclass(eq=False, repr=False, kw_only=True)
class AttemptStarted(Event, name="attempt"):
    """All ranks of an attempt were started.

    Attributes:
        attempt: Its number, from 0.
        restart_count: How often the ranks have been restarted.
        world_size: Number of ranks on all nodes.
        ranks: Those of this node; of a `RunState`, those of all nodes.
    """

    attempt: Attempt
    restart_count: Attempt = 0
    world_size: Rank
    ranks: Annotated[list[RankEntry], items(1, 100_000)]

    @classmethod
    def parse(cls, data: Any, where: str = "") -> AttemptStarted:
        """As `Record.parse`; no rank may stand there twice."""
        found = super().parse(data, where)
        for name in ("rank", "local_rank"):
            if len({getattr(entry, name) for entry in found.ranks}) < len(found.ranks):
                raise InvalidValueError(f"{where}ranks: a {name} stands there twice")
        return found

    def local_ranks(self, node: int = 0) -> list[RankEntry]:
        """The ranks of one node."""
        return [entry for entry in self.ranks if entry.node == node]

    def entry(self, rank: int) -> RankEntry | None:
        """The entry of a global rank."""
        return next((entry for entry in self.ranks if entry.rank == rank), None)


@dataclass(eq=False, repr=False, kw_only=True)
class FailedRank(Record):
    """A `Failure`, as the journal keeps it."""

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
        """The journal's entry of a failure."""
        return cls(**vars(failure))

    def failure(self) -> Failure:
        """The failure of this entry."""
        return Failure(**{one.name: getattr(self, one.name) for one in fields(self)})


@dataclass(eq=False, repr=False, kw_only=True)
class RanksFailed(Event, name="failure"):
    """Ranks of an attempt failed, the cause first."""

    attempt: Attempt = 0
    failures: Annotated[list[FailedRank], UpToRanks]


@dataclass(eq=False, repr=False, kw_only=True)
class Restarted(Event, name="restart"):
    """The ranks are started anew.

    Attributes:
        attempt: Number of the attempt that begins.
        cause: Why.
        rank: Whose failure it was; None: nobody's, nodes came or went.
        failed_at: When that was.
    """

    attempt: Attempt
    cause: Text
    rank: Rank | None = None
    failed_at: Time | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class TimelineEvent(Event, name="timeline"):
    """What happens beside the attempts: a pause, a checkpoint, a rank in the debugger.

    Attributes:
        kind: One word for what it is.
        text: A short sentence.
        rank: Whom it is about; None: the run.
        left_out: How many events before it were not written, since there were too many.
        ranks: Whom it is about, of the kinds ``silent`` and ``recovered``.
        where: Where in the user's code: ``cell 5, line 7``.
        function: In which function a rank waits in the debugger.
        why: Why it does: ``breakpoint``, or the exception.
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
        """As `Record.parse`; a kind that says how a rank stands must name it."""
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
        started: When that started; -1: not known.
    """

    pid: Pid
    started: Started = -1.0


@dataclass(eq=False, repr=False, kw_only=True)
class Stopping(Event, name="stopping"):
    """Ranks were told to end.

    Attributes:
        grace: Seconds that they are given.
        reason: Why.
    """

    grace: Grace
    reason: Text = ""


@dataclass(eq=False, repr=False, kw_only=True)
class Ended(Event, name="end"):
    """The run is over.

    Attributes:
        state: How: the name of a `State` that is over.
        note: What there is to say about it.
    """

    state: Word
    note: Text | None = None


def unreadable_end(when: float | None, note: str) -> Ended:
    """The end of a run that can't be read.

    Args:
        when: When that was, in seconds since the epoch, if that is known.
        note: What can't be read.
    """
    return Ended(t=time.time() if when is None else when, state="UNREADABLE", note=note)


def parse_event(data: Mapping[str, Any]) -> Event | None:
    """The event of a line; None: one whose values can't be.

    An end always is one, since it says that the run is over, even where it can't be read how.
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
