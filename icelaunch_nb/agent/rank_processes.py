"""The ranks of one attempt as processes: started, waited for, ended."""

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
from icelaunch_nb.launching.messages import RankLaunch
from icelaunch_nb.rundir.paths import RankDir, RunDir
from icelaunch_nb.system.files import open_private
from icelaunch_nb.system.processes import Process, kill_sessions

# Seconds at most between the end of the first failing rank and the SIGTERM to the others. Ranks that fail together are a few
# milliseconds apart (forks are 3 ms each); without this pause only the first of them could tell its error.
_COLLECTING = 0.04
_POLL = 0.004  # seconds between two looks whether the others are at work; who slept at three of them isn't about to fail
_NOBODY_KNOWS = 255  # what multiprocessing reports for a child whose forkserver is gone
_EXITING = 0.002  # seconds between two looks at a rank that is just about to be gone
_QUIET = 0.1  # seconds after an attempt's start, and 10 ms a rank, in which its ranks have the machine for themselves
_PER_RANK = 0.01
_MOST_SPARES = 64  # each holds about 8 MB
_AFTER_KILL = (
    10.0  # seconds that a SIGKILLed rank may take to be gone, before it is called unkillable
)


class PreforkedRanks:
    """Ranks forked ahead of their launch: the first user line of 8 ranks comes after 40 instead of 115 ms.

    Each waits on a pipe of its own and ends when the agent closes it, at the latest with the agent.

    Args:
        count: How many.
        wanted: Where the agent's launch will come from; once there is one, no more are started.
    """

    def __init__(self, count: int, wanted: Connection) -> None:
        self._spares: list[tuple[Any, Any, Process]] = []
        self._lock = threading.Lock()
        self._later: threading.Timer | None = None
        for _ in range(count):
            if wanted.poll():
                return  # somebody waits already
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
            self._spares.append((process, ours, identity))

    def add_soon(self, count: int) -> None:
        """Starts so many for the next attempt, in a thread, once the ranks of this one have had a moment to start."""
        count = min(count, _MOST_SPARES)
        self._later = threading.Timer(_QUIET + _PER_RANK * count, self._add_for_later, (count,))
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
                except (
                    OSError,
                    EOFError,
                ):  # a working directory or a forkserver that is gone: who needs them starts ranks as it can
                    return

    def take(self, launch: RankLaunch) -> tuple[Any, Process] | None:
        """Gives a spare its launch; None where there is none left that lives."""
        with self._lock:
            while self._spares:
                process, launches, identity = self._spares.pop(0)
                try:
                    launches.send(launch)
                    return process, identity
                except OSError:
                    continue
                finally:
                    launches.close()
        return None

    def dismiss(self) -> None:
        """Lets those go that nobody took."""
        if self._later is not None:
            self._later.cancel()
        with self._lock:
            self._later = None
            while self._spares:
                self._spares.pop()[1].close()


@contextlib.contextmanager
def _streams_of(rank_dir: RankDir) -> Iterator[None]:
    """Has a child that is started now write to the rank's logs from its first moment on.

    A spawned one can fail before any line of ours runs: at an import that a file beside the notebook stands in for.
    """
    kept = [os.dup(fd) for fd in (1, 2)]
    try:
        for fd, path in ((1, rank_dir.stdout), (2, rank_dir.stderr)):
            with contextlib.suppress(OSError):
                log = open_private(path, os.O_WRONLY | os.O_APPEND)
                os.dup2(log, fd)
                os.close(log)
        yield
    finally:
        for fd, old in zip((1, 2), kept, strict=True):
            os.dup2(old, fd)
            os.close(old)


