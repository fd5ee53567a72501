"""Ends the processes that ranks leave behind, even those that hide.

A rank's child may leave the rank's session and change its environment. Then it carries no mark of
its run any more. But it can't leave its ancestors: when a process ends, Linux gives its children to
the nearest ancestor that is a subreaper, and the host is one. So each child of the host outside the
host's own session comes from a rank or an agent.

The open files and the environment of such a process may show its run. Otherwise it may belong to
any run that was under way when it started, and it ends with the last of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from icelaunch_nb.rundir.journal import read_events
from icelaunch_nb.rundir.journal_events import AttemptStarted
from icelaunch_nb.rundir.paths import RUN_DIR_VARIABLE, RunDir
from icelaunch_nb.system.processes import Process, shared_memory_cleaner

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
_CLOCK_TICK = 0.02  # seconds; start times are counted in hundredths
# Seconds for a process to free shared memory. torch's shared memory manager ends after 2.
_CLEANUP_TIMEOUT = 4.0


@dataclass(frozen=True)
class ActiveRun:
    """A run that is under way.

    Attributes:
        run_dir: The run's directory.
        since: When the run began, on the clock of `Process.started`.
        agent: Pid of the agent. None before it has started.
    """

    run_dir: str
    since: float
    agent: int | None = None


class EscapedProcesses:
    """The orphans that this process has received. There are none on systems other than Linux."""

    def __init__(self) -> None:
        self._is_subreaper = (
            sys.platform == "linux" and ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0) == 0
        )
        self._ended: set[str] = set()
        self._cleanup_deadlines: dict[Process, float] = {}

    def add_ended(self, run_dir: str) -> None:
        """Notes that a run has ended."""
        self._ended.add(run_dir)

    def kill(self, active_runs: Iterable[ActiveRun]) -> bool:
        """Kills the orphans that belong to no active run, and reaps those that have ended.

        A process that frees shared memory is given 4 s before it is killed.

        Args:
            active_runs: The runs that are under way.

        Returns:
            Whether some orphans have to be checked again.
        """
        again = False
        for pid in _children() if self._is_subreaper else ():
            process = self._find_orphan(pid)
            if process is None or (
                any(self._may_belong_to(process, run) for run in active_runs)
                and not self._belongs_to_ended(process, active_runs)
            ):
                continue
            again = True
            if shared_memory_cleaner(
                process
            ) and time.monotonic() < self._cleanup_deadlines.setdefault(
                process, time.monotonic() + _CLEANUP_TIMEOUT
            ):
                continue
            process.send(signal.SIGKILL)
        self._cleanup_deadlines = {
            process: until for process, until in self._cleanup_deadlines.items() if process.alive()
        }
        return again

    @staticmethod
    def _find_orphan(pid: int) -> Process | None:
        """The child's process, if it lives and the host didn't start it. Reaps an ended child."""
        try:
            if os.getsid(pid) == os.getsid(0):
                return None
            process = Process.of(pid)
            if process is not None and process.alive():
                return process
            os.waitpid(pid, os.WNOHANG)
        except (ProcessLookupError, ChildProcessError, PermissionError):
            pass
        return None

    def _belongs_to_ended(self, process: Process, active_runs: Iterable[ActiveRun]) -> bool:
        """Whether a process shows the directory of an ended run, and of no active one."""
        candidates = _candidate_run_dirs(process.pid)
        return bool(candidates & self._ended) and not candidates & {
            run.run_dir for run in active_runs
        }

    @staticmethod
    def _may_belong_to(process: Process, run: ActiveRun) -> bool:
        if process.started >= run.since - _CLOCK_TICK or process.pid == run.agent:
            return True
        # A rank may be forked ahead of its run. It comes here if its forkserver was killed.
        with contextlib.suppress(OSError):
            events, _ = read_events(RunDir(Path(run.run_dir)).journal, 0)
            ranks = {
                entry.pid
                for event in events
                if isinstance(event, AttemptStarted)
                for entry in event.ranks
            }
            return os.getsid(process.pid) in ranks
        return False


def process_clock() -> float:
    """The current time on the clock of `Process.started`, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.time()


def _candidate_run_dirs(pid: int) -> set[str]:
    """All directories above a process's open files, and the run directory in its environment."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found |= {
                    str(parent) for parent in Path(os.readlink(f"/proc/{pid}/fd/{name}")).parents
                }
    with contextlib.suppress(OSError):
        mark = RUN_DIR_VARIABLE.encode() + b"="
        with open(f"/proc/{pid}/environ", "rb") as file:
            found |= {
                os.fsdecode(entry[len(mark) :])
                for entry in file.read().split(b"\0")
                if entry.startswith(mark)
            }
    return found


def _children() -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:  # a thread that has ended, or a Linux without these lists
        return [child.pid for child in psutil.Process().children()]
    return found
