"""Processes, identified by pid and start time, and how those of a run are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

# Seconds by which two start times of one process may differ. Linux counts them in hundredths.
_START_TOLERANCE = 0.005
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
TRACKER = "ice-resources"  # the process name of an agent's resource tracker
_SHM_MANAGER = "torch_shm_manag"  # Linux keeps 15 characters
_TRACKERS_CODE = b"from multiprocessing.resource_tracker import main"
_KILL_TIMEOUT = 1.0  # seconds; a few milliseconds where nothing is wrong
# Seconds beyond that for a resource tracker that is at work, and between two looks whether it is.
_TRACKER_TIMEOUT, _IDLE_INTERVAL = 10.0, 0.02
_EXEC_TIMEOUT = 5.0  # seconds for a process to replace its program


@dataclass(frozen=True)
class Process:
    """A process that can't be mistaken for a later one with the same pid.

    Attributes:
        pid: Its pid.
        started: Its start time in seconds: on Linux since boot, elsewhere since the epoch. Linux
            computes a time since the epoch from a clock that may be set meanwhile. A process of
            many days would then look like another one.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None if there is none."""
        found = _look_up(pid)
        return cls(pid, found[0]) if found else None

    def alive(self) -> bool:
        """Whether the process still runs. A zombie doesn't."""
        found = _look_up(self.pid)
        return found is not None and abs(found[0] - self.started) <= _START_TOLERANCE and found[1]

    def idle_cpu_time(self) -> int | None:
        """The CPU time of all threads so far in nanoseconds, if all of them sleep.

        Returns:
            The time. None if a thread runs or waits for the disk, or if Linux doesn't report it.
        """
        ran = 0
        try:
            for thread in os.listdir(f"/proc/{self.pid}/task"):
                with open(f"/proc/{self.pid}/task/{thread}/schedstat", "rb") as file:
                    ran += int(file.read().split()[0])
                with open(f"/proc/{self.pid}/task/{thread}/stat", "rb") as file:
                    if file.read().rpartition(b")")[2].split()[0] in (b"R", b"D"):
                        return None
        except (OSError, ValueError, IndexError):
            return None
        return ran

    def send(self, signum: int) -> bool:
        """Sends a signal, unless the process has ended. Returns whether it was sent."""
        if not self.alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)
            return True
        return False


def _look_up(pid: int) -> tuple[float, bool] | None:
    """The start time of the process that has this pid, and whether it runs; None if none has it."""
    if sys.platform != "linux":
        import psutil

        try:
            process = psutil.Process(pid)
            return process.create_time(), process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything.
            state, *numbers = file.read().rpartition(b")")[2].split()
        return int(numbers[18]) / _TICKS_PER_SECOND, state not in (b"Z", b"X")
    except (OSError, ValueError, IndexError):
        return None


def _pids() -> list[int]:
    """The pids of all processes."""
    if sys.platform != "linux":
        import psutil

        return psutil.pids()
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def kill_marked(variable: str) -> list[Process]:
    """Kills the user's processes that were started with a variable in their environment.

    A child of a rank that has left the rank's session still has this variable.

    Args:
        variable: ``NAME=value``.

    Returns:
        The processes that it found alive.
    """
    left = []
    for pid in _pids():
        if is_marked(pid, variable) and pid != os.getpid() and (process := Process.of(pid)):
            left.append(process)
    return _kill(left)


def is_marked(pid: int, variable: str) -> bool:
    """Whether a process is the user's and was started with a variable in its environment.

    Args:
        pid: The process.
        variable: ``NAME=value``.

    Returns:
        False also where the system doesn't show the environment.
    """
    with contextlib.suppress(OSError):
        if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
            with open(f"/proc/{pid}/environ", "rb") as file:
                return b"\0" + os.fsencode(variable) + b"\0" in b"\0" + file.read()
    return False


def kill_sessions(leaders: Iterable[Process]) -> list[Process]:
    """Kills what is left of the sessions that ranks led.

    Only descendants of a rank can be in its session, and Linux reuses no pid that is the id of a
    session. So a session belongs to someone else only if a living process has the leader's pid and
    another start time.

    Args:
        leaders: The ranks.

    Returns:
        The processes that it found alive.
    """
    by_pid = {leader.pid: leader for leader in leaders}
    left = []
    for pid in _pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            leader = by_pid.get(os.getsid(pid))
            if leader is None or (
                (now := Process.of(leader.pid))
                and abs(now.started - leader.started) > _START_TOLERANCE
            ):
                continue
            if member := Process.of(pid):
                left.append(member)
    return _kill(left)


def _kill(processes: Iterable[Process]) -> list[Process]:
    """Sends SIGKILL to processes and waits a second at most until they are gone.

    Python's resource trackers free the shared memory of the others once these are gone, and then
    exit. So they are only killed after that second, and once they are idle: on a busy machine, a
    tracker may take longer than that to start. torch's manager of shared memory takes 2 s. It
    isn't killed here, and the host waits for it (`host.escaped_processes`).

    Returns:
        The processes that it found alive.
    """
    found, killed, trackers = [], [], []
    for process in processes:
        if process.alive():
            found.append(process)
            if not (cleaner := shared_memory_cleaner(process)):
                process.send(signal.SIGKILL)
                killed.append(process)
            elif cleaner != _SHM_MANAGER:
                trackers.append(process)
    deadline = time.monotonic() + _KILL_TIMEOUT
    while any(process.alive() for process in (*killed, *trackers)) and time.monotonic() < deadline:
        time.sleep(0.002)
    deadline = time.monotonic() + _TRACKER_TIMEOUT
    for tracker in trackers:
        while tracker.alive() and not _waits(tracker) and time.monotonic() < deadline:
            pass
        tracker.send(signal.SIGKILL)
    return found


def _waits(process: Process) -> bool:
    """Whether all threads of a process sleep, and go on sleeping for a moment."""
    before = process.idle_cpu_time()
    time.sleep(_IDLE_INTERVAL)
    return sys.platform != "linux" or (before is not None and process.idle_cpu_time() == before)


def shared_memory_cleaner(process: Process) -> str:
    """The name of a process that frees shared memory after others' end; empty for any other."""
    command = _command_line(process)
    try:
        with open(f"/proc/{process.pid}/comm") as file:
            name = file.read().rstrip("\n")
    except OSError:
        return ""
    if name in (TRACKER, _SHM_MANAGER):
        return name
    return TRACKER if any(part.startswith(_TRACKERS_CODE) for part in command) else ""


def _command_line(process: Process) -> list[bytes]:
    """The arguments of a process; empty if it is gone, or has none.

    Linux shows no arguments while a process replaces its program (execve). By then a vfork has let
    its parent go on. On a machine with a load of ten, 3 of 90 trackers were seen like this, at
    work and without arguments, after their program had been killed. So this waits for them.
    """
    deadline = time.monotonic() + _EXEC_TIMEOUT
    while True:
        try:
            with open(f"/proc/{process.pid}/cmdline", "rb") as file:
                arguments = file.read()
        except OSError:
            return []
        if arguments or not process.alive() or process.idle_cpu_time() is not None:
            return arguments.split(b"\0")
        if time.monotonic() > deadline:
            return []
        time.sleep(0.001)
