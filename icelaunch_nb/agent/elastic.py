"""torch's LocalElasticAgent with ranks of our own.

torch decides what elastic means: rendezvous, rank assignment, restarts, membership changes. What is replaced is how ranks are
started, watched and ended:

* torch looks at the ranks every ``monitor_interval`` (30 s by default); here a rank's end wakes the agent.
* torch waits up to 30 s for ranks that can't take SIGTERM after another failed, and reports only the first failure.
* torch takes KeyboardInterrupt and SystemExit in a rank for success and then waits for ever for its value (pytorch#194439).
* torch pickles the arguments of all ranks once per rank; here ranks read one file.

The private names of torch that this overrides or reads are listed in ``TORCH_NAMES``; ``tests/test_doors.py`` checks them.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
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

from icelaunch_nb import breakpoints, steps
from icelaunch_nb.agent.failures import OomWatch, by_cause, failure_of, is_incurable
from icelaunch_nb.agent.hangs import HangWatch
from icelaunch_nb.agent.ranks import Ranks, SpareRanks
from icelaunch_nb.agent.wishes import Wishes, term_patience
from icelaunch_nb.errors import Failure, fold
from icelaunch_nb.events import Events
from icelaunch_nb.journal import JournalWriter
from icelaunch_nb.rankenv import Place, rank_environ
from icelaunch_nb.rundir import RunDir
from icelaunch_nb.surroundings import Surroundings
from icelaunch_nb.tasks import RankTask

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


class Stopped(Exception):
    """Somebody wished the run to stop; its ranks are gone."""


class IceAgent(LocalElasticAgent):
    """One run's agent.

    Args:
        spec: torch's worker spec; its ``monitor_interval`` must be tiny, the waiting is done here.
        run_dir: The run.
        journal: Where to say what happens.
        surroundings: The launching process, for the ranks.
        settings: ``spec.json``.
        wishes: What the kernel wishes.
        close_fds: Descriptors that ranks forked from this process must close.
        spares: Ranks that were started ahead.
        hangs: Looks for ranks that hang; None: nobody does.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        run_dir: RunDir,
        journal: JournalWriter,
        surroundings: Surroundings,
        settings: dict[str, Any],
        wishes: Wishes,
        close_fds: list[int],
        spares: SpareRanks,
        hangs: HangWatch | None = None,
    ) -> None:
        super().__init__(
            spec,
            DefaultLogsSpecs(log_dir="/dev/null"),
            start_method=settings["config"]["start_method"],
        )
        self._run_dir, self._journal, self._surroundings, self._settings = (
            run_dir,
            journal,
            surroundings,
            settings,
        )
        self._wishes, self._close_fds, self._spares, self._hangs = wishes, close_fds, spares, hangs
        self._interval: float = settings["config"]["monitor_interval"]
        self._ranks: Ranks | None = None
        self._attempt = -1
        self._cause: dict[str, Any] | None = None
        self._oom = OomWatch()
        self.failures: list[Failure] = []
        self.incurable = False
        self.stopped_itself = False  # whether loops ended by stop_all_tasks and every rank returned

    # torch calls the following four.

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._attempt += 1
        if self._attempt:
            self._renew_events()
            self._journal.write(
                "restart",
                attempt=self._attempt,
                **(self._cause or {"cause": "other nodes came or went"}),
            )
        self._cause = None
        environs = {
            worker.local_rank: self._rank_environ(worker_group, worker)
            for worker in worker_group.workers
        }
        self._setup_local_watchdog(envs=environs)
        self._setup_healthcheck()
        tasks = []
        for worker in worker_group.workers:
            local_rank = worker.local_rank
            rank_dir = self._run_dir.rank(self._attempt, local_rank)
            for folder in (rank_dir.path.parent, rank_dir.path):
                folder.mkdir(exist_ok=True, mode=0o700)
            for log in (rank_dir.stdout, rank_dir.stderr):
                log.touch(0o600)
            program = macros.substitute(list(self._settings["program"]), str(local_rank))
            environs[local_rank]["TORCHELASTIC_ERROR_FILE"] = str(rank_dir.error)
            environs[local_rank] |= breakpoints.variables(
                str(rank_dir.path), self._surroundings.environ
            )
            tasks.append(
                RankTask(
                    run_dir=str(self._run_dir.path),
                    attempt=self._attempt,
                    local_rank=local_rank,
                    rank=worker.global_rank,
                    surroundings=self._surroundings,
                    rank_environ=environs[local_rank],
                    program=[str(part) for part in program],
                    threads=self._settings["threads"],
                    device=self._settings["devices"][local_rank],
                    set_device=self._settings["set_device"],
                    post_mortem=self._settings["post_mortem"],
                    close_fds=self._close_fds
                    if self._start_method == "fork"
                    else [],  # others have descriptors of their own there
                )
            )
        self._ranks = Ranks(tasks, self._start_method, self._spares)
        self._ranks.start()
        entries = [
            {
                "rank": task.rank,
                "local_rank": task.local_rank,
                "pid": self._ranks.identities[task.local_rank].pid,
                "started": self._ranks.identities[task.local_rank].started,
                "device": task.device,
            }
            for task in tasks
        ]
        self._journal.write(
            "attempt",
            attempt=self._attempt,
            restart_count=self._restart_count(),
            world_size=worker_group.workers[0].world_size,
            ranks=entries,
        )
        if self._hangs is not None:
            self._hangs.follow({"attempt": self._attempt, "ranks": entries})
        return self._ranks.pids()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        assert self._ranks is not None
        if self._ranks.wait(self._interval, self._wishes.bell):
            self._stop_gracefully(worker_group)
            raise Stopped
        ranks, codes = self._ranks, self._ranks.exitcodes()
        failed = [
            rank
            for rank, code in codes.items()
            if code is not None and not self._returned(rank, code)
        ]
        if failed:
            ranks.settle()
            self._end_ranks(PATIENCE)
            return self._failed(worker_group)
        if None in codes.values():
            return RunResult(state=WorkerState.HEALTHY)
        self._end_ranks(0)  # what the ranks had started and left behind
        unpacked = [
            rank
            for rank in codes
            if not self._settings["program"]
            and not self._run_dir.rank(self._attempt, rank).result.exists()
        ]
        if unpacked:
            return self._failed(worker_group)
        self.stopped_itself = bool(steps.stopped(self._run_dir.steps(self._attempt)))
        return RunResult(
            state=WorkerState.SUCCEEDED,
            return_values={w.global_rank: None for w in worker_group.workers},
        )

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._end_ranks(PATIENCE)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        for helper in (self._worker_watchdog, self._health_check_server):
            if helper is not None:
                helper.stop()
        self._worker_watchdog = self._health_check_server = None
        if self._ranks is not None:
            self._end_ranks(self._wishes.grace if self._wishes.bell_rang() else PATIENCE)

    # Ours.

    def _restart_count(self) -> int:
        return self._worker_group.spec.max_restarts - self._remaining_restarts

    def _returned(self, local_rank: int, code: int) -> bool:
        """Whether a rank that ended has done its work. A program's exit code says so; a function's is no proof."""
        if self._settings["program"]:
            return code == 0
        rank_dir = self._run_dir.rank(self._attempt, local_rank)
        return code == 0 and (rank_dir.result.exists() or rank_dir.error.exists())

    def _renew_events(self) -> None:
        """What the attempt before can't keep to any more: nobody is paused, and a checkpoint that was under way is asked for again."""
        with contextlib.suppress(OSError, ValueError):
            events = Events.of_run(self._run_dir.path)
            for flag in (events.paused, events.debugger_start):
                flag.clear()
            if steps.unfinished_checkpoint(self._run_dir.steps(self._attempt - 1)):
                events.trigger_save_checkpoint.set()

    def _stop_gracefully(self, worker_group: WorkerGroup) -> None:
        """Lets ranks that look for a stop return, and ends the others by SIGTERM; all within the grace, and SIGKILL after it."""
        assert self._ranks is not None
        ranks, grace, board = self._ranks, self._wishes.grace, self._run_dir.steps(self._attempt)
        deadline = time.monotonic() + grace
        # Where some ranks look for a stop already, the others may be about to.
        deaf_until = min(deadline, time.monotonic() + (_JOINING if steps.listening(board) else 0))
        told: set[int] = set()
        while (now := time.monotonic()) < deadline:
            codes = ranks.exitcodes()
            running = {rank for rank, code in codes.items() if code is None}
            if not running or any(self._fell(rank, code) for rank, code in codes.items()):
                break
            if now >= deaf_until:
                deaf = running - told - steps.listening(board)
                ranks.terminate(deaf)
                told |= deaf
            if ranks.wait(
                (deadline if now >= deaf_until else deaf_until) - now, self._wishes.hurry
            ):
                self._end_ranks(0)
                return
        fell = any(self._fell(rank, code) for rank, code in ranks.exitcodes().items())
        if fell:
            ranks.settle()
        self._end_ranks(
            PATIENCE if fell else term_patience(grace) if steps.listening(board) - told else 0
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
        for process in self._ranks.end(patience, hurry=self._wishes.hurry):
            self._journal.write("unkillable", pid=process.pid)

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
            if (self._settings["program"] and code == 0) or (
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
            "failure", attempt=self._attempt, failures=[failure.to_json() for failure in failures]
        )
        return failures

    def _failed(self, worker_group: WorkerGroup) -> RunResult:
        """Decides whether a retry makes sense, and tells torch."""
        failures = self._collect_failures(worker_group)
        root = failures[0]
        self.incurable = all(
            is_incurable(self._run_dir.rank(self._attempt, f.local_rank)) for f in fold(failures)[0]
        )
        if self.incurable and self._settings["sensible_restarts"]:
            self._remaining_restarts = 0
        self._cause = {"rank": root.rank, "cause": root.title, "failed_at": root.time}
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
        spec, environ = group.spec, self._surroundings.environ
        known: dict[str, Any] = {  # torch annotates what it fills in later as None
            "master_addr": group.master_addr,
            "master_port": group.master_port,
            "group_rank": group.group_rank,
            "group_world_size": group.group_world_size,
        }
        place = Place(
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
        values = rank_environ(place, self._settings, self._run_dir.path, self._attempt, environ)
        values["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = environ.get(
            "TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"
        )
        if self._settings["program"]:
            values["PYTHONUNBUFFERED"] = environ.get("PYTHONUNBUFFERED", "1")
        if self._settings["threads"] is not None:
            values["OMP_NUM_THREADS"] = str(self._settings["threads"])
        return values
