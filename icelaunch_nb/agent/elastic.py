"""torch's LocalElasticAgent, with our own way to start, watch and end ranks.

torch decides about rendezvous, rank assignment, restarts and membership changes. `IceAgent` differs
from it in these ways:

* torch checks the ranks every ``monitor_interval``, 30 s by default. Here a rank's end wakes the
  agent.
* After a failure, torch waits up to 30 s for ranks that ignore SIGTERM, and it reports only the
  first failure. Here they get 3 s, and every failure is reported.
* torch treats KeyboardInterrupt and SystemExit in a rank as success, and then waits for ever for
  its value (pytorch#194439).
* torch pickles the arguments of all ranks once per rank. Here all ranks read one file.

``TORCH_NAMES`` lists the private names of torch that this module overrides or reads.
``tests/system/test_cpython.py`` checks them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server import api as _api
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.utils import macros

from icelaunch_nb.agent.control import ControlListener, term_patience
from icelaunch_nb.agent.failures import (
    OomKillCounter,
    convert_reserve,
    is_incurable,
    make_failure,
    sort_by_cause,
)
from icelaunch_nb.agent.hang_detector import HangDetector
from icelaunch_nb.agent.rank_processes import PreforkedRanks, RankProcesses
from icelaunch_nb.errors import Failure, group_failures
from icelaunch_nb.launching.launch_environment import LaunchEnvironment
from icelaunch_nb.launching.launch_messages import RankLaunch
from icelaunch_nb.launching.rank_environment import RankAssignment, breakpoint_environ, rank_environ
from icelaunch_nb.rundir import step_board
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import (
    AttemptStarted,
    FailedRank,
    RankEntry,
    RanksFailed,
    RankUnkillable,
    Restarted,
)
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.spec import RunSpec

TORCH_NAMES = (
    "_start_workers",
    "_stop_workers",
    "_monitor_workers",
    "_shutdown",
    "_remaining_restarts",
    "_worker_group",
    "_setup_local_watchdog",
    "_setup_healthcheck",
    "_worker_watchdog",
    "_health_check_server",
)
# Seconds after a stop within which every rank listens for stops, if one of them does. A rank
# listens if its code checks for stops by itself.
_LISTEN_DELAY = 1.0
# Seconds between SIGTERM and SIGKILL for ranks that are ended because another one failed.
PATIENCE = 3.0


def ask_no_dns() -> None:
    """Keeps torch from asking DNS for this machine's full name.

    torch does so at every event that it records. It takes seconds where no DNS answers.
    """
    assert callable(_api._get_fq_hostname)
    _api._get_fq_hostname = socket.gethostname


def record_no_events() -> None:
    """Keeps torch from recording events.

    torch copies and serialises an event for each rank's start and end, 0.3 ms each, for a handler
    that drops it.
    """
    assert callable(_api.record)
    _api.record = lambda event, destination="null": None


class Stopped(Exception):
    """The run was asked to stop, and its ranks are gone."""


class IceAgent(LocalElasticAgent):
    """The agent of one run.

    Args:
        spec: torch's worker spec. Its ``monitor_interval`` must be tiny, since `_monitor_workers`
            waits by itself.
        run_dir: The run.
        board: Its flags.
        journal: Where the attempts and failures are recorded.
        environment: The launching process, for the ranks.
        run_spec: The run as it was asked for.
        control: Its `stop_fd` is readable when the run shall stop.
        close_fds: Descriptors that ranks forked from this process must close.
        preforked: Ranks that were started ahead.
        hang_detector: Watches the ranks of each attempt.

    Attributes:
        failures: The failures of the newest attempt, the likely cause first.
        incurable: Whether a retry can't help.
        stopped_itself: Whether loops ended by ``stop_all_tasks`` and every rank returned.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        run_dir: RunDir,
        board: Board,
        journal: JournalWriter,
        environment: LaunchEnvironment,
        run_spec: RunSpec,
        control: ControlListener,
        close_fds: list[int],
        preforked: PreforkedRanks,
        hang_detector: HangDetector,
    ) -> None:
        super().__init__(
            spec, DefaultLogsSpecs(log_dir="/dev/null"), start_method=run_spec.config.start_method
        )
        self._run_dir, self._board, self._journal = run_dir, board, journal
        self._environment, self._run_spec = environment, run_spec
        self._control, self._close_fds = control, close_fds
        self._preforked, self._hang_detector = preforked, hang_detector
        self._ranks: RankProcesses | None = None
        self._attempt = -1
        # Local ranks of this attempt that ended and left a value.
        self._with_result: set[int] = set()
        self._cause: Failure | None = None
        self._oom_kills = OomKillCounter()
        self.failures: list[Failure] = []
        self.incurable = False
        self.stopped_itself = False

    # torch calls the following four methods.

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._attempt += 1
        self._with_result = set()
        if self._attempt:
            self._renew_flags()
            self._journal.write(self._restarted())
        self._cause = None
        environs = {
            worker.local_rank: self._rank_environ(worker_group, worker)
            for worker in worker_group.workers
        }
        self._setup_local_watchdog(envs=environs)
        self._setup_healthcheck()
        launches = []
        _make_folder(self._run_dir.attempt(self._attempt))
        if len(worker_group.workers) > 1:
            step_board.make_board(self._run_dir.steps(self._attempt))
        for worker in worker_group.workers:
            local_rank = worker.local_rank
            rank_dir = self._run_dir.rank(self._attempt, local_rank)
            _make_folder(rank_dir.path)
            program = macros.substitute(list(self._run_spec.program), str(local_rank))
            environs[local_rank]["TORCHELASTIC_ERROR_FILE"] = str(rank_dir.error)
            environs[local_rank] |= breakpoint_environ(rank_dir.path, self._environment.environ)
            launches.append(
                RankLaunch(
                    run_dir=str(self._run_dir.path),
                    attempt=self._attempt,
                    local_rank=local_rank,
                    rank=worker.global_rank,
                    environment=self._environment,
                    rank_environ=environs[local_rank],
                    program=[str(part) for part in program],
                    threads=self._run_spec.threads,
                    device=self._run_spec.devices[local_rank],
                    set_device=self._run_spec.set_device,
                    post_mortem=self._run_spec.post_mortem,
                    # Only a forked rank has the agent's descriptors at these numbers.
                    close_fds=self._close_fds if self._start_method == "fork" else [],
                )
            )
        self._ranks = ranks = RankProcesses(launches, self._start_method, self._preforked)
        ranks.start()
        attempt = AttemptStarted(
            attempt=self._attempt,
            restart_count=self._restart_count(),
            world_size=worker_group.workers[0].world_size,
            ranks=[
                RankEntry(
                    rank=launch.rank,
                    local_rank=launch.local_rank,
                    pid=ranks.identities[launch.local_rank].pid,
                    started=ranks.identities[launch.local_rank].started,
                    device=launch.device,
                )
                for launch in launches
            ],
        )
        self._journal.write(attempt)
        if self._remaining_restarts > 0 and self._start_method == "forkserver":
            self._preforked.add_soon(len(launches))
        self._hang_detector.watch(attempt)
        return ranks.pids()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        assert self._ranks is not None
        if self._ranks.wait(self._run_spec.config.monitor_interval, self._control.stop_fd):
            self._stop_gracefully(worker_group)
            raise Stopped
        ranks, codes = self._ranks, self._ranks.exitcodes()
        failed = [
            rank
            for rank, code in codes.items()
            if code is not None and not self._returned(rank, code)
        ]
        if failed:
            ranks.collect_exits()
            self._end_ranks(PATIENCE)
            return self._failed(worker_group)
        if None in codes.values():
            return RunResult(state=WorkerState.HEALTHY)
        self._end_ranks(0)  # ends what the ranks have started and left behind
        # A rank whose value can't be pickled has an error file in place of its result.
        if not self._run_spec.program and len(self._with_result) < len(codes):
            return self._failed(worker_group)
        self.stopped_itself = bool(step_board.stopped_ranks(self._run_dir.steps(self._attempt)))
        return RunResult(
            state=WorkerState.SUCCEEDED,
            return_values={w.global_rank: None for w in worker_group.workers},
        )

    # torch 2.6 passes `is_restart`, torch 2.11 and later pass `timeout`.

    def _stop_workers(self, worker_group: WorkerGroup, is_restart: bool = False) -> None:
        self._end_ranks(PATIENCE)

    def _shutdown(
        self,
        death_sig: signal.Signals = signal.SIGTERM,
        timeout: int = 30,
        is_restart: bool = False,
    ) -> None:
        for helper in (self._worker_watchdog, self._health_check_server):
            if helper is not None:
                helper.stop()
        self._worker_watchdog = self._health_check_server = None
        if self._ranks is not None:
            self._end_ranks(self._control.grace if self._control.stop_requested() else PATIENCE)

    # The following methods are ours.

    def _restart_count(self) -> int:
        return self._worker_group.spec.max_restarts - self._remaining_restarts

    def _returned(self, local_rank: int, code: int) -> bool:
        """Whether a rank that ended has returned.

        The exit code shows that for a program. A function must have left a result as well, or an
        error file that says why there is none.
        """
        if self._run_spec.program:
            return code == 0
        if local_rank in self._with_result:
            return True
        rank_dir = self._run_dir.rank(self._attempt, local_rank)
        if not rank_dir.result.exists():
            convert_reserve(rank_dir)
            return code == 0 and rank_dir.error.exists()
        if code == 0:
            self._with_result.add(local_rank)
        return code == 0

    def _renew_flags(self) -> None:
        """Clears the flags that the last attempt's ranks had set, since these are gone.

        A checkpoint that not all of them had saved is requested again.
        """
        self._board.clear("paused")
        self._board.clear("debugger_start")
        with contextlib.suppress(OSError, ValueError):
            if step_board.unfinished_checkpoint(self._run_dir.steps(self._attempt - 1)):
                self._board.set("trigger_save_checkpoint")

    def _restarted(self) -> Restarted:
        cause = self._cause
        if cause is None:
            return Restarted(attempt=self._attempt, cause="other nodes came or went")
        return Restarted(
            attempt=self._attempt, cause=cause.title, rank=cause.rank, failed_at=cause.time
        )

    def _stop_gracefully(self, worker_group: WorkerGroup) -> None:
        """Lets ranks that listen for stops return, and sends SIGTERM to the others.

        SIGKILL ends the ranks that are left after the grace. If one of them listens, they get
        SIGTERM and `term_patience` first.
        """
        assert self._ranks is not None
        ranks, grace, board = self._ranks, self._control.grace, self._run_dir.steps(self._attempt)
        deadline = time.monotonic() + grace
        # If some ranks listen for stops already, the others may be about to.
        terminate_at = min(
            deadline, time.monotonic() + (_LISTEN_DELAY if step_board.listening_ranks(board) else 0)
        )
        terminated: set[int] = set()
        while (now := time.monotonic()) < deadline:
            codes = ranks.exitcodes()
            running = {rank for rank, code in codes.items() if code is None}
            if not running or any(self._has_failed(rank, code) for rank, code in codes.items()):
                break
            if now >= terminate_at:
                not_listening = running - terminated - step_board.listening_ranks(board)
                ranks.terminate(not_listening)
                terminated |= not_listening
            next_step = deadline if now >= terminate_at else terminate_at
            if ranks.wait(next_step - now, self._control.kill_fd):
                self._end_ranks(0)
                return
        failed = any(self._has_failed(rank, code) for rank, code in ranks.exitcodes().items())
        if failed:
            ranks.collect_exits()
            patience = PATIENCE
        else:
            not_terminated = step_board.listening_ranks(board) - terminated
            patience = term_patience(grace) if not_terminated else 0
        self._end_ranks(patience)
        self._end_ranks(0)  # ends what the ranks have started and left behind
        if failed:
            self._collect_failures(worker_group)

    def _has_failed(self, local_rank: int, code: int | None) -> bool:
        """Whether a rank ended in failure by itself."""
        assert self._ranks is not None
        return (
            code is not None
            and local_rank not in self._ranks.ended_by_us
            and not self._returned(local_rank, code)
        )

    def _end_ranks(self, patience: float) -> None:
        assert self._ranks is not None
        for process in self._ranks.end(patience, kill_fd=self._control.kill_fd):
            self._journal.write(RankUnkillable(pid=process.pid, started=process.started))
        for launch in self._ranks.launches:
            if launch.local_rank not in self._with_result:  # these have no reserve any more
                convert_reserve(self._run_dir.rank(self._attempt, launch.local_rank))

    def _collect_failures(self, worker_group: WorkerGroup) -> list[Failure]:
        """Makes a `Failure` of each failed rank, and records them all."""
        assert self._ranks is not None
        codes, pids, oom = self._ranks.exitcodes(), self._ranks.pids(), self._oom_kills.describe()
        failures = []
        for worker in worker_group.workers:
            local_rank = worker.local_rank
            rank_dir = self._run_dir.rank(self._attempt, local_rank)
            code = codes[local_rank]
            ended_by_us = (
                local_rank in self._ranks.ended_by_us and local_rank not in self._ranks.unwatched
            )
            if (self._run_spec.program and code == 0) or (
                rank_dir.result.exists() and (code == 0 or ended_by_us)
            ):
                continue
            if ended_by_us and not rank_dir.error.exists():
                continue
            failures.append(
                make_failure(
                    worker.global_rank,
                    local_rank,
                    self._attempt,
                    pids[local_rank],
                    code,
                    self._ranks.ended_at.get(local_rank, time.time()),
                    rank_dir,
                    oom,
                    local_rank in self._ranks.unwatched,
                )
            )
        self.failures = failures = sort_by_cause(failures)
        self._journal.write(
            RanksFailed(
                attempt=self._attempt, failures=[FailedRank.of(failure) for failure in failures]
            )
        )
        return failures

    def _failed(self, worker_group: WorkerGroup) -> RunResult:
        """Collects the failures, and decides whether torch may retry.

        Returns:
            The failures, for torch.
        """
        failures = self._collect_failures(worker_group)
        root = failures[0]
        self.incurable = all(
            is_incurable(self._run_dir.rank(self._attempt, f.local_rank))
            for f in group_failures(failures)[0]
        )
        if self.incurable and self._run_spec.sensible_restarts:
            self._remaining_restarts = 0
        self._cause = root
        return RunResult(
            state=WorkerState.FAILED,
            failures={
                failure.rank: ProcessFailure(
                    local_rank=failure.local_rank,
                    pid=failure.pid,
                    exitcode=failure.exitcode or 0,
                    error_file=str(self._run_dir.rank(self._attempt, failure.local_rank).error),
                )
                for failure in failures
            },
        )

    def _rank_environ(self, group: WorkerGroup, worker: Any) -> dict[str, str]:
        spec, environ = group.spec, self._environment.environ
        known: dict[str, Any] = {  # torch fills these in later and annotates them as None
            "master_addr": group.master_addr,
            "master_port": group.master_port,
            "group_rank": group.group_rank,
            "group_world_size": group.group_world_size,
        }
        assignment = RankAssignment(
            **known,
            rank=worker.global_rank,
            local_rank=worker.local_rank,
            role_rank=worker.role_rank,
            world_size=worker.world_size,
            local_world_size=spec.local_world_size,
            role_world_size=worker.role_world_size,
            restart_count=self._restart_count(),
            use_agent_store=spec.rdzv_handler.use_agent_store,
        )
        values = rank_environ(
            assignment, self._run_spec, self._run_dir.path, self._attempt, environ
        )
        values["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = environ.get(
            "TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"
        )
        if self._run_spec.program:
            values["PYTHONUNBUFFERED"] = environ.get("PYTHONUNBUFFERED", "1")
        if self._run_spec.threads is not None:
            values["OMP_NUM_THREADS"] = str(self._run_spec.threads)
        return values


def _make_folder(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
