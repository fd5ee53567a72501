"""Starts the ranks of an attempt, waits for them, and ends them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import selectors
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from icelaunch_nb.launching import process_targets
from icelaunch_nb.launching.launch_messages import RankLaunch
from icelaunch_nb.rundir.paths import RankDir, RunDir
from icelaunch_nb.system.files import open_private
from icelaunch_nb.system.processes import Process, kill_sessions

# Seconds at most between the end of the first failing rank and the SIGTERM to the others. Ranks
# that fail together end a few milliseconds apart, since each fork takes 3 ms. Without this pause
# only the first of them could report its error.
_COLLECT_TIMEOUT = 0.04
# Seconds between two checks whether the others use the CPU. If none of them does for three checks,
# none is about to fail.
_COLLECT_POLL_INTERVAL = 0.004
_UNKNOWN_EXIT_CODE = 255  # what multiprocessing reports for a child whose forkserver is gone
_EXIT_POLL_INTERVAL = 0.002  # seconds between two checks of a rank whose sentinel has closed
# Seconds after an attempt's start, and more for each rank, until ranks for the next attempt are
# forked. The attempt's own ranks have the machine to themselves until then.
_PREFORK_DELAY = 0.1
_PREFORK_DELAY_PER_RANK = 0.01
_MAX_PREFORKED = 64  # each holds about 8 MB
_KILL_TIMEOUT = 10.0  # seconds that a rank may take to end after SIGKILL


class PreforkedRanks:
    """Ranks that are forked ahead of their launch.

    With them, the first user line of 8 ranks runs after 40 instead of 115 ms. Each rank waits on a
    pipe of its own. It ends when the agent closes the pipe, at the latest with the agent.

    Args:
        count: Number of ranks to start.
        agent_launches: The connection from which the agent's launch will come. Once the launch is
            there, no more ranks are started.
    """

    def __init__(self, count: int, agent_launches: Connection) -> None:
        self._ranks: list[tuple[Any, Any, Process]] = []
        self._lock = threading.Lock()
        self._later: threading.Timer | None = None
        for _ in range(count):
            if agent_launches.poll():
                return
            self._add()

    def _add(self) -> None:
        context = multiprocessing.get_context("forkserver")
        theirs, ours = context.Pipe(duplex=False)
        process: Any = context.Process(
            target=process_targets.run, args=(process_targets.RANK, theirs)
        )
        process.start()
        theirs.close()
        identity = Process.of(process.pid)
        if identity is not None:
            self._ranks.append((process, ours, identity))

    def add_soon(self, count: int) -> None:
        """Starts ranks for the next attempt in a thread, after the ranks of this one have started.

        Args:
            count: Number of ranks to start.
        """
        count = min(count, _MAX_PREFORKED)
        delay = _PREFORK_DELAY + _PREFORK_DELAY_PER_RANK * count
        self._later = threading.Timer(delay, self._add_for_later, (count,))
        self._later.daemon = True
        self._later.start()

    def _add_for_later(self, count: int) -> None:
        me = threading.current_thread()
        for _ in range(count):
            with self._lock:
                if self._later is not me:
                    return
                try:
                    self._add()
                # The working directory or the forkserver is gone. `RankProcesses` starts the ranks
                # that are missing here.
                except (OSError, EOFError):
                    return

    def start(self, launch: RankLaunch) -> tuple[Any, Process] | None:
        """Sends a launch to one of the ranks.

        Returns:
            The rank's multiprocessing process and its identity. None if no rank is left.
        """
        with self._lock:
            while self._ranks:
                process, launches, identity = self._ranks.pop(0)
                try:
                    launches.send(launch)
                    return process, identity
                except OSError:
                    continue
                finally:
                    launches.close()
        return None

    def dismiss(self) -> None:
        """Ends the ranks that got no launch."""
        if self._later is not None:
            self._later.cancel()
        with self._lock:
            self._later = None
            while self._ranks:
                self._ranks.pop()[1].close()


@contextlib.contextmanager
def _streams_of(rank_dir: RankDir) -> Iterator[None]:
    """Has a child that starts meanwhile write into the rank's logs from its beginning.

    A spawned child may fail before it runs any code of ours: at an import, where a file beside the
    notebook hides the module.
    """
    saved = [os.dup(fd) for fd in (1, 2)]
    try:
        for fd, path in ((1, rank_dir.stdout), (2, rank_dir.stderr)):
            with contextlib.suppress(OSError):
                log = open_private(path, os.O_WRONLY | os.O_APPEND)
                os.dup2(log, fd)
                os.close(log)
        yield
    finally:
        for fd, old in zip((1, 2), saved, strict=True):
            os.dup2(old, fd)
            os.close(old)


class RankProcesses:
    """The processes of one attempt, by local rank.

    Args:
        launches: What each rank does.
        start_method: multiprocessing's start method.
        preforked: Ranks that were started ahead.

    Attributes:
        launches: What each rank does.
        identities: The processes that have been started.
        ended_by_us: Ranks that got a signal from here.
        ended_at: When each rank's end was noticed, in seconds since the epoch.
        unwatched: Ranks whose forkserver was killed, so that nobody reports their end.
    """

    def __init__(
        self, launches: Sequence[RankLaunch], start_method: str, preforked: PreforkedRanks
    ) -> None:
        self.launches = list(launches)
        self._context: Any = multiprocessing.get_context(start_method)
        self._preforked = preforked
        self._processes: dict[int, Any] = {}
        # A forkserver writes the exit code into the sentinel. With other start methods a rank's
        # child may hold the sentinel open, so exit codes are polled.
        self._exit_code_in_sentinel = start_method == "forkserver"
        # One selector for all waits, since it would cost too much to register all of many ranks
        # again at each rank's end.
        self._selector: Any = (
            selectors.PollSelector()
            if hasattr(selectors, "PollSelector")
            else selectors.SelectSelector()
        )
        self.identities: dict[int, Process] = {}
        self.ended_by_us: set[int] = set()
        self.ended_at: dict[int, float] = {}
        self.unwatched: set[int] = set()
        self._codes: dict[int, int] = {}
        # Ranks whose sentinel has closed and whose exit code isn't known yet.
        self._exiting: set[int] = set()

    def start(self) -> None:
        """Starts the ranks one after the other. The first one runs while the last one is forked."""
        for launch in self.launches:
            process, identity = self._preforked.start(launch) or self._fork(launch)
            self._processes[launch.local_rank] = process
            self.identities[launch.local_rank] = identity
            self._selector.register(process.sentinel, selectors.EVENT_READ, launch.local_rank)
        self._preforked.dismiss()

    def _fork(self, launch: RankLaunch) -> tuple[Any, Process]:
        process = self._context.Process(
            target=process_targets.run,
            args=(process_targets.RANK, launch),
            name=f"rank {launch.rank}",
        )
        try:
            os.getcwd()
        except FileNotFoundError:  # it was removed since the launch, and multiprocessing needs one
            os.chdir(os.path.sep)
        with _streams_of(RunDir(Path(launch.run_dir)).rank(launch.attempt, launch.local_rank)):
            process.start()
        return process, Process.of(process.pid) or Process(process.pid, -1.0)

    def pids(self) -> dict[int, int]:
        """Pid by local rank. Some ranks are missing if one of them could not be started."""
        return {local_rank: process.pid for local_rank, process in self._processes.items()}

    def wait(self, timeout: float | None, *others: Any) -> list[Any]:
        """Waits until another rank has ended or one of `others` is ready.

        Args:
            timeout: Seconds to wait at most. None: no limit.
            others: Descriptors of pipes.

        Returns:
            The descriptors among `others` that are ready.
        """
        if self._poll_exits():
            timeout = 0
        elif self._exiting:
            # The sentinel of a spawned or forked rank closes just before its exit code is known.
            timeout = _EXIT_POLL_INTERVAL
        for other in others:
            self._selector.register(other, selectors.EVENT_READ)
        try:
            ready = [key for key, _ in self._selector.select(timeout)]
        finally:
            for other in others:
                self._selector.unregister(other)
        for key in ready:
            if key.data is not None:
                self.ended_at.setdefault(key.data, time.time())
                self._exiting.add(key.data)
                self._selector.unregister(key.fd)
        self._poll_exits()
        return [key.fileobj for key in ready if key.data is None]

    def _poll_exits(self) -> bool:
        """Records the exit codes that are known by now. Returns whether there are new ones."""
        new = False
        for local_rank in (
            list(self._exiting)
            if self._exit_code_in_sentinel
            else self._processes.keys() - self._codes.keys()
        ):
            process = self._processes[local_rank]
            code = process.exitcode
            if code is not None:
                self._codes[local_rank] = code
                self._exiting.discard(local_rank)
                with contextlib.suppress(KeyError):
                    self._selector.unregister(process.sentinel)
                if code == _UNKNOWN_EXIT_CODE and self.identities[local_rank].alive():
                    self.unwatched.add(local_rank)
                self.ended_at.setdefault(local_rank, time.time())
                new = True
        return new

    def exitcodes(self) -> dict[int, int | None]:
        """Exit code by local rank at the last `wait`. None: it runs. Negative: a signal."""
        return {local_rank: self._codes.get(local_rank) for local_rank in self._processes}

    def collect_exits(self) -> None:
        """Waits for ranks that are about to fail too, so that they can report why.

        It waits for 40 ms at most, and no longer than one of the other ranks uses the CPU.
        """
        deadline, cpu_times = time.monotonic() + _COLLECT_TIMEOUT, [self._idle_cpu_times()]
        while None in self.exitcodes().values() and (left := deadline - time.monotonic()) > 0:
            ended = len(self._codes)
            self.wait(min(left, _COLLECT_POLL_INTERVAL))
            newest = self._idle_cpu_times()
            cpu_times = [newest] if len(self._codes) > ended else [*cpu_times[-2:], newest]
            if cpu_times[0] is not None and cpu_times[0] == newest and len(cpu_times) == 3:
                return

    def _idle_cpu_times(self) -> list[int] | None:
        """The CPU time of each rank that hasn't ended, in ns. None if one of them isn't idle."""
        found = []
        for local_rank, code in self.exitcodes().items():
            if code is None:
                cpu_time = self.identities[local_rank].idle_cpu_time()
                if cpu_time is None:
                    return None
                found.append(cpu_time)
        return found

    def end(
        self, patience: float, *, first: int = signal.SIGTERM, kill_fd: int | None = None
    ) -> list[Process]:
        """Ends all ranks by two signals, and then kills the processes that they have started.

        Args:
            patience: Seconds to wait between the first signal and SIGKILL.
            first: The first signal.
            kill_fd: A descriptor. Once it is readable, SIGKILL follows at once.

        Returns:
            Ranks that SIGKILL did not end within 10 s, since they are in uninterruptible sleep.
        """
        self._signal(first)
        self._wait_for_all(patience, kill_fd)
        self._signal(signal.SIGKILL)
        self._wait_for_all(_KILL_TIMEOUT, None)
        kill_sessions(self.identities.values())
        return [identity for identity in self._possibly_alive() if identity.alive()]

    def _possibly_alive(self) -> list[Process]:
        """All ranks but those whose exit code is known."""
        return [
            identity
            for local_rank, identity in self.identities.items()
            if local_rank not in self._codes or local_rank in self.unwatched
        ]

    def _wait_for_all(self, seconds: float, kill_fd: int | None) -> None:
        deadline = time.monotonic() + seconds
        while None in self.exitcodes().values() and (left := deadline - time.monotonic()) > 0:
            if self.wait(left, *([kill_fd] if kill_fd is not None else [])):
                return
        # A forkserver that was killed leaves ranks without a sentinel. So their pids are polled.
        while (
            any(identity.alive() for identity in self._possibly_alive())
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)

    def terminate(self, local_ranks: set[int]) -> None:
        """Sends SIGTERM to some of the ranks."""
        self._signal(signal.SIGTERM, local_ranks)

    def _signal(self, signum: int, local_ranks: set[int] | None = None) -> None:
        for launch in self.launches:
            if local_ranks is not None and launch.local_rank not in local_ranks:
                continue
            if launch.local_rank in self._codes and launch.local_rank not in self.unwatched:
                continue
            identity = self.identities.get(launch.local_rank)
            if identity is not None and identity.send(signum):
                self.ended_by_us.add(launch.local_rank)
