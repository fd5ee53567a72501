"""The agent's process: it gets its launch, runs one run, and records how that ended."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from torch.distributed.elastic import metrics
from torch.distributed.elastic.agent.server.api import WorkerSpec

from icelaunch_nb.agent import rendezvous
from icelaunch_nb.agent.control import ControlListener
from icelaunch_nb.agent.elastic import IceAgent, Stopped, ask_no_dns, record_no_events
from icelaunch_nb.agent.event_recorder import EventRecorder
from icelaunch_nb.agent.failures import OomKillCounter, is_incurable, make_failure, sort_by_cause
from icelaunch_nb.agent.hang_detector import HangDetector
from icelaunch_nb.agent.rank_processes import PreforkedRanks
from icelaunch_nb.config import LaunchConfig
from icelaunch_nb.errors import group_failures
from icelaunch_nb.launching.launch_environment import enter
from icelaunch_nb.launching.launch_messages import AgentLaunch
from icelaunch_nb.launching.process_targets import do_nothing
from icelaunch_nb.rundir import disk_reserve
from icelaunch_nb.rundir.error_file import RankError, format_error
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import AgentStarted, Ended, FailedRank
from icelaunch_nb.rundir.paths import RankDir, RunDir, make_run_dir
from icelaunch_nb.rundir.run_state import STOPPED_ITSELF, State
from icelaunch_nb.rundir.spec import RunSpec, read_spec, write_spec
from icelaunch_nb.system import cpython
from icelaunch_nb.system.processes import TRACKER, Process, kill_sessions


def main(launches: Connection, preforked_ranks: int) -> NoReturn:
    """Waits for its launch, runs one run, and ends the process.

    The journal's last line says how the run ended. The host starts agents ahead of their launch. An
    agent uses this time to do once what each run does. Then the pages of memory that the fork
    shared are its own before its launch comes. This saves 25 ms until the first rank is forked.

    Args:
        launches: The connection from which the launch comes.
        preforked_ranks: Number of ranks to start ahead of the launch.
    """
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        cpython.share_parents_forkserver()
        # The agent's own tracker frees the shared memory that ranks leave, at the end of the run.
        cpython.start_resource_tracker(TRACKER)
        with contextlib.suppress(Exception):
            _prewarm()
        preforked = PreforkedRanks(preforked_ranks, launches)
        launch = launches.recv()
        launches.close()
        # Until `ControlListener` can act on it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            code = _run_and_record(launch, preforked)
        except OSError as error:
            code = disk_reserve.exit_code_of(error)
            raise
    except EOFError:
        pass  # the host has closed the connection and doesn't need this agent
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    finally:
        # multiprocessing's exit functions would wait for preforked ranks, which wait for this
        # process. `os._exit` skips them.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run_and_record(launch: AgentLaunch, preforked: PreforkedRanks) -> int:
    """Runs the run and records its end in the journal.

    Returns:
        The exit code.

    Raises:
        OSError: The directory is gone or the disk is full, so nothing can be recorded there. The
            agent's exit code informs the host then.
    """
    run_dir = RunDir(Path(launch.run_dir))
    journal = _open_journal(run_dir)
    # In a thread, since it may take a file system a millisecond.
    reserving = threading.Thread(
        target=_reserve_disk, args=(run_dir, journal), name="icelaunch-reserve", daemon=True
    )
    reserving.start()
    try:
        end = _run(launch, run_dir, journal, preforked)
    except BaseException as error:
        traceback.print_exc()
        end = Ended(state="FAILED", note=f"the agent failed: {type(error).__name__}: {error}")
    reserving.join()
    _write_end(run_dir, journal, end)
    journal.release()
    return 0 if end.state == State.SUCCEEDED else 1


def _write_end(run_dir: RunDir, journal: JournalWriter, end: Ended) -> None:
    """Removes the files that only an active run needs, and writes the journal's last line.

    So the directory doesn't change after that line. The files are unlinked but kept open. Linux
    frees their space at the end of this process, since that takes 20 ms for a pickled call of
    256 MB, and the end of the run shouldn't wait for it. If the disk is full, the space is freed at
    once.
    """
    paths = (run_dir.call, run_dir.disk_reserve)
    open_fds = [fd for path in paths if (fd := disk_reserve.unlink_keep_open(path)) is not None]
    try:
        journal.write(end)
    except OSError:
        for fd in open_fds:
            os.close(fd)
        journal.write(end)


def _reserve_disk(run_dir: RunDir, journal: JournalWriter) -> None:
    journal.reserve()
    disk_reserve.create(run_dir.disk_reserve)


def _open_journal(run_dir: RunDir) -> JournalWriter:
    """Opens the journal and writes the agent's identity into it, before anything can go wrong.

    It also has stdout and stderr write into agent.log.
    """
    log = run_dir.open(run_dir.agent_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for fd in (1, 2):
        os.dup2(log, fd)
    journal = JournalWriter(run_dir.journal)
    me = Process.of(os.getpid())
    journal.write(AgentStarted(pid=os.getpid(), started=me.started if me else 0))
    return journal


def _prewarm() -> None:
    """Makes a rendezvous, a process and a run directory once, and removes them."""
    _log_to_stderr()
    ask_no_dns()
    record_no_events()
    logging.disable(logging.CRITICAL)
    try:
        handler = rendezvous.EmbeddedRendezvous("prewarm", 10)
        handler.next_rendezvous().store.set("key", "value")
        handler.shutdown()
        Process.of(os.getpid())
        process = multiprocessing.get_context("forkserver").Process(target=do_nothing)
        process.start()
        multiprocessing.connection.wait([process.sentinel])
        process.join()
        process.close()
        # In multiprocessing's directory, so that the host removes it if this process is killed.
        with tempfile.TemporaryDirectory(dir=multiprocessing.util.get_temp_dir()) as folder:
            run_dir = make_run_dir(folder, "prewarm")
            Board().move_to(run_dir.board)
            write_spec(
                run_dir,
                RunSpec(
                    run_id="prewarm",
                    name="",
                    time=0.0,
                    config=LaunchConfig(1, 1, 1, log_dir=folder),
                ),
            )
            read_spec(run_dir)
            Board(run_dir.board)
            with JournalWriter(run_dir.journal) as journal:
                journal.write(AgentStarted(pid=os.getpid(), started=0))
            _prewarm_a_failure(run_dir.rank(0, 0))
    finally:
        logging.disable(logging.NOTSET)


def _prewarm_a_failure(rank_dir: RankDir) -> None:
    rank_dir.path.mkdir(parents=True)
    rank_dir.error.write_bytes(
        format_error(RankError(kind="raised", type_name="", message="", traceback="", time=0.0), "")
    )
    failure = make_failure(
        0, 0, 0, os.getpid(), 1, 0.0, rank_dir, OomKillCounter().describe(), False
    )
    group_failures(sort_by_cause([failure]))
    is_incurable(rank_dir)
    FailedRank.of(failure).to_json()
    Process(os.getpid(), 0.0).idle_cpu_time()
    kill_sessions(())


def _run(
    launch: AgentLaunch, run_dir: RunDir, journal: JournalWriter, preforked: PreforkedRanks
) -> Ended:
    """Runs torch's agent and the threads that serve it. Returns how the run ended."""
    spec = read_spec(run_dir)
    if spec.config.start_method != "forkserver":
        preforked.dismiss()
    # With a single agent, torch can compute the ranks' numbers without the store.
    single = {} if spec.config.rdzv_endpoint else {"TORCH_ELASTIC_WORKER_IDENTICAL": "1"}
    enter(launch.environment, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **single})
    _log_to_stderr()
    ask_no_dns()
    record_no_events()
    _configure_metrics(spec.config.metrics_cfg)
    # The only writer: see worker/killed_with_agent.py.
    agent_alive_fd = os.open(run_dir.agent_alive, os.O_RDWR | os.O_CLOEXEC)
    board = _open_board(run_dir)
    recorder = EventRecorder(run_dir, board, journal)
    hang_detector = HangDetector(run_dir, board, recorder, spec.hang_after)
    parent = multiprocessing.parent_process()
    control = ControlListener(
        run_dir,
        board,
        journal,
        recorder,
        hang_detector,
        None if launch.detach or parent is None else parent.sentinel,
    )
    control.start()
    worker_spec = WorkerSpec(
        role=spec.config.role,
        local_world_size=spec.nproc_per_node,
        entrypoint=spec.name,
        rdzv_handler=rendezvous.make_handler(spec.config, spec.run_id),
        max_restarts=spec.config.max_restarts,
        # torch sleeps this long before each call of `_monitor_workers`, which waits for the ranks.
        monitor_interval=1e-6,
        local_addr=rendezvous.local_addr(spec.config),
    )
    agent = IceAgent(
        worker_spec,
        run_dir,
        board,
        journal,
        launch.environment,
        spec,
        control,
        close_fds=[agent_alive_fd, *control.fds()],
        preforked=preforked,
        hang_detector=hang_detector,
    )
    try:
        result = agent.run()
    except Stopped:
        return Ended(state="STOPPED", note=control.reason)
    except Exception as error:
        if control.stop_requested():
            return Ended(state="STOPPED", note=control.reason)
        traceback.print_exc()
        return Ended(state="FAILED", note=_explain(error, spec.config))
    finally:
        control.close()
        hang_detector.stop()
        recorder.stop()
        with contextlib.suppress(Exception):
            worker_spec.rdzv_handler.shutdown()
    if not result.is_failed():
        return (
            Ended(state="STOPPED", note=STOPPED_ITSELF)
            if agent.stopped_itself
            else Ended(state="SUCCEEDED")
        )
    not_retried = agent.incurable and spec.sensible_restarts and spec.config.max_restarts
    note = "not retried: a retry can't cure this" if not_retried else ""
    return Ended(state="FAILED", note=note)


