"""launch() and launch_agent(): check what was asked, lay the run directory, pack the call, ask the host."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from icelaunch_nb import devices as dev
from icelaunch_nb import inline as inline_run
from icelaunch_nb import loopback, packing, retention
from icelaunch_nb.config import Entrypoint, LaunchConfig
from icelaunch_nb.errors import ConfigError, nearest
from icelaunch_nb.events import Events
from icelaunch_nb.notebook.hosts import hosts
from icelaunch_nb.run import Run
from icelaunch_nb.rundir import RunDir, make_run_dir
from icelaunch_nb.runs import remember
from icelaunch_nb.surroundings import Surroundings
from icelaunch_nb.tasks import AgentTask

HANG_AFTER = 60.0  # seconds
_FIELDS = tuple(field.name for field in fields(LaunchConfig))
# What `launch` takes where LaunchConfig's own default, torch's of old, isn't what a notebook wants.
DEFAULTS: dict[str, Any] = {
    "min_nodes": 1,
    "max_nodes": 1,
    "start_method": "forkserver",
    "max_restarts": 0,
    "rdzv_backend": "c10d",
}


def launch_agent(
    config: LaunchConfig,
    entrypoint: Entrypoint,
    args: Sequence[Any] = (),
    ice_events: Events | None = None,
) -> dict[int, Any]:
    """Launches `entrypoint` as torch elastic would, waits, and returns what the ranks returned.

    The streams that `config` shows are printed here, each line with torch's prefix (``[default_role0]:``).

    Args:
        config: What to launch and how.
        entrypoint: A function, run by every rank; or a string: a Python script, or any program.
        args: Its arguments. Of a program, ``${local_rank}`` is replaced.
        ice_events: The events that kernel, agent and ranks share; None: new ones.

    Returns:
        The value that each rank returned, by global rank; None for each rank of a program.

    Raises:
        ConfigError: Something can't work. No process was started.
        PackingError: The function or an argument can't be pickled. No process was started.
        RunFailed: A rank failed and no restart was left.
        RunStopped: The run was stopped before all its ranks returned.
        KeyboardInterrupt: The cell was interrupted; the run is stopped.

    Source: the ``launch_agent`` of ice-learn, which follows ``torch.distributed.launcher.api.launch_agent``.
    """
    if not isinstance(config, LaunchConfig):
        raise ConfigError("config", config, "must be a LaunchConfig")
    request = _Request(
        config,
        _check_entrypoint(entrypoint),
        _check_args(args),
        {},
        ice_events,
        dev.lenient_devices(config.nproc_per_node, os.environ),
        set_device=False,
        sensible_restarts=False,
        detach=False,
    )
    run = None
    try:
        run = _start(request, stacklevel=3)
        return run.result()
    except KeyboardInterrupt:
        if run is not None and not run.state.over:  # it came between the two
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
    **config_fields: Any,
) -> Run:
    """Launches `fn` on several ranks and returns at once.

    Args:
        fn: A function, run by every rank; or a string: a Python script, or any program, with `args`.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        nproc_per_node: Number of ranks; ``"auto"``: one per device named in `devices`, per visible GPU, or one.
        devices: ``"auto"`` (a GPU per rank; the CPU where there are no GPUs), ``"cpu"``, ``"cuda"``, ``"cuda:0-2,7"``, ``"cpu:0-3"`` or a list of
            GPU indices. The rank's one is ``get_context().device``, and CUDA's current device.
        max_restarts: How often the ranks are restarted after a failure; None: not at all, or as `config` says. What a retry
            can't cure (SyntaxError, NameError, ImportError, a failed unpickling) isn't retried.
        events: The events that kernel, agent and ranks share; None: new ones.
        config: Further settings; the arguments given here win over its fields.
        detach: Whether the run outlives this kernel.
        inline: Run it here, in this process, as the only rank, so that ``%debug`` works.
        post_mortem: A rank that raises an exception stops there in the debugger (`Run.debug`), before it is torn down; meanwhile the
            others wait where they need it.
        hang_after: Seconds after which a rank that has printed nothing, reported nothing and made no step is marked with where it stands
            (`Run.silent`, the panel); not while it is paused or in the debugger. None: never.
        panel: Whether a cell that ends in the run shows its panel; False: a line of text.
        **config_fields: Any other field of `LaunchConfig`.

    Returns:
        The run: ``run.result()`` or ``await run`` waits for the values.

    Raises:
        ConfigError: Something can't work. No process was started.
        PackingError: The function or an argument can't be pickled. No process was started.
    """
    request = _requested(
        fn,
        args,
        kwargs,
        nproc_per_node=nproc_per_node,
        devices=devices,
        max_restarts=max_restarts,
        events=events,
        config=config,
        detach=detach,
        inline=inline,
        post_mortem=post_mortem,
        hang_after=hang_after,
        panel=panel,
        **config_fields,
    )
    run = _run_inline(request) if inline else _start(request, stacklevel=3)
    if not panel:
        run.show_plainly()
    return run


@dataclass
class _Request:
    config: LaunchConfig
    entrypoint: Entrypoint
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    events: Events | None
    devices: list[str]
    set_device: bool
    sensible_restarts: bool
    detach: bool
    post_mortem: bool = False
    hang_after: float | None = HANG_AFTER


def check_launch(
    fn: Entrypoint,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> list[str]:
    """Whether `launch` would take this; starts nothing and writes nothing.

    Args:
        fn: As `launch` takes it.
        args: As `launch` takes them.
        kwargs: As `launch` takes them.
        **keywords: Its other keywords.

    Returns:
        The device that each rank would have.

    Raises:
        ConfigError: What `launch` would raise.
    """
    asked = inspect.signature(launch).bind(fn, args, kwargs, **keywords)
    asked.apply_defaults()
    return _requested(*asked.args, **asked.kwargs).devices


def _requested(
    fn: Entrypoint,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    *,
    nproc_per_node: int | str,
    devices: dev.Devices,
    max_restarts: int | None,
    events: Events | None,
    config: LaunchConfig | None,
    detach: bool,
    inline: bool,
    post_mortem: bool,
    hang_after: float | None,
    panel: bool,
    **config_fields: Any,
) -> _Request:
    """What `launch` was asked for, checked."""
    for name in config_fields:
        if name not in _FIELDS:
            known = [
                *_FIELDS,
                *(p for p in inspect.signature(launch).parameters if p != "config_fields"),
            ]
            raise ConfigError(
                name, config_fields[name], f"launch() knows no such keyword; {nearest(name, known)}"
            )
    if config is not None and not isinstance(config, LaunchConfig):
        raise ConfigError("config", config, "must be a LaunchConfig, or None")
    fn, args, kwargs = _check_entrypoint(fn), _check_args(args), _check_kwargs(kwargs)
    if isinstance(fn, str) and kwargs:
        raise ConfigError("kwargs", kwargs, "a program takes arguments by args alone")
    for name, flag in (
        ("detach", detach),
        ("inline", inline),
        ("post_mortem", post_mortem),
        ("panel", panel),
    ):
        if not isinstance(flag, bool):
            raise ConfigError(name, flag, "must be True or False")
    if post_mortem and (inline or isinstance(fn, str)):
        raise ConfigError(
            "post_mortem",
            post_mortem,
            "with inline=True, %debug does it" if inline else "a program's exceptions are its own",
        )
    if hang_after is not None and (
        not isinstance(hang_after, int | float)
        or isinstance(hang_after, bool)
        or not 0 < hang_after < 1e9
    ):
        raise ConfigError("hang_after", hang_after, "must be seconds, greater than 0, or None")
    if config is not None and nproc_per_node == "auto" and devices == "auto":
        nproc_per_node = config.nproc_per_node
    assigned = dev.assign_devices(devices, nproc_per_node, os.environ)
    if max_restarts is not None:
        config_fields["max_restarts"] = max_restarts
    if config is None:
        config = LaunchConfig(**{**DEFAULTS, **config_fields, "nproc_per_node": len(assigned)})
    else:
        config = replace(config, **{**config_fields, "nproc_per_node": len(assigned)})
    return _Request(
        config,
        fn,
        args,
        kwargs,
        events,
        assigned,
        set_device=True,
        sensible_restarts=True,
        detach=detach,
        post_mortem=post_mortem,
        hang_after=hang_after,
    )


def _start(request: _Request, *, stacklevel: int) -> Run:
    request.config.validate()
    retention.kept(os.environ)
    _check_events(request.events)
    _check_call(request.entrypoint, request.args, request.kwargs)
    program = (
        _program(request.entrypoint, request.args) if isinstance(request.entrypoint, str) else []
    )
    run_dir, spec = _lay(request, program)
    try:
        with _blaming_log_dir(run_dir):
            (request.events or Events()).move_to(run_dir.board)
        if not program:
            _pack(request, run_dir, stacklevel=stacklevel + 1)
        with _blaming_log_dir(run_dir):
            run_dir.write(run_dir.spec, json.dumps(spec))
        run = Run(run_dir.path).hold()
        task = AgentTask(
            str(run_dir.path), Surroundings.here(), request.config.nproc_per_node, request.detach
        )
    except BaseException:
        shutil.rmtree(run_dir.path, ignore_errors=True)
        raise
    try:
        remember(run_dir.path)
        run.started_by(hosts.launch(task))
    except BaseException:
        run.kill()  # an interrupt can come once the host has the task: then the agent finds this wish
        raise
    return run


@contextlib.contextmanager
def _blaming_log_dir(run_dir: RunDir) -> Iterator[None]:
    """A file that can't be written there (a full disk, say) is `log_dir`'s matter."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            "log_dir",
            str(run_dir.path.parent),
            f"the run's files can't be written there: {error.strerror}",
        ) from None


