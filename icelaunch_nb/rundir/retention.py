"""Which runs are kept on disk, and how the others are removed.

The host removes old runs of the default directory (``icelaunch_nb-<uid>`` in the temporary
directory) after a launch, the oldest first. It keeps at most ``ICELAUNCH_KEEP_RUNS`` (100), which
take at most ``ICELAUNCH_KEEP_BYTES`` (10e9) on disk. ``inf`` keeps all. Runs in a `log_dir` of the
user's own are removed only by ``icelaunch_nb.runs().clean()``. Neither removes a living run, or one
that a process has pinned.

A process pins a run by a file in ``watchers/`` that is named after the process. A lock would need a
descriptor for each finished run that a notebook still shows. The name also shows whether the
process is gone.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import stat
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from icelaunch_nb.errors import ConfigError
from icelaunch_nb.rundir.journal import read_events
from icelaunch_nb.rundir.journal_events import AgentStarted, Ended
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.system.processes import Process

# The beginning of a directory's name while it is being removed.
_REMOVED_PREFIX = ".gone-"
# Seconds after which a run without an agent doesn't count as starting any more.
_MAX_STARTING_TIME = 86400.0


class Limits(NamedTuple):
    """How many runs are kept, and how much space they may take.

    Attributes:
        runs: The greatest number of runs.
        bytes: The greatest number of bytes that they take on disk.
    """

    runs: float = 100
    bytes: float = 10e9


def limits(environ: Mapping[str, str]) -> Limits:
    """Reads the limits from environment variables.

    Raises:
        ConfigError: One of the variables is not a number, 0 or more.
    """
    values = []
    for name, default in (
        ("ICELAUNCH_KEEP_RUNS", Limits().runs),
        ("ICELAUNCH_KEEP_BYTES", Limits().bytes),
    ):
        text = environ.get(name, "")
        try:
            value = float(text or default)
        except ValueError:
            value = math.nan
        if not value >= 0:
            raise ConfigError(name, text, "must be a number, 0 or more, or inf")
        values.append(value)
    return Limits(*values)


def remove_old(base: Path, keep: Limits, sizes: dict[Path, int] | None = None) -> list[Path]:
    """Removes the oldest runs in `base`, and finishes removals that were interrupted.

    Args:
        base: The parent directory of the runs.
        keep: The limits.
        sizes: Bytes on disk of the runs that were over at the call before. The call brings it up to
            date. It saves time: measuring 100 runs takes 45 ms.

    Returns:
        The directories that were removed.
    """
    sizes = {} if sizes is None else sizes
    with contextlib.suppress(OSError):
        paths = []
        for entry in os.scandir(base):
            path = Path(entry.path)
            if entry.name.startswith(_REMOVED_PREFIX):
                shutil.rmtree(path, ignore_errors=True)
            elif path in sizes or _is_own_run(path):
                paths.append(path)
        paths.sort(key=_age)
        for path in sizes.keys() - set(paths):
            del sizes[path]
        for path in set(paths) - sizes.keys():
            if not is_living(path):
                sizes[path] = size(path)
        return prune(paths, keep, sizes)
    return []


def prune(
    newest_first: Iterable[Path], keep: Limits, sizes: Mapping[Path, int] | None = None
) -> list[Path]:
    """Removes the runs beyond the limits, except living and pinned ones. These count, too.

    Args:
        newest_first: Directories of runs, the newest first.
        keep: The limits.
        sizes: Bytes that the runs take on disk, as far as that is known.

    Returns:
        The directories that were removed.
    """
    removed, number, used, known = [], 0, 0.0, sizes or {}
    for path in newest_first:
        number, used = number + 1, used + (known[path] if path in known else size(path))
        if (
            (number > keep.runs or used > keep.bytes)
            and not is_living(path)
            and not is_pinned(path)
            and remove(path)
        ):
            removed.append(path)
    return removed


def is_living(path: Path) -> bool:
    """Whether a run may still go on: its journal has no end, and its agent may be alive."""
    try:
        events, _ = read_events(RunDir(path).journal, 0)
    except OSError:
        return True
    if any(isinstance(event, Ended) for event in events):
        return False
    for event in events:
        if isinstance(event, AgentStarted):
            return event.process.alive()
    return _age(path) < _MAX_STARTING_TIME


def remove(path: Path) -> bool:
    """Removes a run's directory.

    The directory disappears at once, so nobody attaches to one that is partly removed.

    Returns:
        Whether the directory was removed.
    """
    gone = path.with_name(f"{_REMOVED_PREFIX}{path.name}")
    try:
        path.rename(gone)
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def pin(path: Path) -> Callable[[], object]:
    """Keeps a run from being removed.

    Returns:
        A function that ends that.
    """
    me = Process.of(os.getpid())
    run_dir = RunDir(path)
    mark = run_dir.watchers / f"{os.getpid()}-{me.started if me else 0}-{os.urandom(4).hex()}"
    try:
        mark.parent.mkdir(mode=0o700, exist_ok=True)
        os.close(run_dir.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    # The disk is full, or the directory belongs to another user.
    except OSError:
        return lambda: None
    return lambda: _unmark(mark)


def pin_while(holder: object, path: Path) -> None:
    """Keeps a run from being removed as long as the object `holder` lives."""
    weakref.finalize(holder, pin(path))


def is_pinned(path: Path) -> bool:
    """Whether a living process has pinned a run."""
    with contextlib.suppress(OSError):
        for mark in os.listdir(RunDir(path).watchers):
            pid, _, rest = mark.partition("-")
            with contextlib.suppress(ValueError, OverflowError):
                if Process(int(pid), float(rest.partition("-")[0])).alive():
                    return True
    return False


def size(path: Path) -> int:
    """Bytes that a directory takes on disk. Sparse blocks count as the file system counts them."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def _unmark(mark: Path) -> None:
    # A forked copy of the process leaves the mark alone.
    if mark.name.startswith(f"{os.getpid()}-"):
        with contextlib.suppress(OSError):
            mark.unlink()


def _is_own_run(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and RunDir(path).control.exists()
    )


def _age(path: Path) -> float:
    """Seconds since the launch."""
    try:
        return time.time() - RunDir(path).control.stat().st_ctime
    except OSError:
        return 0.0
