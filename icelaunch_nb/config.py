"""LaunchConfig: what to launch and how, checked before any process starts.

Fields, order and defaults are those of ice-learn's ``launch_agent`` page, which are torch's of that
time. torch isn't imported, since a kernel that only launches doesn't need it.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntFlag
from typing import Any, TypeVar

from icelaunch_nb.errors import ConfigError
from icelaunch_nb.system.suggestions import closest, nearest

START_METHODS = ("spawn", "fork", "forkserver")
RDZV_BACKENDS = ("c10d", "static", "etcd", "etcd-v2")
DEFAULT_RDZV_TIMEOUT = 900
# Seconds. poll() and torch's timeouts take no more than 24 days.
_MAX_SECONDS = 1_000_000


class Std(IntFlag):
    """The standard streams of a rank. The numbers are torchrun's."""

    NONE = 0
    OUT = 1
    ERR = 2
    ALL = OUT | ERR

    @classmethod
    def parse(cls, value: object, *, field: str = "std") -> Std | dict[int, Std]:
        """Parses any of the accepted spellings.

        Args:
            value: A `Std` (or torch's), an int from 0 to 3, torchrun's strings ``"3"`` and
                ``"0:1,1:2"``, or a mapping from local rank to any of the single spellings.
            field: The field's name, for the message.

        Returns:
            One `Std` for all ranks, or one by local rank.

        Raises:
            ConfigError: `value` is none of these.
        """
        remedy = (
            "must be 0 to 3 (1 stdout, 2 stderr, 3 both), "
            'such a number by local rank ("0:1,1:3"), or a dict of them'
        )
        try:
            if isinstance(value, Mapping):
                return cls._parse_by_rank(value.items())
            if isinstance(value, str) and ":" in value:
                return cls._parse_by_rank(part.split(":") for part in value.split(","))
            return cls._parse_one(value)
        except (ValueError, TypeError):
            raise ConfigError(field, value, remedy) from None

    @classmethod
    def _parse_by_rank(cls, pairs: Iterable[Any]) -> dict[int, Std]:
        found: dict[int, Std] = {}
        for rank, one in pairs:
            if _parse_local_rank(rank) in found:
                raise ValueError("a local rank is listed twice")
            found[_parse_local_rank(rank)] = cls._parse_one(one)
        return found

    @classmethod
    def _parse_one(cls, value: object) -> Std:
        if isinstance(value, str):
            if not re.fullmatch(r"\s*[0-3]\s*", value):
                raise ValueError(value)
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 3:
            raise ValueError(value)
        return cls(int(value))