def _run_inline(request: _Request) -> Run:
    if isinstance(request.entrypoint, str):
        raise ConfigError("inline", True, "a program can't run inside this process")
    if request.config.nproc_per_node != 1:
        raise ConfigError(
            "inline",
            True,
            f"runs one rank in this process, not {request.config.nproc_per_node}; set nproc_per_node=1",
        )
    _check_events(request.events)
    _check_call(request.entrypoint, request.args, request.kwargs)
    run_dir, spec = _lay(request, [])
    (request.events or Events()).move_to(run_dir.board)
    run_dir.write(run_dir.spec, json.dumps(spec))
    return inline_run.run_here(run_dir, spec, request.entrypoint, request.args, request.kwargs)


def _lay(request: _Request, program: list[str]) -> tuple[RunDir, dict[str, Any]]:
    """The run directory, and what will stand in its spec.json."""
    config = request.config
    run_id = config.run_id or secrets.token_hex(4)
    at_home = not config.rdzv_endpoint or loopback.is_loopback(config.rdzv_endpoint)
    return make_run_dir(config.log_dir, run_id), {
        "run_id": run_id,
        "name": _name(request.entrypoint),
        "time": time.time(),
        "config": config.to_json(),
        "program": program,
        "devices": request.devices,
        "set_device": request.set_device,
        "sensible_restarts": request.sensible_restarts,
        "post_mortem": request.post_mortem,
        "hang_after": request.hang_after,
        # A user's value wins: the forkserver was started with it.
        "threads": None
        if "OMP_NUM_THREADS" in os.environ
        else dev.threads_per_rank(config.nproc_per_node),
        "loopback": loopback.interface() if at_home else None,
        "detach": request.detach,
        "python": sys.version.split()[0],
    }