def _open_board(run_dir: RunDir) -> Board:
    """Opens the run's board.

    If the file is gone or damaged, this is a board in memory that no other process sees. The run
    goes on, but can't be paused.
    """
    try:
        return Board(run_dir.board)
    except (OSError, ValueError):
        traceback.print_exc()
        return Board()


def _explain(error: Exception, config: LaunchConfig) -> str:
    """Describes an error outside the ranks, since torch's rendezvous errors say little."""
    message = f"{type(error).__name__}: {error}".rstrip(": ")
    if not config.rdzv_endpoint:
        return message
    nodes = (
        f"{config.min_nodes}"
        if config.min_nodes == config.max_nodes
        else f"{config.min_nodes} to {config.max_nodes}"
    )
    return (
        f"the rendezvous of {nodes} nodes at {config.rdzv_endpoint} ({config.rdzv_backend}, "
        f"timeout {config.rdzv_configs['timeout']} s) failed: {message}"
    )


def _log_to_stderr() -> None:
    """Has torch's loggers write into agent.log with a plain formatter.

    torch's own formatter imports ``torch._dynamo`` for the first logged exception, which takes 2 to
    3.7 s.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, level = logging.getLogger("torch"), os.environ.get("LOGLEVEL", "INFO")
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch")]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        # Checked first, since `setLevel` takes 0.1 ms.
        differs = logging.getLevelName(logger.level) != level
        if differs and name.startswith("torch.distributed.elastic"):
            logger.setLevel(level)
    root.handlers[:] = [handler]


def _configure_metrics(metrics_cfg: dict[str, str]) -> None:
    if metrics_cfg.get("handler") == "console":
        metrics.configure(metrics.ConsoleMetricHandler(), "torchelastic")
    metrics.initialize_metrics(metrics.MetricsConfig(dict(metrics_cfg)))
