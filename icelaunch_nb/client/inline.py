"""``launch(..., inline=True)``: the function runs in the kernel itself, as the only rank, and can be debugged there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from icelaunch_nb import steps
from icelaunch_nb.errors import message
from icelaunch_nb.journal import JournalWriter
from icelaunch_nb.processes import Process
from icelaunch_nb.rankenv import Place, rank_environ
from icelaunch_nb.run import Run
from icelaunch_nb.rundir import RunDir
from icelaunch_nb.runs import remember
from icelaunch_nb.story import STOPPED_ITSELF
from icelaunch_nb.surroundings import variables


def run_here(
    run_dir: RunDir,
    spec: dict[str, Any],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Run:
    """Runs it with a rank's environment, which is put back afterwards.

    An exception is raised as it is, its frames alive, for ``%debug``.
    """
    folder = run_dir.rank(0, 0).path
    for made in (folder.parent, folder):
        made.mkdir(mode=0o700)
    with JournalWriter(run_dir.journal) as journal:
        value = _run(run_dir, spec, journal, lambda: fn(*args, **kwargs))
    remember(run_dir.path)
    run = Run(run_dir.path)
    run._results = {0: value}
    return run


def _run(
    run_dir: RunDir, spec: dict[str, Any], journal: JournalWriter, call: Callable[[], Any]
) -> Any:
    me = Process.of(os.getpid())
    entry = {
        "rank": 0,
        "local_rank": 0,
        "pid": os.getpid(),
        "started": me.started if me else 0,
        "device": spec["devices"][0],
    }
    journal.write("agent", pid=os.getpid(), started=me.started if me else 0)
    journal.write("attempt", attempt=0, restart_count=0, world_size=1, ranks=[entry])
    try:
        with variables(
            rank_environ(Place("127.0.0.1", _free_port()), spec, run_dir.path, 0, os.environ)
        ):
            value = call()
    except BaseException as error:
        failure = {
            "rank": 0,
            "local_rank": 0,
            "attempt": 0,
            "time": time.time(),
            "pid": os.getpid(),
            "kind": "raised",
            "exitcode": None,
            "type_name": type(error).__name__,
            "message": message(error),
        }
        journal.write("failure", attempt=0, failures=[failure])
        journal.write("end", state="FAILED")
        raise
    if steps.stopped(run_dir.steps(0)):
        journal.write("end", state="STOPPED", note=STOPPED_ITSELF)
    else:
        journal.write("end", state="SUCCEEDED")
    return value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
