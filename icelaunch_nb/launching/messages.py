"""What crosses the lines between kernel, host, agent and rank: a class each, with its fields' types.

Kernel and host speak over a socket pair, a JSON object a line: the kernel sends `HostRequest`, the host `HostEvent`. A host hands an
`AgentLaunch` on to its agent, and an agent a `RankLaunch` to each rank, through pipes of multiprocessing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from icelaunch_nb.launching.launch_environment import LaunchEnvironment
from icelaunch_nb.rundir.records import Bool, InvalidValueError, Record, Text, parse_line, whole


@dataclass(eq=False, repr=False, kw_only=True)
class Message(Record):
    """One line on the socket between a kernel and its host."""

    name: ClassVar[str] = ""
    _names: ClassVar[dict[str, type[Message]]] = {}

    def __init_subclass__(cls, name: str = "") -> None:
        cls.name = name
        if name:
            Message._names[name] = cls

    def to_line(self) -> bytes:
        """One line of JSON. Undecodable bytes in variables survive: JSON escapes lone surrogates."""
        return json.dumps({"message": self.name, **self.to_json()}).encode() + b"\n"


def parse_message(line: bytes) -> Message:
    """The message of a line.

    Raises:
        ValueError: It is none, or one of its values can't be.
    """
    data = parse_line(line)
    kind = Message._names.get(str(data.pop("message", None)))
    if kind is None:
        raise InvalidValueError("no such message")
    return kind.parse(data)


@dataclass(eq=False, repr=False, kw_only=True)
class HostRequest(Message):
    """From the kernel to its host."""


@dataclass(eq=False, repr=False, kw_only=True)
class AgentLaunch(HostRequest, name="launch"):
    """Start an agent for the run that lies in `run_dir`; the descriptor of its control FIFO comes along.

    Attributes:
        run_dir: The run's directory.
        environment: The launching process.
        ranks: How many ranks it will have on this machine.
        detach: Whether it outlives the kernel.
    """

    run_dir: Text
    environment: LaunchEnvironment
    ranks: Annotated[int, whole(0, 100_000)] = 1
    detach: Bool = False


@dataclass(eq=False, repr=False, kw_only=True)
class DetachRun(HostRequest, name="detach"):
    """The run outlives the kernel from here on."""

    run_dir: Text


@dataclass(eq=False, repr=False, kw_only=True)
class Retire(HostRequest, name="retire"):
    """End once the last run is over: another host takes the next launches."""


@dataclass(eq=False, repr=False, kw_only=True)
class HostEvent(Message):
    """From a host to its kernel."""


@dataclass(eq=False, repr=False, kw_only=True)
class Warm(HostEvent, name="warm"):
    """The forkserver has imported torch."""


@dataclass(eq=False, repr=False, kw_only=True)
class AgentGone(HostEvent, name="gone"):
    """An agent is gone.

    Attributes:
        run_dir: Its run.
        how: How it ended, if it could not say so itself; otherwise empty.
    """

    run_dir: Text
    how: Text = ""


@dataclass
class RankLaunch:
    """What the agent tells one rank.

    Attributes:
        run_dir: The run's directory.
        attempt: Number of the attempt, from 0.
        local_rank: Rank on this machine.
        rank: Global rank.
        environment: The launching process.
        rank_environ: RANK, WORLD_SIZE, MASTER_ADDR and the like, laid over the launch environment.
        program: The program and its arguments, for a run of a program; empty for a function.
        threads: What ``torch.set_num_threads`` should get; None: leave it alone.
        device: ``"cpu"``, ``"cuda:1"``.
        set_device: Whether to make it CUDA's current device.
        post_mortem: Whether it stops in the debugger where it raises.
        close_fds: Descriptors of the agent that a rank forked from it must not keep.
    """

    run_dir: str
    attempt: int
    local_rank: int
    rank: int
    environment: LaunchEnvironment
    rank_environ: dict[str, str]
    program: list[str] = field(default_factory=list)
    threads: int | None = None
    device: str = "cpu"
    set_device: bool = False
    post_mortem: bool = False
    close_fds: list[int] = field(default_factory=list)
