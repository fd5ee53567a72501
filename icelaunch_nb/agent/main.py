"""An agent from its first line to its last."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed.elastic import metrics
from torch.distributed.elastic.agent.server.api import WorkerSpec

from icelaunch_nb import cpython
from icelaunch_nb.agent import rendezvous
from icelaunch_nb.agent.elastic import IceAgent, Stopped, ask_no_dns
from icelaunch_nb.agent.hangs import HangWatch
from icelaunch_nb.agent.ranks import SpareRanks
from icelaunch_nb.agent.timekeeper import Timekeeper
from icelaunch_nb.agent.wishes import Wishes
from icelaunch_nb.config import LaunchConfig
from icelaunch_nb.disk import BALLAST, take_on_ballast, unname
from icelaunch_nb.entry import nothing
from icelaunch_nb.events import Events
from icelaunch_nb.journal import JournalWriter
from icelaunch_nb.processes import Process
from icelaunch_nb.rundir import RunDir
from icelaunch_nb.story import STOPPED_ITSELF
from icelaunch_nb.surroundings import enter
from icelaunch_nb.tasks import AgentTask


def main(tasks: Connection, spare_ranks: int) -> NoReturn:
    """Waits for its task, runs one run and ends the process; the journal's last line says how it ended.

    The host starts agents ahead of time. This one uses that time: what it will do anyway is done once for practice, so that the
    pages that the fork shared are its own by the time somebody waits for it (25 ms less until the first rank is forked).
    """
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        cpython.share_parents_forkserver()
        with contextlib.suppress(Exception):
            _rehearse()
        spares = SpareRanks(spare_ranks, tasks)
        task = tasks.recv()
        tasks.close()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until `Wishes` can grant it
        code = _live(task, spares)
    except EOFError:
        pass  # nobody needs it
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    finally:
        # Never by way of multiprocessing's exit functions: they would wait for spare ranks, which wait for this process.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _live(task: AgentTask, spares: SpareRanks) -> int:
    """Runs the run; the exit code.

    Raises:
        OSError: The directory is gone or the disk is full, so that nothing can be said there; the host and the kernel say so.
    """
    run_dir = RunDir(Path(task.run_dir))
    journal = _introduce(run_dir)
    # In a thread: a file system may take a millisecond for it.
    setting_aside = threading.Thread(
        target=_set_space_aside, args=(run_dir, journal), name="icelaunch-space", daemon=True
    )
    setting_aside.start()
    try:
        state, facts = _run(task, run_dir, journal, spares)
    except BaseException as error:
        traceback.print_exc()
        state, facts = "FAILED", {"note": f"the agent failed: {type(error).__name__}: {error}"}
    setting_aside.join()
    _tell_the_end(run_dir, journal, state, facts)
    journal.release()
    return 0 if state == "SUCCEEDED" else 1


def _tell_the_end(
    run_dir: RunDir, journal: JournalWriter, state: str, facts: Mapping[str, Any]
) -> None:
    """Writes the journal's last line. Who reads it finds the directory as it stays: what only a living run needs has gone by then.

    Gone by name: its space goes with this process, since freeing a payload of 256 MB takes 20 ms and the end shouldn't wait for that,
    or now where the disk is full.
    """
    kept = [
        fd for path in (run_dir.call, run_dir.path / BALLAST) if (fd := unname(path)) is not None
    ]
    try:
        journal.write("end", state=state, **facts)
    except OSError:
        for fd in kept:
            os.close(fd)
        journal.write("end", state=state, **facts)


def _set_space_aside(run_dir: RunDir, journal: JournalWriter) -> None:
    journal.reserve()
    take_on_ballast(run_dir.path)


def _introduce(run_dir: RunDir) -> JournalWriter:
    """Its words go to agent.log, and its identity into the journal before anything can go wrong."""
    log = os.open(run_dir.agent_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for fd in (1, 2):
        os.dup2(log, fd)
    journal = JournalWriter(run_dir.journal)
    me = Process.of(os.getpid())
    journal.write("agent", pid=os.getpid(), started=me.started if me else 0)
    return journal


def _rehearse() -> None:
    """A rendezvous and a process, for nobody."""
    _log_to_stderr()
    ask_no_dns()
    logging.disable(logging.CRITICAL)
    try:
        handler = rendezvous.EmbeddedRendezvous("rehearsal", 10)
        handler.next_rendezvous().store.set("key", "value")
        handler.shutdown()
        Process.of(os.getpid())
        process = multiprocessing.get_context("forkserver").Process(target=nothing)
        process.start()
        multiprocessing.connection.wait([process.sentinel])
        process.join()
        process.close()
    finally:
        logging.disable(logging.NOTSET)


def _run(
    task: AgentTask, run_dir: RunDir, journal: JournalWriter, spares: SpareRanks
) -> tuple[str, dict[str, Any]]:
    settings = run_dir.read_spec()
    config = LaunchConfig.from_json(settings["config"])
    if config.start_method != "forkserver":
        spares.dismiss()
    enter(task.surroundings, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    _log_to_stderr()
    ask_no_dns()
    _configure_metrics(config.metrics_cfg)
    leash = os.open(run_dir.leash, os.O_RDWR | os.O_CLOEXEC)  # the only writer: see worker/leash.py
    parent = multiprocessing.parent_process()
    timekeeper = Timekeeper(run_dir, journal)
    hangs = HangWatch(run_dir, timekeeper, settings["hang_after"])

    def take(moment: Mapping[str, Any]) -> None:
        timekeeper.note(**moment)
        hangs.take(moment)

    wishes = Wishes(
        run_dir.control,
        None if task.detach or parent is None else parent.sentinel,
        on_stop=lambda grace, reason: _announce_stop(run_dir, journal, grace, reason),
        on_moment=take,
        give_up=lambda reason: _give_up(journal, reason),
    )
    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=settings["name"],
        rdzv_handler=rendezvous.make_handler(config, settings["run_id"]),
        max_restarts=config.max_restarts,
        monitor_interval=1e-6,  # torch sleeps this long before each look; the looking itself waits for the ranks
        local_addr=rendezvous.local_addr(config),
    )
    agent = IceAgent(
        spec,
        run_dir,
        journal,
        task.surroundings,
        settings,
        wishes,
        close_fds=[leash, *wishes.fds()],
        spares=spares,
        hangs=hangs,
    )
    try:
        result = agent.run()
    except Stopped:
        return "STOPPED", {"note": wishes.reason}
    except Exception as error:
        if wishes.bell_rang():
            return "STOPPED", {"note": wishes.reason}
        traceback.print_exc()
        return "FAILED", {"note": _explain(error, config)}
    finally:
        wishes.close()
        hangs.stop()
        timekeeper.stop()
        with contextlib.suppress(Exception):
            spec.rdzv_handler.shutdown()
    if not result.is_failed():
        return ("STOPPED", {"note": STOPPED_ITSELF}) if agent.stopped_itself else ("SUCCEEDED", {})
    note = (
        "not retried: a retry can't cure this"
        if agent.incurable and settings["sensible_restarts"] and config.max_restarts
        else ""
    )
    return "FAILED", {"note": note}


def _announce_stop(run_dir: RunDir, journal: JournalWriter, grace: float, reason: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        Events.of_run(run_dir.path).stop_all_tasks.set()
    journal.write("stopping", grace=grace, reason=reason)


def _explain(error: Exception, config: LaunchConfig) -> str:
    """What failed outside the ranks; torch's rendezvous errors say little by themselves."""
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if not config.rdzv_endpoint:
        return said
    nodes = (
        f"{config.min_nodes}"
        if config.min_nodes == config.max_nodes
        else f"{config.min_nodes} to {config.max_nodes}"
    )
    return (
        f"the rendezvous of {nodes} nodes at {config.rdzv_endpoint} ({config.rdzv_backend}, timeout "
        f"{config.rdzv_configs['timeout']} s) failed: {said}"
    )


def _give_up(journal: JournalWriter, reason: str) -> NoReturn:
    """The main thread is stuck: say so and go; the leash ends the ranks."""
    journal.write("end", state="STOPPED", note=reason)
    os._exit(1)


def _log_to_stderr() -> None:
    """torch's loggers write plainly into agent.log.

    torch's own formatter imports ``torch._dynamo`` for the first logged exception, 2 to 3.7 s.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("torch")
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch")]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        if name.startswith("torch.distributed.elastic"):
            logger.setLevel(os.environ.get("LOGLEVEL", "INFO"))
    root.handlers[:] = [handler]


def _configure_metrics(metrics_cfg: dict[str, str]) -> None:
    if metrics_cfg.get("handler") == "console":
        metrics.configure(metrics.ConsoleMetricHandler(), "torchelastic")
    metrics.initialize_metrics(metrics.MetricsConfig(dict(metrics_cfg)))
