"""``checkpoint.json``: the newest checkpoint that a rank told of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.records import Rank, Record, Step, Time, parse_json, text
from icelaunch_nb.system import safe_open


@dataclass(eq=False, repr=False)
class Checkpoint(Record):
    """A checkpoint.

    Attributes:
        path: Where it lies.
        time: When that was told, in seconds since the epoch.
        rank: By which rank.
        step: At which step.
    """

    path: Annotated[str, text(1 << 16)]
    time: Time = 0.0
    rank: Rank | None = None
    step: Step | None = None


def read_checkpoint(run_dir: RunDir) -> Checkpoint | None:
    """The newest checkpoint; None: there is none that can be read."""
    try:
        data = safe_open.read_whole(
            run_dir.open(run_dir.checkpoint, any_owner=True), run_dir.checkpoint
        )
        return Checkpoint.parse(parse_json(data))
    except (OSError, ValueError):
        return None


def write_checkpoint(run_dir: RunDir, checkpoint: Checkpoint) -> None:
    """Tells of a checkpoint.

    Raises:
        OSError: It can't be written.
    """
    run_dir.write_json(run_dir.checkpoint, checkpoint.to_json())