def _pack(request: _Request, run_dir: RunDir, *, stacklevel: int) -> None:
    call = (request.entrypoint, request.args, request.kwargs)
    try:
        functions = packing.dump(call, run_dir.call)
    except packing.NotWritten as error:
        raise ConfigError(
            "log_dir", str(run_dir.path.parent), f"the call can't be written there: {error}"
        ) from None
    except Exception as error:
        roots = {_name(request.entrypoint): request.entrypoint}
        roots |= {f"args[{i}]": value for i, value in enumerate(request.args)}
        roots |= {f"kwargs[{name!r}]": value for name, value in request.kwargs.items()}
        raise packing.explain(error, roots) from None
    packing.warn_of_big_captures(functions, run_dir.call, stacklevel=stacklevel + 1)
    run_dir.write(run_dir.sources, json.dumps(packing.cell_sources(functions)))


def _check_entrypoint(entrypoint: object) -> Entrypoint:
    if entrypoint is None or not (callable(entrypoint) or isinstance(entrypoint, str)):
        raise ConfigError(
            "entrypoint", entrypoint, "must be a function, or the name of a script or program"
        )
    if inspect.iscoroutinefunction(entrypoint):
        raise ConfigError(
            "entrypoint",
            entrypoint,
            "is async; a rank calls it and takes what it returns: wrap it in asyncio.run",
        )
    return entrypoint


