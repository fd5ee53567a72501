"""``spec.json``: the settings of a run. `launch` writes it once, other processes read it."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from typing import Annotated, Any

from icelaunch_nb.config import LaunchConfig
from icelaunch_nb.errors import ConfigError, NotARunError, UnreadableRunError, UntrustedFileError
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.records import (
    Bool,
    InvalidValueError,
    Record,
    Text,
    Time,
    items,
    number,
    parse_json,
    whole,
)

# Of the whole run directory. It rises when a reader of an older version would misread a new one.
FORMAT = 1

# Bytes of the ranks' output that a notebook keeps when it is executed without a browser.
SAVED_OUTPUT = 64 << 10
_MAX_RANKS = 100_000


@dataclass(eq=False, repr=False)
class RunSpec(Record):
    """The settings of a run.

    Attributes:
        run_id: The config's run_id, or the generated one.
        name: The function's name, or the program's.
        time: When the run was launched, in seconds since the epoch.
        config: The launch configuration.
        format: The version of the run directory's format; 0: written before there were versions.
        program: The program and its arguments, for a run of a program; empty for a function.
        devices: The device of each rank of a node, by local rank: ``"cpu"``, ``"cuda:1"``.
        set_device: Whether a rank's device becomes CUDA's current device.
        sensible_restarts: Whether a failure that no retry can cure is not retried.
        post_mortem: Whether a rank stops in the debugger where it raises.
        hang_after: Seconds of silence after which a rank is called hung; None: never.
        saved_output: The most bytes of output that a notebook keeps when it is executed without a
            browser; None: no limit.
        threads: The argument of ``torch.set_num_threads`` in each rank; None: it isn't called.
        loopback: The loopback interface, if the ranks connect over it; None: they don't.
        detach: Whether the run outlives its kernel.
        python: The version of the kernel's Python.
    """

    run_id: Text
    name: Text
    time: Time
    config: LaunchConfig = field(default_factory=lambda: LaunchConfig(1, 1, 1))
    format: Annotated[int, whole(0, 1 << 31)] = 0
    program: Annotated[list[Text], items(0, 1_000_000)] = field(default_factory=list)
    devices: Annotated[list[Text], items(0, _MAX_RANKS)] = field(default_factory=list)
    set_device: Bool = False
    sensible_restarts: Bool = False
    post_mortem: Bool = False
    hang_after: Annotated[float, number(0, 1e9)] | None = None
    saved_output: Annotated[int, whole(0, 1 << 62)] | None = SAVED_OUTPUT
    threads: Annotated[int, whole(1, 1_000_000)] | None = None
    loopback: Text | None = None
    detach: Bool = False
    python: Text = ""

    @property
    def nproc_per_node(self) -> int:
        """Number of ranks on each node."""
        return self.config.nproc_per_node


def parse_spec(data: Any) -> RunSpec:
    """Makes a spec of a JSON object, and checks it. Fields that are missing have their defaults.

    Raises:
        InvalidValueError: A field has a wrong value, or a newer version wrote the format.
    """
    if type(data) is dict:
        if type(data.get("format")) is int and data["format"] > FORMAT:
            raise InvalidValueError(
                f"format={data['format']}: written by a newer icelaunch_nb; "
                f"this one reads formats up to {FORMAT}"
            )
        devices = data.get("devices")
        ranks = max(1, len(devices)) if type(devices) is list else 1
        data = {
            **data,
            "config": _parse_config(
                data.get("config", {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": ranks})
            ),
        }
        data["devices"] = devices or ["cpu"] * data["config"].nproc_per_node
    spec = RunSpec.parse(data)
    if len(spec.devices) != spec.nproc_per_node:
        raise InvalidValueError(
            f"devices={spec.devices!r:.100}: must be {spec.nproc_per_node}, one for each rank"
        )
    return spec


def _parse_config(data: Any) -> LaunchConfig:
    if type(data) is not dict:
        raise InvalidValueError(f"config={data!a:.100}: must be a JSON object")
    try:
        return LaunchConfig.from_json(data)
    except (ConfigError, TypeError) as error:
        raise InvalidValueError(f"config: {error}") from None


def read_spec(run_dir: RunDir) -> RunSpec:
    """Reads the spec of a run.

    Raises:
        NotARunError: There is no ``spec.json``.
        UnreadableRunError: The file can't be read, or a field has a wrong value.
        UntrustedFileError: The directory or the file belongs to another user or is of another kind.
    """
    try:
        return parse_spec(parse_json(run_dir.read(run_dir.spec)))
    except UntrustedFileError:
        raise
    except OSError as error:
        kind = NotARunError if error.errno in (errno.ENOENT, errno.ENOTDIR) else UnreadableRunError
        raise kind(
            f"{run_dir.path} is not the directory of a run: "
            f"{error.filename or run_dir.spec}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise UnreadableRunError(
            f"{run_dir.path} is not the directory of a run that can be read: "
            f"{run_dir.spec.name}: {error}"
        ) from None


def write_spec(run_dir: RunDir, spec: RunSpec) -> None:
    """Writes the spec of a new run.

    Raises:
        OSError: The file can't be written.
    """
    run_dir.write(run_dir.spec, json.dumps({**spec.to_json(), "format": FORMAT}))
