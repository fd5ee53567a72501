"""torch's LocalElasticAgent with ranks of our own.

torch decides what elastic means: rendezvous, rank assignment, restarts, membership changes. What is replaced is how ranks are
started, watched and ended:

* torch looks at the ranks every ``monitor_interval`` (30 s by default); here a rank's end wakes the agent.
* torch waits up to 30 s for ranks that can't take SIGTERM after another failed, and reports only the first failure.
* torch takes KeyboardInterrupt and SystemExit in a rank for success and then waits for ever for its value (pytorch#194439).
* torch pickles the arguments of all ranks once per rank; here ranks read one file.

The private names of torch that this overrides or reads are listed in ``TORCH_NAMES``; ``tests/system/test_cpython.py`` checks them.
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
from icelaunch_nb.agent.failures import OomWatch, adopt_reserve, by_cause, failure_of, is_incurable
from icelaunch_nb.agent.hang_detector import HangDetector
from icelaunch_nb.agent.rank_processes import PreforkedRanks, RankProcesses
from icelaunch_nb.errors import Failure, group_failures
from icelaunch_nb.launching.launch_environment import LaunchEnvironment
from icelaunch_nb.launching.messages import RankLaunch
from icelaunch_nb.launching.rank_environment import RankAssignment, breakpoint_environ, rank_environ
from icelaunch_nb.rundir import step_board
from icelaunch_nb.rundir.board import Board
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
_JOINING = 1.0  # seconds within which a rank starts to look for a stop once another one does
PATIENCE = (
    3.0  # seconds between SIGTERM and SIGKILL when ranks are ended because another one failed
)


def ask_no_dns() -> None:
    """torch asks DNS for this machine's full name at every event it records: seconds where no DNS answers."""
    assert callable(_api._get_fq_hostname)
    _api._get_fq_hostname = socket.gethostname


def record_no_events() -> None:
    """torch copies and serialises an event for each rank's start and end, 0.3 ms each, for a handler that drops it."""
    assert callable(_api.record)
    _api.record = lambda event, destination="null": None


class Stopped(Exception):
    """Somebody asked the run to stop; its ranks are gone."""


class IceAgent(LocalElasticAgent):
    """One run's agent.

    Args:
        spec: torch's worker spec; its ``monitor_interval`` must be tiny, the waiting is done here.
        run_dir: The run.
        board: Its flags.
        journal: Where to say what happens.
        environment: The launching process, for the ranks.
        run_spec: What was asked.
        control: Says when to stop.
        close_fds: Descriptors that ranks forked from this process must close.
        preforked: Ranks that were started ahead.
        hang_detector: Looks for ranks that hang.
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
        self._control, self._close_fds, self._preforked, self._hang_detector = (
            control,
            close_fds,
            preforked,
            hang_detector,
        )
        self._ranks: RankProcesses | None = None
        self._attempt = -1
        self._with_result: set[int] = set()  # local ranks of this attempt that ended with a value
        self._cause: Failure | None = None
        self._oom = OomWatch()
        self.failures: list[Failure] = []
        self.incurable = False
        self.stopped_itself = False  # whether loops ended by stop_all_tasks and every rank returned

    # torch calls the following four.

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
                    close_fds=self._close_fds
                    if self._start_method == "fork"
                    else [],  # others have descriptors of their own there
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
        self._end_ranks(0)  # what the ranks had started and left behind
        if not self._run_spec.program and len(self._with_result) < len(
            codes
        ):  # a value couldn't be packed
            return self._failed(worker_group)
        self.stopped_itself = bool(step_board.stopped_ranks(self._run_dir.steps(self._attempt)))
        return RunResult(
            state=WorkerState.SUCCEEDED,
            return_values={w.global_rank: None for w in worker_group.workers},
        )

    # `is_restart` is torch 2.6's, `timeout` that of 2.11 and later.

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

    # Ours.

    def _restart_count(self) -> int:
        return self._worker_group.spec.max_restarts - self._remaining_restarts

    def _returned(self, local_rank: int, code: int) -> bool:
        """Whether a rank that ended has done its work. A program's exit code says so; a function's is no proof."""
        if self._run_spec.program:
            return code == 0
        if local_rank in self._with_result:
            return True
        rank_dir = self._run_dir.rank(self._attempt, local_rank)
        if not rank_dir.result.exists():
            adopt_reserve(rank_dir)
            return code == 0 and rank_dir.error.exists()
        if code == 0:
            self._with_result.add(local_rank)
        return code == 0

    def _renew_flags(self) -> None:
        """What the attempt before can't keep to any more: nobody is paused, and a checkpoint that was under way is asked for again."""
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
        """Lets ranks that look for a stop return, and ends the others by SIGTERM; all within the grace, and SIGKILL after it."""
        assert self._ranks is not None
        ranks, grace, board = self._ranks, self._control.grace, self._run_dir.steps(self._attempt)
        deadline = time.monotonic() + grace
        # Where some ranks look for a stop already, the others may be about to.
        deaf_until = min(
            deadline, time.monotonic() + (_JOINING if step_board.listening_ranks(board) else 0)
        )
        told: set[int] = set()
        while (now := time.monotonic()) < deadline:
            codes = ranks.exitcodes()
            running = {rank for rank, code in codes.items() if code is None}
            if not running or any(self._fell(rank, code) for rank, code in codes.items()):
                break
            if now >= deaf_until:
                deaf = running - told - step_board.listening_ranks(board)
                ranks.terminate(deaf)
                told |= deaf
            if ranks.wait(
                (deadline if now >= deaf_until else deaf_until) - now, self._control.kill_fd
            ):
                self._end_ranks(0)
                return
        fell = any(self._fell(rank, code) for rank, code in ranks.exitcodes().items())
        if fell:
            ranks.collect_exits()
        self._end_ranks(
            PATIENCE
            if fell
            else term_patience(grace)
            if step_board.listening_ranks(board) - told
            else 0
        )
        self._end_ranks(0)  # what the ranks had started and left behind
        if fell:
            self._collect_failures(worker_group)

    def _fell(self, local_rank: int, code: int | None) -> bool:
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
            if launch.local_rank not in self._with_result:  # those have removed their reserve
                adopt_reserve(self._run_dir.rank(self._attempt, launch.local_rank))

    def _collect_failures(self, worker_group: WorkerGroup) -> list[Failure]:
        """Collects what every failed rank has to say, and writes it down."""
        assert self._ranks is not None
        codes, pids, oom = self._ranks.exitcodes(), self._ranks.pids(), self._oom.news()
        failures = []
        for worker in worker_group.workers:
            local_rank, rank_dir = (
                worker.local_rank,
                self._run_dir.rank(self._attempt, worker.local_rank),
            )
            code = codes[local_rank]
            ours = local_rank in self._ranks.ended_by_us and local_rank not in self._ranks.unwatched
            if (self._run_spec.program and code == 0) or (
                rank_dir.result.exists() and (code == 0 or ours)
            ):
                continue
            if ours and not rank_dir.error.exists():
                continue
            failures.append(
                failure_of(
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
        self.failures = failures = by_cause(failures)
        self._journal.write(
            RanksFailed(
                attempt=self._attempt, failures=[FailedRank.of(failure) for failure in failures]
            )
        )
        return failures

    def _failed(self, worker_group: WorkerGroup) -> RunResult:
        """Decides whether a retry makes sense, and tells torch."""
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
        known: dict[str, Any] = {  # torch annotates what it fills in later as None
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
