"""launch() and launch_agent(): check the call, make the run directory, pickle, ask a host."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from icelaunch_nb.client import devices as dev
from icelaunch_nb.client import inline as inline_run
from icelaunch_nb.client import launch_request
from icelaunch_nb.client.host_pool import HostProcess, hosts
from icelaunch_nb.client.launch_request import (
    HANG_AFTER,
    LaunchRequest,
    check_args,
    check_entrypoint,
)
from icelaunch_nb.client.run import Run
from icelaunch_nb.client.runs import add_to_index
from icelaunch_nb.config import Entrypoint, LaunchConfig
from icelaunch_nb.errors import ConfigError, SharedLogDirWarning
from icelaunch_nb.events import Events
from icelaunch_nb.launching.launch_environment import LaunchEnvironment
from icelaunch_nb.launching.launch_messages import AgentLaunch
from icelaunch_nb.rundir import retention
from icelaunch_nb.rundir.paths import RunDir, make_run_dir
from icelaunch_nb.rundir.spec import SAVED_OUTPUT, RunSpec, write_spec
from icelaunch_nb.system import loopback, safe_open

# Base directories that were checked for access by other users.
_checked_log_dirs: set[Path] = set()


def launch_agent(
    config: LaunchConfig,
    entrypoint: Entrypoint,
    args: Sequence[Any] = (),
    ice_events: Events | None = None,
) -> dict[int, Any]:
    """Launches `entrypoint` as torch elastic does, waits, and returns what the ranks returned.

    It prints the streams that `config` shows, each line with torch's prefix (``[default_role0]:``).

    Args:
        config: What to launch and how.
        entrypoint: A function that every rank calls, or the name of a Python script or any program.
        args: The arguments. In a program's arguments, ``${local_rank}`` is replaced.
        ice_events: The events that kernel, agent and ranks share. None: new ones.

    Returns:
        The value that each rank returned, by global rank. None for each rank of a program.

    Raises:
        ConfigError: Something can't work. No process was started.
        PackingError: The function or an argument can't be pickled. No process was started.
        RunFailed: A rank failed and no restart was left.
        RunStopped: The run was stopped before all its ranks returned.
        KeyboardInterrupt: The cell was interrupted. The run is stopped.

    Source: the ``launch_agent`` of ice-learn, which follows
    ``torch.distributed.launcher.api.launch_agent``.
    """
    if not isinstance(config, LaunchConfig):
        raise ConfigError("config", config, "must be a LaunchConfig")
    request = LaunchRequest(
        config,
        check_entrypoint(entrypoint),
        check_args(args),
        {},
        ice_events,
        dev.gpus_or_cpu(config.nproc_per_node, os.environ),
        set_device=False,
        sensible_restarts=False,
        detach=False,
    )
    run = None
    try:
        run = _start(request, stacklevel=2)
        return run.result()
    except KeyboardInterrupt:
        # `result` stops the run itself. An interrupt before that call leaves the run alive.
        if run is not None and not run.state.over:
            run.kill()
        raise


def launch(
    fn: Entrypoint,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    nproc_per_node: int | str = "auto",
    devices: dev.Devices = "auto",
    max_restarts: int | None = None,
    events: Events | None = None,
    config: LaunchConfig | None = None,
    detach: bool = False,
    inline: bool = False,
    post_mortem: bool = False,
    hang_after: float | None = HANG_AFTER,
    panel: bool = True,
    saved_output: int | None = SAVED_OUTPUT,
    **config_fields: Any,
) -> Run:
    """Launches `fn` on several ranks and returns at once.

    Args:
        fn: A function that every rank calls, or the name of a Python script or any program.
        args: The positional arguments, or a program's.
        kwargs: The keyword arguments.
        nproc_per_node: Number of ranks. ``"auto"``: one per device named in `devices`, else one per
            visible GPU, else one.
        devices: ``"auto"`` (a GPU per rank, or the CPU where there are no GPUs), ``"cpu"``,
            ``"cuda"``, ``"cuda:0-2,7"``, ``"cpu:0-3"`` or a list of GPU indices. A rank finds its
            device in ``get_context().device``. A GPU is CUDA's current device too.
        max_restarts: How often the ranks are restarted after a failure. None: never, or as `config`
            says. A failure that a retry can't cure (SyntaxError, NameError, ImportError, a failed
            unpickling) isn't retried.
        events: The events that kernel, agent and ranks share. None: new ones.
        config: Further settings. The arguments given here override its fields.
        detach: Whether the run outlives this kernel.
        inline: Calls `fn` in this process, as the only rank, so that ``%debug`` works.
        post_mortem: A rank that raises an exception stops there in the debugger (`Run.debug`),
            before it is torn down. The other ranks go on until they need it.
        hang_after: Seconds after which a rank that has printed and reported nothing and made no
            step is marked as silent, with where it stands (`Run.silent`, the panel). A rank that is
            paused or in the debugger isn't marked. None: never.
        panel: Whether a cell that ends in the run shows its panel. False: a line of text.
        saved_output: The most bytes of the ranks' output that a notebook keeps when it is executed
            without a browser (nbclient, papermill, nbconvert). It keeps the first and the last
            lines of each stream. All lines are on disk. None: no limit.
        **config_fields: Any other field of `LaunchConfig`.

    Returns:
        The run. ``run.result()`` or ``await run`` waits for the values.

    Raises:
        ConfigError: Something can't work. No process was started.
        PackingError: The function or an argument can't be pickled. No process was started.
        HostError: No process could be started, or the machine has no loopback interface.
    """
    # Keep this statement first: at this point the locals are the arguments.
    arguments = dict(locals())
    request = launch_request.check(arguments)
    run = _run_inline(request, stacklevel=2) if inline else _start(request, stacklevel=2)
    if not panel:
        run._show_plainly()
    return run


def check_launch(
    fn: Entrypoint,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> list[str]:
    """Checks a call of `launch`, starts nothing and writes nothing.

    Args:
        fn: As for `launch`.
        args: As for `launch`.
        kwargs: As for `launch`.
        **keywords: The other keywords of `launch`.

    Returns:
        The device that each rank would have.

    Raises:
        ConfigError: `launch` would raise it.
    """
    arguments = inspect.signature(launch).bind(fn, args, kwargs, **keywords)
    arguments.apply_defaults()
    return launch_request.check(arguments.arguments).devices


def _start(request: LaunchRequest, *, stacklevel: int) -> Run:
    request.config.validate()
    retention.limits(os.environ)
    request.check_call()
    program = request.program()
    run_dir, spec = _make_run_dir(request, program)
    try:
        _warn_of_shared_log_dir(run_dir.path.parent, stacklevel=stacklevel + 1)
        with _errors_name_log_dir(run_dir):
            (request.events or Events())._board.move_to(run_dir.board)
        if not program:
            _pickle_call(request, run_dir, stacklevel=stacklevel + 1)
        with _errors_name_log_dir(run_dir):
            write_spec(run_dir, spec)
        run = Run(run_dir)._pin()
        launch = AgentLaunch(
            run_dir=str(run_dir.path),
            environment=LaunchEnvironment.capture(),
            ranks=spec.nproc_per_node,
            detach=request.detach,
        )
    except BaseException:
        shutil.rmtree(run_dir.path, ignore_errors=True)
        raise
    try:
        add_to_index(run_dir.path)
        run._set_host(_send_launch(launch, run_dir))
    except BaseException:
        # An interrupt can come after the host got the launch. Then the agent finds this request.
        run.kill()
        raise
    return run


def _send_launch(launch: AgentLaunch, run_dir: RunDir) -> HostProcess:
    control = run_dir.open(run_dir.control, os.O_RDWR, fifo=True)
    try:
        return hosts.launch(launch, control)
    finally:
        os.close(control)


def _warn_of_shared_log_dir(base: Path, *, stacklevel: int) -> None:
    """Warns, once for each `log_dir`, if other users can move runs away from there."""
    if base in _checked_log_dirs:
        return
    _checked_log_dirs.add(base)
    if reason := safe_open.writable_by_others(base):
        warnings.warn(
            f"log_dir={str(base)!r}: {reason}, so other users can rename or remove your runs "
            "there. Nothing that they put in their place is loaded; still, set log_dir to a "
            "directory that you alone can write to",
            SharedLogDirWarning,
            stacklevel=stacklevel + 1,
        )


@contextlib.contextmanager
def _errors_name_log_dir(run_dir: RunDir) -> Iterator[None]:
    """Turns an error of writing the run's files, such as a full disk, into one of `log_dir`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            "log_dir",
            str(run_dir.path.parent),
            f"the run's files can't be written there: {error.strerror}",
        ) from None


