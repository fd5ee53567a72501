"""Finding runs: what is running and what was, on this machine, by this user.

Every launch leaves a symbolic link to its run directory in the user's state directory, so runs with a `log_dir` of their own
are found too. A link whose directory is gone is dropped when it is met.
"""

from __future__ import annotations

import contextlib
import html
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from icelaunch_nb import retention
from icelaunch_nb.errors import ConfigError, IcelaunchError
from icelaunch_nb.run import Run
from icelaunch_nb.rundir import make_private


def remember(run_dir: Path) -> None:
    """Makes a run findable. Where the state directory can't be written (a read-only home), it stays findable by its path."""
    with contextlib.suppress(OSError):
        index = _index()
        make_private(index)
        (index / f"{time.time_ns():020d}_{secrets.token_hex(3)}").symlink_to(run_dir)


def attach(run_id: str | os.PathLike[str] | None = None) -> Run:
    """A run that another kernel launched, or that is over: the same handle with logs, controls, results and failures.

    Args:
        run_id: Its ``run_id`` or run directory; of several with one id, the newest. None: the newest run that lives.

    Raises:
        ConfigError: `run_id` is no text and no path.
        IcelaunchError: There is no such run.
    """
    if run_id is not None and not isinstance(run_id, str | os.PathLike):
        raise ConfigError(
            "run_id",
            run_id,
            "must be a run's id or directory, or None for the newest run that lives",
        )
    if run_id is not None and os.path.isdir(run_id):
        return Run(os.path.abspath(run_id)).hold()
    found = 0
    for run in _newest_first():
        found += 1
        if (run_id is None and not run.state.over) or run.run_id == run_id:
            return run.hold()
    if run_id is None:
        raise IcelaunchError(f"no run is alive; {found} are over: icelaunch_nb.runs() lists them")
    raise IcelaunchError(
        f"there is no run {os.fspath(run_id)!r}; icelaunch_nb.runs() lists {found}"
    )


def runs() -> Runs:
    """All runs that can be found, the newest first; shows as a table.

    Runs without a `log_dir` of their own are kept as long as there are at most ``ICELAUNCH_KEEP_RUNS`` (100) of them and as they take
    at most ``ICELAUNCH_KEEP_BYTES`` (10e9); both are environment variables, and ``inf`` keeps all. Living runs and those that a
    notebook still holds or shows stay in any case.
    """
    return Runs(_newest_first())


class Runs(list[Run]):
    """A list of runs that shows as a table."""

    def clean(self, keep: int = 10, keep_bytes: float = float("inf")) -> list[str]:
        """Removes the directories of old runs, never of one that lives or that somebody looks at.

        Args:
            keep: So many of the newest runs that are over stay.
            keep_bytes: Of those, the newest stay as long as they take no more than this on disk.

        Returns:
            The directories that were removed.

        Raises:
            ConfigError: One of them is negative or no number; nothing is removed.
        """
        for name, value in (("keep", keep), ("keep_bytes", keep_bytes)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ConfigError(name, value, "must be a number, 0 or more")
        over = [Path(run.log_dir) for run in self if run.state.over]
        return [str(path) for path in retention.sift(over, retention.Kept(keep, keep_bytes))]

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for run in self:
            story = run.story
            age = _duration(time.time() - run.started)
            yield (
                run.run_id,
                run.name,
                str(story.state),
                str(run.config.nproc_per_node),
                str(run.restarts),
                f"{age} ago",
                _duration(run.elapsed),
                _bytes(retention.size(Path(run.log_dir))),
                run.log_dir,
            )

    def __repr__(self) -> str:
        rows = [_HEAD, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in _HEAD)
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in self._rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_HEAD = (
    "run_id",
    "function",
    "state",
    "ranks",
    "restarts",
    "started",
    "took",
    "on disk",
    "log_dir",
)


def _index() -> Path:
    return platformdirs.user_state_path("icelaunch_nb") / "runs"


def _newest_first() -> Iterator[Run]:
    index = _index()
    with contextlib.suppress(FileNotFoundError):
        for link in sorted(index.iterdir(), reverse=True):
            try:
                yield Run(link.resolve(strict=True))
            except (OSError, IcelaunchError):
                with contextlib.suppress(OSError):
                    link.unlink()


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
