"""Finds the runs of this user on this machine, running or over.

Runs without a `log_dir` lie in the default directory. Every launch also leaves a symbolic link to
its run directory, so that other runs are found: in the user's state directory, or in the temporary
directory if there is no home that can be written to. A link whose directory is gone is removed when
it is read.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from icelaunch_nb.client.run import Run
from icelaunch_nb.client.run_monitor import RunMonitor
from icelaunch_nb.errors import ConfigError, IcelaunchError, NotARunError, UnreadableRunError
from icelaunch_nb.rundir import retention
from icelaunch_nb.rundir.journal_events import unreadable_end
from icelaunch_nb.rundir.paths import RunDir, default_log_dir, default_log_dirs, make_private
from icelaunch_nb.rundir.run_state import RunState
from icelaunch_nb.rundir.spec import RunSpec, parse_spec
from icelaunch_nb.system.plaintext import as_of, one_line
from icelaunch_nb.system.userdirs import state_dir

_INDEX = "index"


def add_to_index(run_dir: Path) -> None:
    """Leaves a link to a run. Without the link, the run can be found by its path alone."""
    state = state_dir()
    if state is not None:
        # There may be no home, or one that is read-only.
        with contextlib.suppress(OSError):
            _add_link(state / "runs", run_dir)
            return
    with contextlib.suppress(OSError, ConfigError):
        _add_link(default_log_dir(shared=True) / _INDEX, run_dir)


def _add_link(index: Path, run_dir: Path) -> None:
    make_private(index)
    (index / f"{time.time_ns():020d}_{os.urandom(3).hex()}").symlink_to(run_dir)


def attach(run_id: str | os.PathLike[str] | None = None) -> Run:
    """Gives a handle on a run that another kernel launched, or that is over.

    The handle has the run's logs, controls, results and failures.

    Args:
        run_id: The ``run_id`` or the run directory. Several runs may have one id: this gives the
            newest. A name without a slash is an id before it is a directory. None: the newest run
            that is alive.

    Raises:
        ConfigError: `run_id` is neither a str nor a path.
        IcelaunchError: There is no such run, or it can't be read.
    """
    if run_id is not None and not isinstance(run_id, str | os.PathLike):
        raise ConfigError(
            "run_id",
            run_id,
            "must be a run's id or directory, or None for the newest run that lives",
        )
    # A directory here may have the name of an id by chance.
    is_id = isinstance(run_id, str) and os.sep not in run_id
    if run_id is not None and not is_id and os.path.isdir(run_id):
        return Run(os.path.abspath(run_id))._pin()
    found, unreadable = 0, None
    for run in _newest_first():
        found += 1
        if isinstance(run, UnreadableRun):
            unreadable = unreadable or (run if run.run_id == run_id else None)
        elif (run_id is None and not run.state.over) or run.run_id == run_id:
            return run._pin()
    if run_id is None:
        raise IcelaunchError(f"no run is alive; {found} are over: icelaunch_nb.runs() lists them")
    if unreadable is not None:
        raise UnreadableRunError(unreadable.reason)
    if is_id and os.path.isdir(run_id):
        return Run(os.path.abspath(run_id))._pin()
    raise IcelaunchError(
        f"there is no run {os.fspath(run_id)!r}; icelaunch_nb.runs() lists {found}"
    )


def runs() -> Runs:
    """Lists all runs that can be found, the newest first. The list shows as a table.

    A run whose files can't be read is listed as UNREADABLE.

    Of the runs without a `log_dir`, the newest are kept: ``ICELAUNCH_KEEP_RUNS`` (100) at most, and
    as long as they take no more than ``ICELAUNCH_KEEP_BYTES`` (10e9) on disk. Both are environment
    variables, and ``inf`` keeps all. Runs that are alive, and runs that a notebook holds or shows,
    are always kept.
    """
    return Runs(_newest_first())


class Runs(list[Run]):
    """A list of runs that shows as a table."""

    def clean(self, keep: int = 10, keep_bytes: float = float("inf")) -> list[str]:
        """Removes the directories of old runs, but of none that is alive or shown somewhere.

        Args:
            keep: Number of runs that are over to keep, the newest.
            keep_bytes: Bytes that the kept runs may take on disk. The oldest beyond it are removed.

        Returns:
            The directories that were removed.

        Raises:
            ConfigError: An argument is negative or no number. Nothing is removed.
        """
        for name, value in (("keep", keep), ("keep_bytes", keep_bytes)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ConfigError(name, value, "must be a number, 0 or more")
        over = [Path(run.log_dir) for run in self if run.state.over]
        return [str(path) for path in retention.prune(over, retention.Limits(keep, keep_bytes))]

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for run in self:
            run_state = run._run_state
            age = _format_duration(time.time() - run.started)
            row = (
                run.run_id,
                run.name,
                run_state.state,
                run.config.nproc_per_node,
                run.restarts,
                f"{age} ago",
                _format_duration(run.elapsed),
                _format_bytes(retention.size(Path(run.log_dir))),
                run.log_dir,
            )
            yield tuple(one_line(cell) for cell in row)

    def __repr__(self) -> str:
        rows = [_COLUMNS, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._as_of()])

    def _repr_html_(self) -> str:
        import html

        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in _COLUMNS)
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in self._rows()
        )
        when = "".join(f"<div style='opacity: 0.65'>{line}</div>" for line in self._as_of())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{when}"

    def _as_of(self) -> list[str]:
        return [as_of()] if any(not run.state.over for run in self) else []


_COLUMNS = (
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


class UnreadableRun(Run):
    """A run whose files were damaged, made up, or written by a newer version.

    It can be listed, stopped and removed.

    Args:
        path: The run directory.
        reason: What can't be read.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(RunDir(path))

    def _read_spec(self) -> RunSpec:
        try:
            launched = self._dir.path.lstat().st_ctime
        except OSError:
            launched = time.time()
        return parse_spec(
            {"run_id": re.sub("_.{8}$", "", self._dir.path.name), "name": "?", "time": launched}
        )

    def _make_monitor(self) -> RunMonitor:
        return _UnreadableMonitor(self._dir, self.started, self.reason)

    def __repr__(self) -> str:
        return one_line(f"<Run {self.run_id}: {self.state}, {self.reason}>")


