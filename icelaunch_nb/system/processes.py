"""Processes that are ours: named by pid and start time, ended politely, then surely."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_SAME = 0.005  # seconds; Linux counts start times in hundredths
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A process that can't be mistaken for a later one with the same pid.

    Attributes:
        pid: Its pid.
        started: When it started: on Linux in seconds since the machine did, elsewhere since the epoch. Linux knows no other: a time
            since the epoch is reckoned by a clock that is set meanwhile, and a run of many days would look like somebody else's.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now, or None."""
        found = _look_up(pid)
        return cls(pid, found[0]) if found else None

    def alive(self) -> bool:
        """Whether it still runs; one that ended but was not reaped yet doesn't."""
        found = _look_up(self.pid)
        return found is not None and abs(found[0] - self.started) <= _SAME and found[1]

    def send(self, signum: int) -> bool:
        """Signals it if it is still the same process; whether it was."""
        if not self.alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)
            return True
        return False


def _look_up(pid: int) -> tuple[float, bool] | None:
    """When the process that has this pid started, and whether it runs; None where there is none."""
    if sys.platform != "linux":
        try:
            process = psutil.Process(pid)
            return process.create_time(), process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything.
            state, *numbers = file.read().rpartition(b")")[2].split()
        return int(numbers[18]) / _TICKS, state not in (b"Z", b"X")
    except (OSError, ValueError, IndexError):
        return None


def end_marked(variable: str) -> list[Process]:
    """SIGKILLs the user's processes that were started with ``NAME=value`` in their environment; returns what it found.

    A rank's child that made itself a session of its own still bears the run's mark.
    """
    mark, left = b"\0" + os.fsencode(variable) + b"\0", []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
                continue
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = mark in b"\0" + file.read()
            if (
                marked
                and pid != os.getpid()
                and (process := Process.of(pid))
                and process.send(signal.SIGKILL)
            ):
                left.append(process)
    return left


def end_sessions(leaders: Iterable[Process]) -> list[Process]:
    """SIGKILLs what is left of the sessions that our ranks led; returns what it found.

    Only descendants of a rank can be in its session, and Linux doesn't give a pid away while a session bears it; so a session
    is somebody else's only where a living process has the leader's pid and another start time.
    """
    by_pid = {leader.pid: leader for leader in leaders}
    left = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            leader = by_pid.get(os.getsid(pid))
            if leader is None or (
                (now := Process.of(leader.pid)) and abs(now.started - leader.started) > _SAME
            ):
                continue
            if (member := Process.of(pid)) and member.send(signal.SIGKILL):
                left.append(member)
    return left
