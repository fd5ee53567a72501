"""Processes that are ours: named by pid and start time, ended politely, then surely."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass

import psutil


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
            return abs(process.create_time() - self.started) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
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


def end_sessions(leaders: set[int]) -> list[Process]:
    """SIGKILLs what is left of the sessions that our ranks led; returns what it found.

    Only descendants of a rank can be in its session, and Linux doesn't give a pid away while a session bears it.
    """
    left = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) in leaders and (member := Process.of(pid)) and member.send(signal.SIGKILL):
                left.append(member)
    return left
