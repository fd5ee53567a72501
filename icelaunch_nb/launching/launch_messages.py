"""The messages between kernel, host, agent and rank: a class each, with its fields' types.

Kernel and host share a socket pair. Each line is a JSON object. The kernel sends `HostRequest`
messages, the host `HostEvent` messages. A host passes an `AgentLaunch` on to its agent, and an
agent passes a `RankLaunch` to each rank, through pipes of multiprocessing.
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
        """The message as a line of JSON.

        Undecodable bytes in variables survive, since JSON escapes lone surrogates.
        """
        return json.dumps({"message": self.name, **self.to_json()}).encode() + b"\n"


def parse_message(line: bytes) -> Message:
    """Parses one line.

    Raises:
        ValueError: It is no message, or a value is invalid.
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
    """Start an agent for the run in `run_dir`. The descriptor of its control FIFO comes along.

    Attributes:
        run_dir: The run's directory.
        environment: What ranks take over from the launching process.
        ranks: How many ranks the run has on this machine.
        detach: Whether the run outlives the kernel.
    """

    run_dir: Text
    environment: LaunchEnvironment
    ranks: Annotated[int, whole(0, 100_000)] = 1
    detach: Bool = False


@dataclass(eq=False, repr=False, kw_only=True)
class DetachRun(HostRequest, name="detach"):
    """From now on, the run outlives the kernel."""

    run_dir: Text


@dataclass(eq=False, repr=False, kw_only=True)
class Retire(HostRequest, name="retire"):
    """Exit once the last run has ended. Another host starts the next runs."""


@dataclass(eq=False, repr=False, kw_only=True)
class HostEvent(Message):
    """From a host to its kernel."""


@dataclass(eq=False, repr=False, kw_only=True)
class Warm(HostEvent, name="warm"):
    """The forkserver has imported torch."""


@dataclass(eq=False, repr=False, kw_only=True)
class AgentGone(HostEvent, name="gone"):
    """An agent has exited.

    Attributes:
        run_dir: Its run.
        how: How it ended, if it couldn't write that to the journal itself; otherwise empty.
    """

    run_dir: Text
    how: Text = ""


@dataclass
class RankLaunch:
    """What the agent sends to one rank.

    Attributes:
        run_dir: The run's directory.
        attempt: The attempt's number, from 0.
        local_rank: The rank on this machine.
        rank: The global rank.
        environment: What the rank takes over from the launching process.
        rank_environ: RANK, WORLD_SIZE, MASTER_ADDR and the like, set over `environment`.
        program: The program and its arguments, for a run of a program; empty for a function.
        threads: The argument of ``torch.set_num_threads``; None: it isn't called.
        device: ``"cpu"``, ``"cuda:1"``.
        set_device: Whether `device` becomes CUDA's current device.
        post_mortem: Whether the rank stops in the debugger where it raises.
        close_fds: The agent's descriptors that a rank forked from it must close.
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