class RankProcesses:
    """The processes of one attempt, by local rank."""

    def __init__(
        self, launches: Sequence[RankLaunch], start_method: str, preforked: PreforkedRanks
    ) -> None:
        self.launches = list(launches)
        self._context: Any = multiprocessing.get_context(start_method)
        self._preforked = preforked
        self._processes: dict[int, Any] = {}
        # A forkserver writes the exit code into the sentinel; of others the code has to be looked for: a child of theirs may hold it open.
        self._sentinels_tell = start_method == "forkserver"
        # Kept from one wait to the next: registering all of many ranks at each rank's end would add up.
        self._selector: Any = (
            selectors.PollSelector()
            if hasattr(selectors, "PollSelector")
            else selectors.SelectSelector()
        )
        self.identities: dict[int, Process] = {}
        self.ended_by_us: set[int] = set()
        self.ended_at: dict[int, float] = {}
        self.unwatched: set[int] = (
            set()
        )  # ranks whose forkserver was killed, so that nobody can tell their end
        self._codes: dict[int, int] = {}
        self._exiting: set[int] = (
            set()
        )  # ranks whose sentinel was seen closing and whose exit code isn't known yet

    def start(self) -> None:
        """Starts them one after the other; the first is at work while the last is forked."""
        for launch in self.launches:
            process, identity = self._preforked.take(launch) or self._fork(launch)
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
        except FileNotFoundError:  # removed since the launch; multiprocessing needs one
            os.chdir(os.path.sep)
        with _streams_of(RunDir(Path(launch.run_dir)).rank(launch.attempt, launch.local_rank)):
            process.start()
        return process, Process.of(process.pid) or Process(process.pid, -1.0)

    def pids(self) -> dict[int, int]:
        """Pid by local rank; fewer than all where starting one failed."""
        return {local_rank: process.pid for local_rank, process in self._processes.items()}

    def wait(self, timeout: float | None, *others: Any) -> list[Any]:
        """Waits until another rank has ended, one of `others` (pipes) is ready, or `timeout` seconds passed.

        Returns:
            Those of `others` that are ready.
        """
        if self._poll_exits():
            timeout = 0
        elif self._exiting:
            # Of a spawned or forked rank, the sentinel closes a moment before its exit code can be had.
            timeout = _EXITING
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
        """Takes down the exit codes that can be had by now; whether there are new ones."""
        new = False
        for local_rank in (
            list(self._exiting)
            if self._sentinels_tell
            else self._processes.keys() - self._codes.keys()
        ):
            process = self._processes[local_rank]
            code = process.exitcode
            if code is not None:
                self._codes[local_rank] = code
                self._exiting.discard(local_rank)
                with contextlib.suppress(KeyError):
                    self._selector.unregister(process.sentinel)
                if code == _NOBODY_KNOWS and self.identities[local_rank].alive():
                    self.unwatched.add(local_rank)
                self.ended_at.setdefault(local_rank, time.time())
                new = True
        return new

    def exitcodes(self) -> dict[int, int | None]:
        """Exit code by local rank as of the last `wait`; None while it runs, negative for a signal."""
        return {local_rank: self._codes.get(local_rank) for local_rank in self._processes}

    def collect_exits(self) -> None:
        """Gives ranks that are failing too the moment they need to say why: as long as one of the others is at work."""
        deadline, looks = time.monotonic() + _COLLECTING, [self._ran()]
        while None in self.exitcodes().values() and (left := deadline - time.monotonic()) > 0:
            ended = len(self._codes)
            self.wait(min(left, _POLL))
            looks = [self._ran()] if len(self._codes) > ended else [*looks[-2:], self._ran()]
            if looks[0] is not None and looks[0] == looks[-1] and len(looks) == 3:
                return

    def _ran(self) -> list[int] | None:
        """How long each rank that hasn't ended has run, where all of them sleep; None: one is at work."""
        found = []
        for local_rank, code in self.exitcodes().items():
            if code is None:
                ran = self.identities[local_rank].idle_cpu_time()
                if ran is None:
                    return None
                found.append(ran)
        return found

    def end(
        self, patience: float, *, first: int = signal.SIGTERM, kill_fd: int | None = None
    ) -> list[Process]:
        """Ends all of them: `first`, `patience` seconds, SIGKILL, and then whatever they had started.

        Args:
            patience: Seconds to wait between the two signals.
            first: The signal to begin with.
            kill_fd: Once it is readable, patience is over.

        Returns:
            Ranks that even SIGKILL did not end within 10 s (uninterruptible sleep).
        """
        self._signal(first)
        self._wait_for_all(patience, kill_fd)
        self._signal(signal.SIGKILL)
        self._wait_for_all(_AFTER_KILL, None)
        kill_sessions(self.identities.values())
        return [identity for identity in self._perhaps_alive() if identity.alive()]

    def _perhaps_alive(self) -> list[Process]:
        """All but those whose exit code is known."""
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
        # A forkserver that was killed leaves ranks without a sentinel; their pids still tell.
        while (
            any(identity.alive() for identity in self._perhaps_alive())
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)

    def terminate(self, local_ranks: set[int]) -> None:
        """SIGTERM to some of them."""
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
