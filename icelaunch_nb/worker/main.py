"""The main function of a rank's process."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing.util
import os
import pickle
import signal
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from icelaunch_nb.launching import inherited, process_state
from icelaunch_nb.launching.launch_environment import LaunchEnvironment, become_main, enter
from icelaunch_nb.launching.launch_messages import RankLaunch
from icelaunch_nb.pickling import modules, packing
from icelaunch_nb.rundir import source_locations, step_board
from icelaunch_nb.rundir.paths import RankDir, RunDir, make_run_dir
from icelaunch_nb.system import cpython
from icelaunch_nb.worker import (
    context,
    debugger,
    killed_with_agent,
    nested_launchers,
    results,
    spawned_children,
    stack_dumps,
    streams,
    tqdm_text,
)
from icelaunch_nb.worker.error_reserve import ErrorReserve


def main(source: RankLaunch | Connection) -> NoReturn:
    """Runs one rank and ends the process. The rank's folder records how it ended.

    Args:
        source: The launch, or the connection that it arrives on: the agent starts ranks ahead of
            their launch.
    """
    _new_session()
    launch = source if isinstance(source, RankLaunch) else _await_launch(source)
    run_dir = RunDir(Path(launch.run_dir))
    rank_dir = run_dir.rank(launch.attempt, launch.local_rank)
    for fd in launch.close_fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    killed_with_agent.enable(run_dir.agent_alive)
    streams.redirect(rank_dir)
    if launch.program:
        enter(launch.environment, launch.rank_environ, as_rank=True)
        _exec_program(launch.program)
    reserve = ErrorReserve(rank_dir)  # before the launching process's limits apply
    enter(launch.environment, launch.rank_environ, as_rank=True)
    become_main(launch.environment)
    cpython.become_main_process()  # after killed_with_agent, which needs the parent process
    _configure(launch, rank_dir)
    if isinstance(source, RankLaunch):
        _prepare()
    main_is_complete = spawned_children.provide_main(run_dir, rank_dir)
    cell_names = source_locations.register_cells(run_dir)
    rank_pid, exit_code = os.getpid(), 1
    try:
        entrypoint, args, kwargs = packing.load(run_dir.call)
        packing.adopt_main_classes()
        main_is_complete()
    except BaseException as error:
        if os.getpid() != rank_pid:
            _exit_child(results.report_child_error(error, cell_names))
        results.write_error(error, rank_dir, cell_names, reserve, kind="loading")
        reserve.drop()
        _exit(exit_code)
    try:
        value = entrypoint(*args, **kwargs)
    except BaseException as error:
        # SystemExit and KeyboardInterrupt too: a rank whose function doesn't return has failed.
        if os.getpid() != rank_pid:
            _exit_child(results.report_child_error(error, cell_names))
        if launch.post_mortem and isinstance(error, Exception):
            debugger.post_mortem(error)
        results.write_error(error, rank_dir, cell_names, reserve)
    else:
        if os.getpid() != rank_pid:
            _exit_child(0)
        # A rank whose value can't be pickled has still done its work. Exit code 0 lets the other
        # ranks finish theirs.
        results.write_result(value, launch.rank, rank_dir, reserve)
        exit_code = 0
    debugger.finish()
    # A failed rank may not have saved a checkpoint that was requested. The board must show that it
    # is unfinished, so that the next attempt gets the request again.
    if exit_code == 0:
        context.finish()
    atexit.unregister(context.finish)
    reserve.drop()
    _exit(exit_code)


def _await_launch(launches: Connection) -> RankLaunch:
    """Prepares and prewarms this process, then waits for its launch.

    The process ends when the agent closes the connection instead.
    """
    _prepare()
    _prewarm()
    try:
        with launches:  # else the program that replaces this process inherits it
            return launches.recv()
    except EOFError:
        os._exit(0)


def _new_session() -> None:
    """Starts a session, and drops its ancestors' signal handlers and inheritable pipes."""
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    cpython.close_pipes_on_exec()


def _prepare() -> None:
    """Does what is the same for every launch."""
    nested_launchers.refuse(sys.modules["torch"])
    tqdm_text.install()
    debugger.replace_pdb_set_trace()


def _prewarm() -> None:
    """Touches the memory that the start of a rank touches, so that the launch takes 3 ms less.

    The fork shares these pages, and the first write copies them. The files lie in the host's own
    folder: a rank that is killed in between leaves them there.
    """
    with (
        contextlib.suppress(Exception),
        tempfile.TemporaryDirectory(dir=multiprocessing.util.get_temp_dir()) as folder,
    ):
        run_dir = make_run_dir(folder, "prewarm")
        rank_dir = run_dir.rank(0, 0)
        rank_dir.path.mkdir(parents=True)
        reserve = ErrorReserve(rank_dir)
        run_dir.write(run_dir.sources, "{}")
        source_locations.register_cells(run_dir)
        packing.dump((_exit, (1,), {}), run_dir.call)
        packing.load(run_dir.call)
        environment = LaunchEnvironment(
            dict(os.environ), os.getcwd(), list(sys.path), inherited=inherited.capture()
        )
        launch = pickle.loads(
            pickle.dumps(RankLaunch(folder, 0, 0, 0, environment, {"RANK": "0", "LOCAL_RANK": "0"}))
        )
        enter(environment, launch.rank_environ, as_rank=True)
        enter(environment, {}, as_rank=True)
        become_main(environment)
        _configure_torch(launch)
        results.write_result(None, 0, rank_dir, reserve)
        step_board.mark_over(run_dir.steps(0), 0, 2)
        try:
            raise RuntimeError("prewarm")
        except RuntimeError as error:
            results.write_error(error, rank_dir, {}, reserve)
        reserve.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, set())  # `write_error` blocks SIGTERM


def _exec_program(program: list[str]) -> NoReturn:
    """Replaces this process by the program, with a shell's exit codes where that fails."""
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"{program[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _configure(launch: RankLaunch, rank_dir: RankDir) -> None:
    """Sets up crash reports, threads, the device and this rank's own random numbers."""
    faulthandler.enable(file=2)
    stack_dumps.enable(rank_dir)
    _configure_torch(launch)
    if "numpy.random" in sys.modules:
        # Forked siblings would draw the same numbers. Under torchrun each process starts from the
        # system's entropy.
        sys.modules["numpy.random"].seed()
    context.reset()


def _configure_torch(launch: RankLaunch) -> None:
    import torch

    # As in a fresh process: forked ones would draw the same in every rank, launch and attempt.
    torch.default_generator.seed()
    if launch.set_device and launch.device.startswith("cuda"):
        torch.cuda.set_device(launch.device)
    process_state.apply(
        launch.environment.process_state, device=launch.device, threads=launch.threads
    )


def _exit_child(code: int) -> NoReturn:
    """Ends a process that the user's code forked and that returned from that code.

    It records nothing, since it isn't the rank.
    """
    atexit.unregister(context.finish)
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Ends this process without tearing down the interpreter.

    The threads of a torch process group can block that.
    """
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


modules.scan_modules()  # in the forkserver, for all ranks