def _run_inline(request: LaunchRequest, *, stacklevel: int) -> Run:
    if isinstance(request.entrypoint, str):
        raise ConfigError("inline", True, "a program can't run inside this process")
    if request.config.nproc_per_node != 1:
        raise ConfigError(
            "inline",
            True,
            f"runs one rank in this process, not {request.config.nproc_per_node}; "
            "set nproc_per_node=1",
        )
    request.check_call()
    run_dir, spec = _make_run_dir(request, [])
    _warn_of_shared_log_dir(run_dir.path.parent, stacklevel=stacklevel + 1)
    (request.events or Events())._board.move_to(run_dir.board)
    write_spec(run_dir, spec)
    return inline_run.run_inline(run_dir, spec, request.entrypoint, request.args, request.kwargs)


def _make_run_dir(request: LaunchRequest, program: list[str]) -> tuple[RunDir, RunSpec]:
    """Makes the run directory. Its spec is returned and not written yet."""
    config = request.config
    run_id = config.run_id or os.urandom(4).hex()
    is_local = not config.rdzv_endpoint or loopback.is_loopback(config.rdzv_endpoint)
    if is_local:
        loopback.check()
    return make_run_dir(config.log_dir, run_id), RunSpec(
        run_id=run_id,
        name=request.name,
        time=time.time(),
        config=config,
        program=program,
        devices=request.devices,
        set_device=request.set_device,
        sensible_restarts=request.sensible_restarts,
        post_mortem=request.post_mortem,
        hang_after=request.hang_after,
        saved_output=request.saved_output,
        # A user's value wins, since the forkserver was started with it.
        threads=None
        if "OMP_NUM_THREADS" in os.environ
        else dev.threads_per_rank(config.nproc_per_node),
        loopback=loopback.interface() if is_local else None,
        detach=request.detach,
        python=sys.version.split()[0],
    )


def _pickle_call(request: LaunchRequest, run_dir: RunDir, *, stacklevel: int) -> None:
    # These import cloudpickle, which ``%load_ext`` does while the user types.
    from icelaunch_nb.client import single_process_warning as single_process
    from icelaunch_nb.pickling import captures, cell_sources, explain, packing

    call, finder = (request.entrypoint, request.args, request.kwargs), single_process.Finder()
    try:
        functions = packing.dump(call, run_dir.call, visit=finder if finder else None)
    except packing.PickleWriteError as error:
        raise ConfigError(
            "log_dir", str(run_dir.path.parent), f"the call can't be written there: {error}"
        ) from None
    except KeyboardInterrupt:
        raise
    # The `__reduce__` of an object may raise anything.
    except BaseException as error:
        raise explain.explain(
            error, {request.name: request.entrypoint, **request.arguments()}
        ) from None
    captures.warn_of_big_captures(functions, run_dir.call, stacklevel=stacklevel + 1)
    config = request.config
    single_process.warn(
        finder,
        functions,
        request.arguments(),
        config.nproc_per_node * config.max_nodes,
        stacklevel=stacklevel + 1,
    )
    run_dir.write_json(run_dir.sources, cell_sources.cell_sources(functions))
