"""The request that a call of `launch` makes, checked before anything is written or started."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from icelaunch_nb.client import devices as dev
from icelaunch_nb.config import Entrypoint, LaunchConfig
from icelaunch_nb.errors import ConfigError
from icelaunch_nb.events import Events
from icelaunch_nb.rundir.spec import SAVED_OUTPUT
from icelaunch_nb.system.suggestions import nearest

# Seconds of silence after which a rank is marked, unless the launch says otherwise.
HANG_AFTER = 60.0
_FIELDS = tuple(field.name for field in fields(LaunchConfig))
# Defaults of `launch` that differ from those of LaunchConfig, which has the defaults of older
# versions of torch. Those don't suit a notebook.
DEFAULTS: dict[str, Any] = {
    "min_nodes": 1,
    "max_nodes": 1,
    "start_method": "forkserver",
    "max_restarts": 0,
    "rdzv_backend": "c10d",
}


@dataclass
class LaunchRequest:
    """A launch that passed all checks that need no process.

    Attributes:
        config: What to launch and how.
        entrypoint: The function, or the name of a script or program.
        args: The positional arguments.
        kwargs: The keyword arguments.
        events: The events that kernel, agent and ranks share. None: new ones.
        devices: The device of each local rank.
        set_device: Whether a rank's device becomes CUDA's current device.
        sensible_restarts: Whether a failure that a retry can't cure isn't retried.
        detach: Whether the run outlives this kernel.
        post_mortem: Whether a rank stops in the debugger where it raises.
        hang_after: Seconds of silence after which a rank is marked as silent. None: never.
        saved_output: Bytes of output that a notebook without a front end keeps. None: no limit.
    """

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
    saved_output: int | None = SAVED_OUTPUT

    @property
    def name(self) -> str:
        """The function's name, or the program's."""
        return name_of(self.entrypoint)

    def arguments(self) -> dict[str, Any]:
        """The call's arguments, by the names that messages use."""
        return {f"args[{i}]": value for i, value in enumerate(self.args)} | {
            f"kwargs[{name!r}]": value for name, value in self.kwargs.items()
        }

    def program(self) -> list[str]:
        """The command line of a program. Empty for a function.

        Raises:
            ConfigError: There is no such program.
        """
        return _command_line(self.entrypoint, self.args) if isinstance(self.entrypoint, str) else []

    def check_call(self) -> None:
        """Checks the events, and the arguments against the function's signature.

        Raises:
            ConfigError: The events are no `Events`, or the function can't take the arguments.
        """
        _check_events(self.events)
        _check_call(self.entrypoint, self.args, self.kwargs)


def check(arguments: Mapping[str, Any]) -> LaunchRequest:
    """Makes the request of a call of `launch`.

    Args:
        arguments: The call's arguments by name, with defaults for those that were not given.

    Raises:
        ConfigError: Something can't work.
    """
    fn = arguments["fn"]
    args = arguments["args"]
    kwargs = arguments["kwargs"]
    nproc_per_node = arguments["nproc_per_node"]
    devices = arguments["devices"]
    max_restarts = arguments["max_restarts"]
    events = arguments["events"]
    config = arguments["config"]
    detach = arguments["detach"]
    inline = arguments["inline"]
    post_mortem = arguments["post_mortem"]
    hang_after = arguments["hang_after"]
    panel = arguments["panel"]
    saved_output = arguments["saved_output"]
    config_fields = dict(arguments["config_fields"])
    for name in config_fields:
        if name not in _FIELDS:
            known = [*_FIELDS, *(keyword for keyword in arguments if keyword != "config_fields")]
            raise ConfigError(
                name, config_fields[name], f"launch() knows no such keyword; {nearest(name, known)}"
            )
    if config is not None and not isinstance(config, LaunchConfig):
        raise ConfigError("config", config, "must be a LaunchConfig, or None")
    fn, args, kwargs = check_entrypoint(fn), check_args(args), _check_kwargs(kwargs)
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
    if saved_output is not None and (
        not isinstance(saved_output, int) or isinstance(saved_output, bool) or saved_output < 0
    ):
        raise ConfigError(
            "saved_output", saved_output, "must be a number of bytes, or None for no limit"
        )
    if config is not None and nproc_per_node == "auto" and devices == "auto":
        nproc_per_node = config.nproc_per_node
    assigned = dev.assign_devices(devices, nproc_per_node, os.environ)
    if max_restarts is not None:
        config_fields["max_restarts"] = max_restarts
    if config is None:
        config = LaunchConfig(**{**DEFAULTS, **config_fields, "nproc_per_node": len(assigned)})
    else:
        config = replace(config, **{**config_fields, "nproc_per_node": len(assigned)})
    return LaunchRequest(
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
        saved_output=saved_output,
    )


def check_entrypoint(entrypoint: object) -> Entrypoint:
    """Returns the entrypoint if it is callable or a str. Raises ConfigError otherwise."""
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


def check_args(args: object) -> tuple[Any, ...]:
    """Returns the arguments as a tuple. Raises ConfigError if they are no list or tuple."""
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
    """Refuses arguments that the function can't take, since every rank would fail.

    Of a decorated function, the wrapper's signature counts. It may differ from the wrapped one's.
    """
    try:
        signature = inspect.signature(fn, follow_wrapped=False)  # type: ignore[arg-type]
    # A program has no signature, and some builtins give none. Since Python 3.14, an annotation may
    # name what doesn't exist.
    except (TypeError, ValueError, NameError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name, value = ("kwargs", kwargs) if kwargs else ("args", args)
        raise ConfigError(
            name, value, f"{name_of(fn)}{signature} can't be called so: {error}"
        ) from None


def _check_events(events: object) -> None:
    if events is not None and not isinstance(events, Events):
        raise ConfigError("events", events, "must be an icelaunch_nb.Events, or None")


def _command_line(entrypoint: str, args: tuple[Any, ...]) -> list[str]:
    """The command line of a program. This interpreter runs a script that isn't executable."""
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


def name_of(entrypoint: Entrypoint) -> str:
    """The name of a function or a program."""
    if isinstance(entrypoint, str):
        return entrypoint
    return getattr(entrypoint, "__qualname__", None) or type(entrypoint).__qualname__
