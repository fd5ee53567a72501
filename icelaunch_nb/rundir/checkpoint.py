"""``checkpoint.json``: the newest checkpoint that a rank reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.records import Rank, Record, Step, Time, parse_json, text
from icelaunch_nb.system import safe_open


@dataclass(eq=False, repr=False)
class Checkpoint(Record):
    """A checkpoint that a rank reported.

    Attributes:
        path: Where the checkpoint lies.
        time: When it was reported, in seconds since the epoch.
        rank: The global rank that reported it.
        step: The step that it belongs to.
    """

    path: Annotated[str, text(1 << 16)]
    time: Time = 0.0
    rank: Rank | None = None
    step: Step | None = None


def read_checkpoint(run_dir: RunDir) -> Checkpoint | None:
    """Reads the newest checkpoint. None: there is none, or it can't be read."""
    try:
        data = safe_open.read_whole(
            run_dir.open(run_dir.checkpoint, any_owner=True), run_dir.checkpoint
        )
        return Checkpoint.parse(parse_json(data))
    except (OSError, ValueError):
        return None


def write_checkpoint(run_dir: RunDir, checkpoint: Checkpoint) -> None:
    """Writes the newest checkpoint, which replaces the one before.

    Raises:
        OSError: The file can't be written.
    """
    run_dir.write_json(run_dir.checkpoint, checkpoint.to_json())