def _parse_local_rank(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(value)
    rank = int(value)
    if rank < 0:
        raise ValueError(value)
    return rank


C = TypeVar("C", bound=type)


def _suggest_field_names(cls: C) -> C:
    """Has the constructor name the nearest field, where a dataclass only refuses the keyword."""
    original = cls.__init__  # type: ignore[misc]
    names = [f.name for f in fields(cls)]

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in names:
                raise ConfigError(
                    name, kwargs[name], f"LaunchConfig has no such field; {nearest(name, names)}"
                )
        original(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


@_suggest_field_names
@dataclass
class LaunchConfig:
    """Creates a launch configuration.

    Args:
        min_nodes: Least number of nodes that the function is launched on. It starts once so many
            have entered the rendezvous.
        max_nodes: Greatest number of nodes that the function is launched on.
        nproc_per_node: Number of ranks on each node.
        run_id: Unique id of the run. An empty one gets a generated one, shown as `Run.run_id`.
        role: User defined role of the ranks.
        rdzv_endpoint: ``host:port`` of the rendezvous. Empty with one node: an embedded store that
            listens on loopback only.
        rdzv_backend: Backend used with `rdzv_endpoint`: ``c10d``, ``static``, ``etcd`` or
            ``etcd-v2``.
        rdzv_configs: The backend's settings, such as ``{"timeout": 60, "join_timeout": 60}``.
            ``static`` with several nodes needs this node's ``rank``.
        rdzv_timeout: Legacy spelling of ``rdzv_configs["timeout"]``, in seconds. -1: not given,
            which means 900.
        max_restarts: How often the ranks may be restarted after a failure.
        monitor_interval: Seconds between two checks whether other nodes want to join. The end of a
            rank is noticed at once, whatever this says.
        start_method: How ranks are started: ``forkserver`` (warm: tens of milliseconds), ``spawn``
            (a new interpreter each: seconds) or ``fork`` (from the agent). The kernel itself is
            never forked.
        log_dir: Base directory for logs. Each run makes its directory in it. None: one in the
            temporary directory. It is kept.
        redirects: Streams that go to files only and are not shown. Every stream is on disk,
            whatever this says.
        tee: Streams that are shown as well as kept, even if `redirects` names them too.
        metrics_cfg: Settings of torch elastic's metrics. ``{"handler": "console"}`` writes them to
            the agent's log.

    Raises:
        ConfigError: A field can't work. The message names field, value and remedy.
    """

    min_nodes: int
    max_nodes: int
    nproc_per_node: int
    run_id: str = ""
    role: str = "default_role"
    rdzv_endpoint: str = ""
    rdzv_backend: str = "etcd"
    rdzv_configs: dict[str, Any] = field(default_factory=dict)
    rdzv_timeout: int = -1
    max_restarts: int = 3
    monitor_interval: float = 30
    start_method: str = "spawn"
    log_dir: str | None = None
    redirects: Std | dict[int, Std] = Std.NONE
    tee: Std | dict[int, Std] = Std.NONE
    metrics_cfg: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Checks every field. Launching calls it again, since fields can be assigned meanwhile.

        Raises:
            ConfigError: A field can't work.
        """
        for name, least in (
            ("min_nodes", 1),
            ("max_nodes", 1),
            ("nproc_per_node", 1),
            ("max_restarts", 0),
        ):
            _check_int(name, getattr(self, name), least)
        if self.min_nodes > self.max_nodes:
            raise ConfigError(
                "min_nodes", self.min_nodes, f"must not be greater than max_nodes={self.max_nodes}"
            )
        for name in ("run_id", "role", "rdzv_endpoint", "rdzv_backend", "start_method"):
            _check_text(name, getattr(self, name))
        if not self.role:
            raise ConfigError("role", self.role, "must not be empty")
        _check_one_of("start_method", self.start_method, START_METHODS)
        _check_one_of("rdzv_backend", self.rdzv_backend, RDZV_BACKENDS)
        self._validate_rendezvous()
        _check_number("monitor_interval", self.monitor_interval, "seconds, greater than 0")
        if self.log_dir is not None:
            self.log_dir = _check_directory(self.log_dir)
        self.redirects = Std.parse(self.redirects, field="redirects")
        self.tee = Std.parse(self.tee, field="tee")
        for name in ("redirects", "tee"):
            by_rank = getattr(self, name)
            beyond = (
                [r for r in by_rank if r >= self.nproc_per_node]
                if isinstance(by_rank, dict)
                else []
            )
            if beyond:
                raise ConfigError(
                    name,
                    by_rank,
                    f"local rank {beyond[0]} does not exist with "
                    f"nproc_per_node={self.nproc_per_node}",
                )
        if not isinstance(self.metrics_cfg, Mapping) or not all(
            isinstance(k, str) and isinstance(v, str) for k, v in self.metrics_cfg.items()
        ):
            raise ConfigError("metrics_cfg", self.metrics_cfg, "must be a dict from str to str")
        self.metrics_cfg = dict(self.metrics_cfg)
        if self.metrics_cfg.get("handler", "null") not in ("null", "console"):
            raise ConfigError(
                "metrics_cfg", self.metrics_cfg, 'its "handler" must be "null" or "console"'
            )

    def _validate_rendezvous(self) -> None:
        if not isinstance(self.rdzv_configs, Mapping):
            raise ConfigError("rdzv_configs", self.rdzv_configs, "must be a dict")
        if (
            isinstance(self.rdzv_timeout, bool)
            or not isinstance(self.rdzv_timeout, int)
            or (self.rdzv_timeout != -1 and self.rdzv_timeout <= 0)
        ):
            raise ConfigError(
                "rdzv_timeout",
                self.rdzv_timeout,
                "must be seconds greater than 0, or -1 for the default",
            )
        reserved = [
            name
            for name in ("backend", "endpoint", "run_id", "min_nodes", "max_nodes", "local_addr")
            if name in self.rdzv_configs
        ]
        if reserved:
            raise ConfigError(
                "rdzv_configs",
                self.rdzv_configs,
                f"{reserved[0]!r} has a field of its own or follows from one",
            )
        timeout = (
            self.rdzv_timeout
            if self.rdzv_timeout != -1
            else self.rdzv_configs.get("timeout", DEFAULT_RDZV_TIMEOUT)
        )
        _check_number('rdzv_configs["timeout"]', timeout, "seconds, greater than 0")
        self.rdzv_configs = {**self.rdzv_configs, "timeout": timeout}
        try:
            json.dumps(self.rdzv_configs)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                "rdzv_configs",
                self.rdzv_configs,
                f"must hold numbers, strings and booleans only: {error}",
            ) from None
        if self.rdzv_backend == "c10d" and self.rdzv_configs.get("store_type", "tcp") not in (
            "tcp",
            "file",
        ):
            raise ConfigError(
                "rdzv_configs", self.rdzv_configs, 'its "store_type" must be "tcp" or "file"'
            )
        if self.rdzv_endpoint:
            host, colon, port = self.rdzv_endpoint.rpartition(":")
            if any(c.isspace() or not c.isprintable() for c in self.rdzv_endpoint) or (
                colon
                and "]" not in port
                and (not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535)
            ):
                raise ConfigError(
                    "rdzv_endpoint",
                    self.rdzv_endpoint,
                    "must be host:port with a port from 0 to 65535",
                )
        elif self.max_nodes > 1:
            raise ConfigError(
                "rdzv_endpoint",
                self.rdzv_endpoint,
                f"max_nodes={self.max_nodes} needs a place to meet: "
                "set rdzv_endpoint='host:port' (and rdzv_backend='c10d')",
            )
        if self.rdzv_backend == "static" and self.rdzv_endpoint:
            if ":" not in self.rdzv_endpoint:
                raise ConfigError(
                    "rdzv_endpoint",
                    self.rdzv_endpoint,
                    "rdzv_backend='static' needs a port: host:port",
                )
            rank = self.rdzv_configs.get("rank", 0 if self.max_nodes == 1 else None)
            if (
                isinstance(rank, bool)
                or not isinstance(rank, int)
                or not 0 <= rank < self.max_nodes
            ):
                raise ConfigError(
                    "rdzv_configs",
                    self.rdzv_configs,
                    f"rdzv_backend='static' needs this node's \"rank\", 0 to {self.max_nodes - 1}",
                )

    def shown(self, local_rank: int) -> Std:
        """The streams of a local rank to show: teed ones, and those that no field redirects."""
        return _std_of_rank(self.tee, local_rank) | (
            Std.ALL & ~_std_of_rank(self.redirects, local_rank)
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values, for the run directory."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LaunchConfig:
        """Makes a config of the values of `to_json`. Fields of a newer version are ignored.

        `log_dir` may lie on another machine, so it isn't checked that it can be written to.

        Raises:
            ConfigError: A field can't work.
            TypeError: A field without a default is missing.
        """
        log_dir = data.get("log_dir")
        if log_dir is not None:
            _check_text("log_dir", log_dir)
        config = cls(
            **{f.name: data[f.name] for f in fields(cls) if f.name in data and f.name != "log_dir"}
        )
        config.log_dir = log_dir
        return config


def _std_of_rank(std: Std | dict[int, Std], local_rank: int) -> Std:
    return std.get(local_rank, Std.NONE) if isinstance(std, dict) else std


def _check_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(name, value, "must be an int")
    if value < least:
        raise ConfigError(name, value, f"must be at least {least}")
    if value > 100_000:
        raise ConfigError(name, value, "must be at most 100000")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigError(name, value, "must be a str")
    if "\0" in value:
        raise ConfigError(name, value, "must not hold a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError(name, value, "must be text that can be encoded as UTF-8") from None


def _check_one_of(name: str, value: str, words: Sequence[str]) -> None:
    if value not in words:
        close = closest(value, words)
        raise ConfigError(
            name,
            value,
            f"must be one of {', '.join(words)}" + (f"; did you mean {close!r}?" if close else ""),
        )


def _check_number(name: str, value: object, what: str) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= _MAX_SECONDS
    ):
        raise ConfigError(name, value, f"must be {what} and at most {_MAX_SECONDS:,}")


def _check_directory(value: object) -> str:
    """The absolute path of `log_dir`, after a check that a directory can be made in it."""
    try:
        path = os.path.abspath(os.path.expanduser(os.fspath(value)))  # type: ignore[call-overload]
        if not isinstance(path, str) or "\0" in path or not path or value == "":
            raise TypeError
        os.fsencode(path)
    # A lone surrogate, a NUL in a user's name, or a relative path in a directory that is gone.
    except (TypeError, ValueError, OSError):
        raise ConfigError("log_dir", value, "must be the path of a directory, or None") from None
    user = str(value).split(os.sep)[0]
    if user.startswith("~") and os.path.expanduser(user) == user and not os.path.isdir(user):
        raise ConfigError(
            "log_dir", value, f"there is no home directory for {user}: write out the path"
        )
    existing = path
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise ConfigError(
            "log_dir",
            value,
            f"{existing} is not a directory" if existing != path else "is a file, not a directory",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError("log_dir", value, f"{existing} can't be written to")
    return path


Entrypoint = Callable[..., Any] | str
