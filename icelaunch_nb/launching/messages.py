"""What crosses the lines between kernel, host, agent and rank, each with its fields typed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from icelaunch_nb.surroundings import Surroundings


@dataclass
class AgentTask:
    """What the kernel asks the host for: an agent for the run that lies in `run_dir`.

    Attributes:
        run_dir: The run's directory.
        surroundings: The launching process.
        ranks: How many ranks it will have on this machine.
        detach: Whether it outlives the kernel.
    """

    run_dir: str
    surroundings: Surroundings
    ranks: int = 1
    detach: bool = False

    def to_line(self) -> bytes:
        """One line of JSON. Undecodable bytes in variables survive: JSON escapes lone surrogates."""
        return json.dumps({"op": "launch", **asdict(self)}).encode() + b"\n"

    @classmethod
    def from_message(cls, message: dict) -> AgentTask:
        """The way back from `to_line`, once parsed."""
        return cls(
            message["run_dir"],
            Surroundings(**message["surroundings"]),
            message["ranks"],
            message["detach"],
        )


@dataclass
class RankTask:
    """What the agent tells one rank.

    Attributes:
        run_dir: The run's directory.
        attempt: Number of the attempt, from 0.
        local_rank: Rank on this machine.
        rank: Global rank.
        surroundings: The launching process.
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
    surroundings: Surroundings
    rank_environ: dict[str, str]
    program: list[str] = field(default_factory=list)
    threads: int | None = None
    device: str = "cpu"
    set_device: bool = False
    post_mortem: bool = False
    close_fds: list[int] = field(default_factory=list)
