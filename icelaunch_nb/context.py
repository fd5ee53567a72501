"""Who a rank is: `get_context`, the same under icelaunch_nb, under plain torchrun and inline in the kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from icelaunch_nb.errors import IcelaunchError
from icelaunch_nb.events import Events

if TYPE_CHECKING:
    import torch

DEVICE_VARIABLE = "ICELAUNCH_DEVICE"
RUN_DIR_VARIABLE = "ICELAUNCH_RUN_DIR"
ATTEMPT_VARIABLE = "ICELAUNCH_ATTEMPT"


@dataclass(frozen=True)
class Context:
    """This rank.

    Attributes:
        rank: Global rank, 0 to ``world_size - 1``.
        local_rank: Rank on this machine.
        world_size: Number of ranks in all.
        local_world_size: Number of ranks on this machine.
        role: The config's ``role``.
        restart_count: How often the ranks have been restarted, 0 in the first attempt.
        max_restarts: How often they may be.
        run_id: The run's id.
        events: The run's events, or a set of this process's own under plain torchrun.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    role: str
    restart_count: int
    max_restarts: int
    run_id: str
    events: Events

    @property
    def device(self) -> torch.device:
        """This rank's device; CUDA's current one where it is a GPU."""
        import torch

        named = os.environ.get(DEVICE_VARIABLE)
        if named is None:
            named = f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"
        return torch.device(named)

    def __repr__(self) -> str:
        return f"<Context rank {self.rank} of {self.world_size}, attempt {self.restart_count}, run {self.run_id}>"


def get_context() -> Context:
    """The context of this rank.

    Works in a rank of this package, under torchrun (from its environment variables) and in a launch with ``inline=True``.

    Raises:
        IcelaunchError: This process is no rank.
    """
    env = os.environ
    if "RANK" not in env or "WORLD_SIZE" not in env:
        raise IcelaunchError("this process is no rank: get_context() works in a function that was launched, or under torchrun")
    key = (os.getpid(), env["RANK"], env.get("TORCHELASTIC_RUN_ID"), env.get("TORCHELASTIC_RESTART_COUNT"), env.get(RUN_DIR_VARIABLE))
    if _current.get("key") != key:
        _current.update(key=key, context=_from_environment())
    return _current["context"]


_current: dict[str, Any] = {}


def _from_environment() -> Context:
    env = os.environ
    rank = int(env["RANK"])
    run_dir = env.get(RUN_DIR_VARIABLE)
    return Context(
        rank=rank,
        local_rank=int(env.get("LOCAL_RANK", rank)),
        world_size=int(env["WORLD_SIZE"]),
        local_world_size=int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])),
        role=env.get("ROLE_NAME", "default_role"),
        restart_count=int(env.get("TORCHELASTIC_RESTART_COUNT", 0)),
        max_restarts=int(env.get("TORCHELASTIC_MAX_RESTARTS", 0)),
        run_id=env.get("TORCHELASTIC_RUN_ID", "none"),
        events=Events.of_run(run_dir) if run_dir else Events(),
    )
