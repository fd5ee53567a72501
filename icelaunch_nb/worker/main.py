"""A rank from its first line to its last."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from icelaunch_nb import context, cpython, packing, places
from icelaunch_nb.rundir import RankDir, RunDir
from icelaunch_nb.surroundings import Surroundings, become_main, enter
from icelaunch_nb.tasks import RankTask
from icelaunch_nb.worker import bars, debugger, leash, report, streams


def main(source: RankTask | Connection) -> NoReturn:
    """Runs one rank and ends the process; what became of it stands in the rank's folder.

    Args:
        source: What to do, or where it will come from: the agent starts ranks ahead of their task.
    """
    _stand_alone()
    task = source if isinstance(source, RankTask) else _await_task(source)
    run_dir = RunDir(Path(task.run_dir))
    rank_dir = run_dir.rank(task.attempt, task.local_rank)
    for fd in task.close_fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    leash.hold(run_dir.leash)
    streams.redirect(rank_dir)
    enter(task.surroundings, task.rank_environ)
    if task.program:
        _become(task.program)
    become_main(task.surroundings)
    _settle(task, rank_dir)
    names = places.know_cells(run_dir)
    code = 1
    try:
        entrypoint, args, kwargs = packing.load(run_dir.call)
        packing.adopt_main_classes()
    except BaseException as error:
        report.raised(error, rank_dir, names, kind="loading")
        _leave(code)
    try:
        value = entrypoint(*args, **kwargs)
    except (
        BaseException
    ) as error:  # SystemExit and KeyboardInterrupt too: whoever doesn't return has failed
        if task.post_mortem and isinstance(error, Exception):
            debugger.post_mortem(error)
        report.raised(error, rank_dir, names)
    else:
        # Whoever can't hand its value over has still done its work: exit code 0 lets the other ranks finish theirs.
        report.returned(value, task.rank, rank_dir)
        code = 0
    debugger.over()
    atexit.unregister(context.over)
    if (
        code == 0
    ):  # whoever failed has left a checkpoint that it was asked for unfinished, and the next attempt is asked again
        context.over()
    _leave(code)


def _await_task(tasks: Connection) -> RankTask:
    """Rehearses, and waits; nobody needing this rank is the end of it."""
    _rehearse()
    try:
        with tasks:  # a program that this process becomes would inherit it
            return tasks.recv()
    except EOFError:
        os._exit(0)


def _stand_alone() -> None:
    """A session of its own, and no signal handlers of its ancestors."""
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _rehearse() -> None:
    """Touches what the start of a rank touches, so that the pages that the fork shared are its own already (3 ms less)."""
    with contextlib.suppress(Exception), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "call.pkl"
        packing.dump((_leave, (1,), {}), path)
        packing.load(path)
        enter(Surroundings.here(), {})
        become_main(Surroundings.here())
        _settle_torch(RankTask(folder, 0, 0, 0, Surroundings.here(), {}, threads=None))


def _become(program: list[str]) -> NoReturn:
    cpython.keep_pipes_from_program()
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"{program[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _settle(task: RankTask, rank_dir: RankDir) -> None:
    """Crash reports, threads, device, and random numbers that differ from the siblings'."""
    faulthandler.enable(file=2)
    draft = rank_dir.stacks.with_suffix(".draft")
    faulthandler.register(
        signal.SIGUSR1,
        file=os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600),
        all_threads=True,
    )
    draft.rename(
        rank_dir.stacks
    )  # whoever sees it may signal: before the line above, that would end the rank
    _settle_torch(task)
    if "numpy.random" in sys.modules:
        # Forked siblings would draw the same numbers; under torchrun each process starts from the system's entropy.
        sys.modules["numpy.random"].seed()
    bars.as_text()
    debugger.serve_pdb()
    context.begin(RunDir(Path(task.run_dir)), task.attempt, task.local_rank)


def _settle_torch(task: RankTask) -> None:
    import torch

    torch.default_generator.seed()  # as a fresh process has it: forked ones would draw the same in every rank, launch and attempt
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    if task.set_device and task.device.startswith("cuda"):
        torch.cuda.set_device(task.device)


def _leave(code: int) -> NoReturn:
    """The end of a Python process without tearing the interpreter down, which a process group's threads can block."""
    try:
        cpython.run_exit_functions()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        streams.flush()
        os._exit(code)
