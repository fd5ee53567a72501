"""``launch(..., inline=True)``: the kernel itself is the only rank, so ``%debug`` works."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from icelaunch_nb.client.run import Run
from icelaunch_nb.client.runs import add_to_index
from icelaunch_nb.launching.launch_environment import variables
from icelaunch_nb.launching.rank_environment import RankAssignment, rank_environ
from icelaunch_nb.rundir import step_board
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import (
    AgentStarted,
    AttemptStarted,
    Ended,
    FailedRank,
    RankEntry,
    RanksFailed,
)
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import STOPPED_ITSELF
from icelaunch_nb.rundir.spec import RunSpec
from icelaunch_nb.system.plaintext import exception_message
from icelaunch_nb.system.processes import Process


def run_inline(
    run_dir: RunDir,
    spec: RunSpec,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Run:
    """Calls the function in this process, with a rank's environment meanwhile.

    An exception is raised as it is, with its frames, for ``%debug``.

    Args:
        run_dir: The run directory.
        spec: The run's spec, which names one device.
        fn: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The run, which is over.
    """
    folder = run_dir.rank(0, 0).path
    for path in (folder.parent, folder):
        path.mkdir(mode=0o700)
    with JournalWriter(run_dir.journal) as journal:
        value = _run(run_dir, spec, journal, lambda: fn(*args, **kwargs))
    add_to_index(run_dir.path)
    run = Run(run_dir)
    run._results = {0: value}
    return run


def _run(run_dir: RunDir, spec: RunSpec, journal: JournalWriter, call: Callable[[], Any]) -> Any:
    process = Process.of(os.getpid())
    pid, started = os.getpid(), process.started if process else 0.0
    journal.write(AgentStarted(pid=pid, started=started))
    entry = RankEntry(rank=0, local_rank=0, pid=pid, started=started, device=spec.devices[0])
    journal.write(AttemptStarted(attempt=0, world_size=1, ranks=[entry]))
    try:
        assignment = RankAssignment("127.0.0.1", _free_port())
        with variables(rank_environ(assignment, spec, run_dir.path, 0, os.environ)):
            value = call()
    except BaseException as error:
        failure = FailedRank(
            rank=0,
            local_rank=0,
            attempt=0,
            time=time.time(),
            pid=pid,
            kind="raised",
            type_name=type(error).__name__,
            message=exception_message(error),
        )
        journal.write(RanksFailed(failures=[failure]))
        journal.write(Ended(state="FAILED"))
        raise
    if step_board.stopped_ranks(run_dir.steps(0)):
        journal.write(Ended(state="STOPPED", note=STOPPED_ITSELF))
    else:
        journal.write(Ended(state="SUCCEEDED"))
    return value


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
