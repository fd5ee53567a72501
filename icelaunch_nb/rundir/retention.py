"""Which runs are kept on disk, and the removal of the others.

Runs in the default place (``icelaunch_nb-<uid>`` in the temporary directory) are kept as long as there are at most
``ICELAUNCH_KEEP_RUNS`` of them (100) and as they take at most ``ICELAUNCH_KEEP_BYTES`` (10e9); ``inf`` keeps all. The oldest go first;
the host sees to it after launches. What lies in a `log_dir` of the user's own goes only by ``icelaunch_nb.runs().clean()``.
Neither removes a run that lives, or one that somebody looks at.

Whoever looks at a run leaves a file named after its own process in ``watchers/``. No lock: that would take a descriptor for each
finished run that a notebook still shows, and a mark of a process that is gone says so by itself.
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

_GONE = ".gone-"  # what a directory's name begins with while it is being removed
_UNBORN = 86400.0  # seconds after which a directory without an agent is nobody's


class Limits(NamedTuple):
    """How much is kept.

    Attributes:
        runs: So many.
        bytes: As long as they take no more than this on disk.
    """

    runs: float = 100
    bytes: float = 10e9


def limits(environ: Mapping[str, str]) -> Limits:
    """What the environment says.

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
    """Removes the oldest runs in `base`, and what an earlier removal left half done.

    Args:
        base: Where they lie.
        keep: How much of them is kept.
        sizes: What runs that are over took on disk at the call before; it is kept up to date. Measuring 100 runs takes 45 ms.

    Returns:
        What was removed.
    """
    sizes = {} if sizes is None else sizes
    with contextlib.suppress(OSError):
        paths = []
        for entry in os.scandir(base):
            path = Path(entry.path)
            if entry.name.startswith(_GONE):
                shutil.rmtree(path, ignore_errors=True)
            elif path in sizes or _ours(path):
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
    """Removes those beyond what is kept, except living ones and ones that somebody looks at; these count, too.

    Args:
        newest_first: Directories of runs.
        keep: How much of them is kept.
        sizes: What they take on disk, as far as that is known.

    Returns:
        What was removed.
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
    """Whether something may still happen in a run: its journal has no end, and nobody knows its agent to be gone."""
    try:
        events, _ = read_events(RunDir(path).journal, 0)
    except OSError:
        return True
    if any(isinstance(event, Ended) for event in events):
        return False
    for event in events:
        if isinstance(event, AgentStarted):
            return event.process.alive()
    return _age(path) < _UNBORN


def remove(path: Path) -> bool:
    """Removes a run's directory; whether it did. It disappears at once, so nobody attaches to a half of it."""
    gone = path.with_name(f"{_GONE}{path.name}")
    try:
        path.rename(gone)
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def pin(path: Path) -> Callable[[], object]:
    """Marks a run as looked at by this process, until the answer is called."""
    me = Process.of(os.getpid())
    run_dir = RunDir(path)
    mark = run_dir.watchers / f"{os.getpid()}-{me.started if me else 0}-{os.urandom(4).hex()}"
    try:
        mark.parent.mkdir(mode=0o700, exist_ok=True)
        os.close(run_dir.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:  # a full disk, somebody else's directory
        return lambda: None
    return lambda: _unmark(mark)


def pin_while(holder: object, path: Path) -> None:
    """Marks a run as looked at as long as `holder` lives."""
    weakref.finalize(holder, pin(path))


def is_pinned(path: Path) -> bool:
    """Whether a living process looks at a run."""
    with contextlib.suppress(OSError):
        for mark in os.listdir(RunDir(path).watchers):
            pid, _, rest = mark.partition("-")
            with contextlib.suppress(ValueError, OverflowError):
                if Process(int(pid), float(rest.partition("-")[0])).alive():
                    return True
    return False


def size(path: Path) -> int:
    """Bytes on disk, sparse and shared blocks as the file system counts them."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def _unmark(mark: Path) -> None:
    if mark.name.startswith(f"{os.getpid()}-"):  # not in a forked copy of the process
        with contextlib.suppress(OSError):
            mark.unlink()


def _ours(path: Path) -> bool:
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
