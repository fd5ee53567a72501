"""What a child process inherits from its parent without being told: umask, CPU affinity, limits, niceness.

Ranks are children of a forkserver that was started long ago, so they inherit what the launching process had then. These functions
carry over what it has at the launch. The cgroup, the user and the capabilities stay those of the host.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import Any

_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


def here() -> dict[str, Any]:
    """What a child of this process's main thread would inherit now, as JSON can carry it."""
    found: dict[str, Any] = {
        "umask": _umask(),
        "nice": os.getpriority(os.PRIO_PROCESS, os.getpid()),
    }
    if sys.platform == "linux":
        found["affinity"] = sorted(os.sched_getaffinity(os.getpid()))
    found["limits"] = [[limit, *resource.getrlimit(limit)] for limit in _LIMITS]
    return found


def apply(wanted: dict[str, Any]) -> None:
    """Gives this process what `here` found elsewhere, as far as the system allows it.

    Args:
        wanted: The answer of `here`.
    """
    if not wanted:
        return
    os.umask(wanted["umask"])
    with contextlib.suppress(OSError):  # only root may make a process less nice
        if os.getpriority(os.PRIO_PROCESS, 0) != wanted["nice"]:
            os.setpriority(os.PRIO_PROCESS, 0, wanted["nice"])
    affinity = set(wanted.get("affinity", ()))
    with contextlib.suppress(OSError):  # processors that went away
        if affinity and os.sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
    for limit, soft, hard in wanted["limits"]:
        _limit(limit, soft, hard)


def _limit(limit: int, soft: int, hard: int) -> None:
    now = resource.getrlimit(limit)
    if now == (soft, hard):
        return
    try:
        resource.setrlimit(limit, (soft, hard))
    except (OSError, ValueError):  # only root may raise a hard limit
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (_lower(soft, now[1]), _lower(hard, now[1])))


def _lower(one: int, other: int) -> int:
    bounded = [value for value in (one, other) if value != resource.RLIM_INFINITY]
    return min(bounded, default=resource.RLIM_INFINITY)


def _umask() -> int:
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return int(line[6:], 8)
    except OSError:
        pass
    mask = os.umask(0o077)  # a moment in which files of other threads are their owner's alone
    os.umask(mask)
    return mask
