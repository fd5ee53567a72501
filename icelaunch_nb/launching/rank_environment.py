"""The environment variables of a rank: torch elastic's, and ours.

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
    """Which rank a process is. By default it is the only one.

    Attributes:
        master_addr: The host where the ranks' process group meets.
        master_port: Its port.
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
    """The variables that one rank has beside the kernel's.

    Args:
        assignment: Which rank it is.
        spec: The run's spec.
        run_dir: The run directory.
        attempt: The attempt's number.
        environ: The kernel's variables. A network interface that is set there stays.
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
        # Without it, gloo listens on the address that the host name resolves to, and asks DNS.
        if spec.loopback and name not in environ:
            values[name] = spec.loopback
    return {name: str(value) for name, value in values.items()}


def breakpoint_environ(rank_dir: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that make ``breakpoint()`` in a rank call `icelaunch_nb.set_trace`.

    Args:
        rank_dir: The rank's folder.
        environ: The rank's variables. ``PYTHONBREAKPOINT=0`` keeps breakpoints off.
    """
    return {
        RANK_DIR_VARIABLE: str(rank_dir),
        _HOOK_VARIABLE: "0" if environ.get(_HOOK_VARIABLE) == "0" else _HOOK,
    }