class _UnreadableMonitor(RunMonitor):
    """Gives the state UNREADABLE, with the reason."""

    def __init__(self, run_dir: RunDir, launched: float, reason: str) -> None:
        super().__init__(run_dir, launched)
        self._state = RunState().after(unreadable_end(launched, reason))

    @property
    def last(self) -> RunState:
        return self._state

    def poll(self) -> RunState:
        return self._state


def _newest_first() -> Iterator[Run]:
    links, times = {}, {}
    for link in _read_links():
        path = os.path.realpath(link)
        links[path] = link
        times[path] = int(link.name.partition("_")[0]) if link.name[:20].isdigit() else 0
    for base in default_log_dirs():
        with contextlib.suppress(OSError):
            for name in os.listdir(base):
                run_dir = RunDir(base.resolve() / name)
                # The directory holds no run, or no spec yet.
                with contextlib.suppress(OSError):
                    times.setdefault(str(run_dir.path), run_dir.spec.stat().st_mtime_ns)
    for path in sorted(times, key=lambda path: times[path], reverse=True):
        try:
            run = _open_run(Path(path))
        except NotARunError:
            if path in links:
                with contextlib.suppress(OSError):
                    links[path].unlink()
        else:
            yield run


def _open_run(path: Path) -> Run:
    """Opens the run in a directory, also one that can't be read.

    Raises:
        NotARunError: The directory holds no run.
    """
    try:
        run = Run(path)
        # This reads the journal, which can be as damaged as the spec.
        run.state  # noqa: B018
        return run
    except NotARunError:
        raise
    except (OSError, IcelaunchError) as error:
        return UnreadableRun(path, str(error))


def _read_links() -> Iterator[Path]:
    state = state_dir()
    for index in ([state / "runs"] if state else []) + [
        base / _INDEX for base in default_log_dirs(shared=True)
    ]:
        with contextlib.suppress(OSError):
            yield from index.iterdir()


def _format_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _format_duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
