"""Processes that are ours: named by pid and start time, ended politely, then surely."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_SAME = 0.05  # seconds; Linux counts start times in hundredths


@dataclass(frozen=True)
class Process:
    """A process that can't be mistaken for a later one with the same pid.

    Attributes:
        pid: Its pid.
        started: When it started, in seconds since the epoch (`psutil.Process.create_time`).
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now, or None."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def alive(self) -> bool:
        """Whether it still runs; one that ended but was not reaped yet doesn't."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) <= _SAME and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def send(self, signum: int) -> bool:
        """Signals it if it is still the same process; whether it was."""
        if not self.alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)
            return True
        return False


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
            if marked and pid != os.getpid() and (process := Process.of(pid)) and process.send(signal.SIGKILL):
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
            if leader is None or ((now := Process.of(leader.pid)) and abs(now.started - leader.started) > _SAME):
                continue
            if (member := Process.of(pid)) and member.send(signal.SIGKILL):
                left.append(member)
    return left