def _check_args(args: object) -> tuple[Any, ...]:
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        raise ConfigError("args", args, "must be a list or a tuple of arguments")
    return tuple(args)


def _check_kwargs(kwargs: object) -> dict[str, Any]:
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise ConfigError("kwargs", kwargs, "must be a dict with str keys")
    return dict(kwargs)


def _check_call(fn: Entrypoint, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Calls with arguments that the function can't take would fail in every rank.

    A decorated function is looked at as its wrapper, which may well take others than the function that it wraps.
    """
    try:
        signature = inspect.signature(fn, follow_wrapped=False)  # type: ignore[arg-type]
    except (
        TypeError,
        ValueError,
        NameError,
    ):  # a program; a builtin that doesn't tell; since Python 3.14, an annotation of what isn't there
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name, value = ("kwargs", kwargs) if kwargs else ("args", args)
        raise ConfigError(
            name, value, f"{_name(fn)}{signature} can't be called so: {error}"
        ) from None


def _check_events(events: object) -> None:
    if events is not None and not isinstance(events, Events):
        raise ConfigError("events", events, "must be an icelaunch_nb.Events, or None")


def _program(entrypoint: str, args: tuple[Any, ...]) -> list[str]:
    """The command line of a program; a Python script that can't be executed itself gets this interpreter."""
    if not entrypoint.strip() or "\0" in entrypoint:
        raise ConfigError("entrypoint", entrypoint, "must name a script or a program")
    if os.path.isfile(entrypoint):
        path = os.path.abspath(entrypoint)
        if os.access(path, os.X_OK) and not (path.endswith(".py") and not _has_shebang(path)):
            return [path, *map(str, args)]
        if path.endswith(".py"):
            return [sys.executable, path, *map(str, args)]
        raise ConfigError("entrypoint", entrypoint, "is neither executable nor a .py file")
    if os.sep not in entrypoint and shutil.which(entrypoint):
        return [entrypoint, *map(str, args)]
    if os.path.isdir(entrypoint):
        raise ConfigError("entrypoint", entrypoint, "is a directory")
    what = (
        "there is no such file"
        if os.sep in entrypoint or entrypoint.endswith(".py")
        else "there is no such script here and no such program on PATH"
    )
    raise ConfigError("entrypoint", entrypoint, what)


def _has_shebang(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def _name(entrypoint: Entrypoint) -> str:
    if isinstance(entrypoint, str):
        return entrypoint
    return getattr(entrypoint, "__qualname__", None) or type(entrypoint).__qualname__
