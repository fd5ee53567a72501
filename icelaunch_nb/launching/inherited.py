"""The attributes that a child process inherits: umask, CPU affinity, resource limits, niceness.

Ranks are children of a forkserver that was started long ago. So they inherit what the launching
process had then. These functions carry over what it has at the launch. The cgroup, the user and
the capabilities stay those of the host.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import Any

_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


def capture() -> dict[str, Any]:
    """The attributes that a child of this process's main thread would inherit now, as JSON."""
    found: dict[str, Any] = {
        "umask": _umask(),
        "nice": os.getpriority(os.PRIO_PROCESS, os.getpid()),
    }
    if sys.platform == "linux":
        found["affinity"] = sorted(os.sched_getaffinity(os.getpid()))
    found["limits"] = [[limit, *resource.getrlimit(limit)] for limit in _LIMITS]
    return found


def apply(wanted: dict[str, Any]) -> None:
    """Gives this process the attributes of another, as far as the system allows.

    Args:
        wanted: The result of `capture`; empty: nothing changes.
    """
    if not wanted:
        return
    os.umask(wanted["umask"])
    with contextlib.suppress(OSError):  # only root may lower the niceness
        if os.getpriority(os.PRIO_PROCESS, 0) != wanted["nice"]:
            os.setpriority(os.PRIO_PROCESS, 0, wanted["nice"])
    affinity = set(wanted.get("affinity", ()))
    with contextlib.suppress(OSError):  # a processor may have gone offline
        if affinity and os.sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
    for limit, soft, hard in wanted["limits"]:
        _set_limit(limit, soft, hard)


def _set_limit(limit: int, soft: int, hard: int) -> None:
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
    # Meanwhile, only the owner may read what other threads create.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
