"""What makes a process a rank: torch elastic's environment variables, and ours.

https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icelaunch_nb.context import ATTEMPT_VARIABLE, DEVICE_VARIABLE, RUN_DIR_VARIABLE


@dataclass(frozen=True)
class Place:
    """A rank's place among the others; by default that of an only rank.

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
    place: Place, spec: Mapping[str, Any], run_dir: Path, attempt: int, environ: Mapping[str, str]
) -> dict[str, str]:
    """The variables of one rank, beside those that it has from the kernel.

    Args:
        place: Its place.
        spec: ``spec.json``.
        run_dir: The run directory.
        attempt: Number of the attempt.
        environ: The kernel's variables; some of ours give way to them.
    """
    values: dict[str, Any] = {
        "RANK": place.rank,
        "LOCAL_RANK": place.local_rank,
        "GROUP_RANK": place.group_rank,
        "ROLE_RANK": place.role_rank,
        "ROLE_NAME": spec["config"]["role"],
        "WORLD_SIZE": place.world_size,
        "LOCAL_WORLD_SIZE": place.local_world_size,
        "GROUP_WORLD_SIZE": place.group_world_size,
        "ROLE_WORLD_SIZE": place.role_world_size,
        "MASTER_ADDR": place.master_addr,
        "MASTER_PORT": place.master_port,
        "TORCHELASTIC_RESTART_COUNT": place.restart_count,
        "TORCHELASTIC_MAX_RESTARTS": spec["config"]["max_restarts"],
        "TORCHELASTIC_RUN_ID": spec["run_id"],
        "TORCHELASTIC_USE_AGENT_STORE": place.use_agent_store,
        DEVICE_VARIABLE: spec["devices"][place.local_rank],
        RUN_DIR_VARIABLE: run_dir,
        ATTEMPT_VARIABLE: attempt,
    }
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        # Without it gloo listens on whatever address the host name resolves to, and asks DNS for it.
        if spec["loopback"] and name not in environ:
            values[name] = spec["loopback"]
    return {name: str(value) for name, value in values.items()}
