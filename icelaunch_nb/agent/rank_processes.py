"""The ranks of one attempt as processes: started, waited for, ended."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from icelaunch_nb.entry import run_rank
from icelaunch_nb.processes import Process, end_sessions
from icelaunch_nb.tasks import RankTask

# Seconds between the end of the first failing rank and the SIGTERM to the others. Ranks that fail together are a few
# milliseconds apart (forks are 3 ms each); without this pause only the first of them could tell its error.
SETTLE = 0.04
_NOBODY_KNOWS = 255  # what multiprocessing reports for a child whose forkserver is gone
_EXITING = 0.002  # seconds between two looks at a rank that is just about to be gone
_AFTER_KILL = (
    10.0  # seconds that a SIGKILLed rank may take to be gone, before it is called unkillable
)


class SpareRanks:
    """Ranks forked ahead of their task: the first user line of 8 ranks comes after 40 instead of 115 ms.

    Each waits on a pipe of its own and ends when the agent closes it, at the latest with the agent.

    Args:
        count: How many.
        wanted: Where the agent's task will come from; once there is one, no more are started.
    """

    def __init__(self, count: int, wanted: Connection) -> None:
        self._spares: list[tuple[Any, Any, Process]] = []
        context = multiprocessing.get_context("forkserver")
        for _ in range(count):
            if wanted.poll():
                return  # somebody waits already
            theirs, ours = context.Pipe(duplex=False)
            process: Any = context.Process(target=run_rank, args=(theirs,))
            process.start()
            theirs.close()
            identity = Process.of(process.pid)
            if identity is not None:
                self._spares.append((process, ours, identity))

    def take(self, task: RankTask) -> tuple[Any, Process] | None:
        """Gives a spare its task; None where there is none left that lives."""
        while self._spares:
            process, tasks, identity = self._spares.pop(0)
            try:
                tasks.send(task)
                return process, identity
            except OSError:
                continue
            finally:
                tasks.close()
        return None

    def dismiss(self) -> None:
        """Lets those go that nobody took."""
        while self._spares:
            self._spares.pop()[1].close()


class Ranks:
    """The processes of one attempt, by local rank."""

    def __init__(self, tasks: Sequence[RankTask], start_method: str, spares: SpareRanks) -> None:
        self.tasks = list(tasks)
        self._context: Any = multiprocessing.get_context(start_method)
        self._spares = spares
        self._processes: list[Any] = []
        self.identities: dict[int, Process] = {}
        self.ended_by_us: set[int] = set()
        self.ended_at: dict[int, float] = {}
        self.unwatched: set[int] = (
            set()
        )  # ranks whose forkserver was killed, so that nobody can tell their end
        self._codes: dict[int, int] = {}

    def start(self) -> None:
        """Starts them one after the other; the first is at work while the last is forked."""
        for task in self.tasks:
            process, identity = self._spares.take(task) or self._fork(task)
            self._processes.append(process)
            self.identities[task.local_rank] = identity
        self._spares.dismiss()

    def _fork(self, task: RankTask) -> tuple[Any, Process]:
        process = self._context.Process(target=run_rank, args=(task,), name=f"rank {task.rank}")
        process.start()
        return process, Process.of(process.pid) or Process(process.pid, -1.0)

    def _started(self) -> list[tuple[RankTask, Any]]:
        """Tasks with their processes; fewer than all where starting one failed."""
        return list(zip(self.tasks, self._processes, strict=False))

    def pids(self) -> dict[int, int]:
        """Pid by local rank."""
        return {task.local_rank: p.pid for task, p in self._started()}

    def wait(self, timeout: float | None, *others: Any) -> list[Any]:
        """Waits until another rank has ended, one of `others` (pipes) is ready, or `timeout` seconds passed.

        Returns:
            Those of `others` that are ready.
        """
        waiting = {
            p.sentinel: task.local_rank
            for task, p in self._started()
            if task.local_rank not in self.ended_at
        }
        if self._look():
            timeout = 0
        elif len(waiting) < len(self._processes) - len(self._codes):
            # Of a spawned or forked rank, the sentinel closes a moment before its exit code can be had.
            timeout = _EXITING
        ready = multiprocessing.connection.wait([*waiting, *others], timeout)
        for sentinel in ready:
            if sentinel in waiting:
                self.ended_at.setdefault(waiting[sentinel], time.time())
        self._look()
        return [other for other in others if other in ready]

    def _look(self) -> bool:
        """Takes down the exit codes that can be had by now; whether there are new ones."""
        new = False
        for task, process in self._started():
            if task.local_rank not in self._codes and process.exitcode is not None:
                self._codes[task.local_rank] = process.exitcode
                if process.exitcode == _NOBODY_KNOWS and self.identities[task.local_rank].alive():
                    self.unwatched.add(task.local_rank)
                self.ended_at.setdefault(task.local_rank, time.time())
                new = True
        return new

    def exitcodes(self) -> dict[int, int | None]:
        """Exit code by local rank as of the last `wait`; None while it runs, negative for a signal."""
        return {task.local_rank: self._codes.get(task.local_rank) for task, _ in self._started()}

    def settle(self) -> None:
        """Gives ranks that are failing too the moment they need to say why."""
        deadline = time.monotonic() + SETTLE
        while None in self.exitcodes().values() and (left := deadline - time.monotonic()) > 0:
            self.wait(left)

    def end(
        self, patience: float, *, first: int = signal.SIGTERM, hurry: Any = None
    ) -> list[Process]:
        """Ends all of them: `first`, `patience` seconds, SIGKILL, and then whatever they had started.

        Args:
            patience: Seconds to wait between the two signals.
            first: The signal to begin with.
            hurry: A pipe; once it is readable, patience is over.

        Returns:
            Ranks that even SIGKILL did not end within 10 s (uninterruptible sleep).
        """
        self._signal(first)
        self._wait_for_all(patience, hurry)
        self._signal(signal.SIGKILL)
        self._wait_for_all(_AFTER_KILL, None)
        end_sessions(self.identities.values())
        return [identity for identity in self.identities.values() if identity.alive()]

    def _wait_for_all(self, seconds: float, hurry: Any) -> None:
        deadline = time.monotonic() + seconds
        while None in self.exitcodes().values() and (left := deadline - time.monotonic()) > 0:
            if self.wait(left, *([hurry] if hurry is not None else [])):
                return
        # A forkserver that was killed leaves ranks without a sentinel; their pids still tell.
        while (
            any(identity.alive() for identity in self.identities.values())
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)

    def terminate(self, local_ranks: set[int]) -> None:
        """SIGTERM to some of them."""
        self._signal(signal.SIGTERM, local_ranks)

    def _signal(self, signum: int, local_ranks: set[int] | None = None) -> None:
        for task in self.tasks:
            if local_ranks is not None and task.local_rank not in local_ranks:
                continue
            identity = self.identities.get(task.local_rank)
            if identity is not None and identity.send(signum):
                self.ended_by_us.add(task.local_rank)
