"""What makes a process a rank: torch elastic's environment variables, and ours.

https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icelaunch_nb.rundir.paths import RUN_DIR_VARIABLE
from icelaunch_nb.rundir.spec import RunSpec

DEVICE_VARIABLE = "ICELAUNCH_DEVICE"
ATTEMPT_VARIABLE = "ICELAUNCH_ATTEMPT"
RANK_DIR_VARIABLE = "ICELAUNCH_RANK_DIR"
_HOOK_VARIABLE, _HOOK = "PYTHONBREAKPOINT", "icelaunch_nb.set_trace"


@dataclass(frozen=True)
class RankAssignment:
    """Which rank a process is among the others; by default the only one.

    Attributes:
        master_addr: Where the ranks' process group meets.
        master_port: And its port.
        restart_count: How often the ranks were restarted.
        use_agent_store: Whether the agent's store serves the process group, too.
    """

    master_addr: str
    master_port: int
    rank: int = 0
    local_rank: int = 0
    group_rank: int = 0
    role_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    group_world_size: int = 1
    role_world_size: int = 1
    restart_count: int = 0
    use_agent_store: bool = False


def rank_environ(
    assignment: RankAssignment,
    spec: RunSpec,
    run_dir: Path,
    attempt: int,
    environ: Mapping[str, str],
) -> dict[str, str]:
    """The variables of one rank, beside those that it has from the kernel.

    Args:
        assignment: Which rank it is.
        spec: What was asked.
        run_dir: The run directory.
        attempt: Number of the attempt.
        environ: The kernel's variables; some of ours give way to them.
    """
    values: dict[str, Any] = {
        "RANK": assignment.rank,
        "LOCAL_RANK": assignment.local_rank,
        "GROUP_RANK": assignment.group_rank,
        "ROLE_RANK": assignment.role_rank,
        "ROLE_NAME": spec.config.role,
        "WORLD_SIZE": assignment.world_size,
        "LOCAL_WORLD_SIZE": assignment.local_world_size,
        "GROUP_WORLD_SIZE": assignment.group_world_size,
        "ROLE_WORLD_SIZE": assignment.role_world_size,
        "MASTER_ADDR": assignment.master_addr,
        "MASTER_PORT": assignment.master_port,
        "TORCHELASTIC_RESTART_COUNT": assignment.restart_count,
        "TORCHELASTIC_MAX_RESTARTS": spec.config.max_restarts,
        "TORCHELASTIC_RUN_ID": spec.run_id,
        "TORCHELASTIC_USE_AGENT_STORE": assignment.use_agent_store,
        DEVICE_VARIABLE: spec.devices[assignment.local_rank],
        RUN_DIR_VARIABLE: run_dir,
        ATTEMPT_VARIABLE: attempt,
    }
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        # Without it gloo listens on whatever address the host name resolves to, and asks DNS for it.
        if spec.loopback and name not in environ:
            values[name] = spec.loopback
    return {name: str(value) for name, value in values.items()}


def breakpoint_environ(rank_dir: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that bring ``breakpoint()`` in a rank to `icelaunch_nb.set_trace`.

    Args:
        rank_dir: The rank's folder.
        environ: The rank's variables; a user who switched breakpoints off (``PYTHONBREAKPOINT=0``) keeps them off.
    """
    return {
        RANK_DIR_VARIABLE: str(rank_dir),
        _HOOK_VARIABLE: "0" if environ.get(_HOOK_VARIABLE) == "0" else _HOOK,
    }
