"""Finds out why a rank ended, from its error file, its exit code, its stderr and its cgroup."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import sys
from pathlib import Path

from icelaunch_nb.errors import Failure
from icelaunch_nb.rundir import disk_reserve
from icelaunch_nb.rundir.error_file import RankError, read_error
from icelaunch_nb.rundir.paths import RankDir
from icelaunch_nb.system import files, safe_open
from icelaunch_nb.system.exit_codes import signal_name

_STDERR_LINES = 12  # last lines of stderr.log that are shown for a rank without an error file
_STDERR_BYTES = 16384  # of its end that are read

# Messages of an error that another rank's end causes.
_CONSEQUENCE = re.compile(
    r"Connection closed by peer|Connection reset by peer|connectFullMesh failed"
    r"|remote process exited|Broken pipe|NCCL communicator was aborted|remote error"
    r"|wait timeout after|Stop_waiting response is expected",
    re.IGNORECASE,
)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# How those lines of faulthandler's report begin that say nothing about the user's code.
_LINES_TO_SKIP = (
    "Extension modules:",
    f'  File "{_PACKAGE}',
    f'  File "{os.path.dirname(multiprocessing.__file__)}',
    '  File "<string>"',
)


def make_failure(
    rank: int,
    local_rank: int,
    attempt: int,
    pid: int,
    exitcode: int | None,
    ended: float,
    rank_dir: RankDir,
    oom: str,
    unwatched: bool,
) -> Failure:
    """Makes the `Failure` of a rank that ended without returning.

    Args:
        rank: Global rank.
        local_rank: Local rank.
        attempt: Number of the attempt.
        pid: Its pid.
        exitcode: Its exit code, as multiprocessing reports it.
        ended: When its end was noticed, in seconds since the epoch.
        rank_dir: Its folder.
        oom: A clause about the cgroup's out-of-memory kills (`OomKillCounter.describe`), or empty.
        unwatched: Whether its forkserver was killed, so that nobody knows its exit code.
    """
    error, full = read_error(rank_dir), disk_reserve.disk_full_message(rank_dir.path)
    if error is not None:
        return Failure(
            rank,
            local_rank,
            attempt,
            ended if error.time is None else error.time,
            pid,
            error.kind,
            exitcode,
            error.type_name,
            error.message,
            error.traceback,
            _hint_for(error) or full,
        )
    if unwatched:
        return Failure(
            rank,
            local_rank,
            attempt,
            ended,
            pid,
            "killed",
            None,
            "the forkserver that watched it was killed",
            "",
            "",
            _SIGNAL_HINTS["SIGKILL"].format(oom=oom),
        )
    last_lines, had_returned = _last_lines(rank_dir.stderr), rank_dir.result.exists()
    if exitcode is not None and exitcode < 0:
        name = signal_name(-exitcode)
        return Failure(
            rank,
            local_rank,
            attempt,
            ended,
            pid,
            "killed",
            exitcode,
            f"killed by {name}" + " after it had returned" * had_returned,
            "",
            last_lines,
            _SIGNAL_HINTS.get(name, "").format(oom=oom) or oom,
        )
    return Failure(
        rank,
        local_rank,
        attempt,
        ended,
        pid,
        "exited",
        exitcode,
        f"exited with code {exitcode} {'after it had' if had_returned else 'before it'} returned",
        "",
        last_lines,
        full or _hint_for_shadowed_module(rank_dir.stderr),
    )


def convert_reserve(rank_dir: RankDir) -> None:
    """Makes an error file of the reserve of a rank that is gone, and removes the reserve.

    A rank writes its error there if the disk is too full for an error file.
    """
    try:
        data = safe_open.read_whole(
            safe_open.open_file(rank_dir.error_reserve, any_owner=True), rank_dir.error_reserve
        ).rstrip(b"\0")
        rank_dir.error_reserve.unlink()
    except OSError:  # there is none, since the rank has written its files
        return
    if data and not rank_dir.error.exists():
        with contextlib.suppress(OSError):
            disk_reserve.retry_without_reserve(
                lambda: files.write_atomically(rank_dir.error, data), rank_dir.disk_reserve
            )


def is_incurable(rank_dir: RankDir) -> bool:
    """Whether a retry can't help, since the code is wrong or the call can't be unpickled."""
    error = read_error(rank_dir)
    return error is not None and error.incurable


def _hint_for(error: RankError) -> str:
    if error.kind == "loading" and error.type_name == "ModuleNotFoundError":
        return (
            "the rank imports what the notebook imports by its sys.path and working directory; "
            "is the module only in memory?"
        )
    if error.type_name == "SystemExit":
        return "sys.exit() ends a rank without a value; return instead"
    if error.type_name == "OutOfMemoryError":
        return "the GPU's memory is full: a smaller batch, or another process on it (nvidia-smi)"
    return ""


_SIGNAL_HINTS = {
    "SIGKILL": "likely cause: out of memory, or somebody's kill -9{oom}",
    "SIGSEGV": "likely cause: a crash in C or C++ code; the stacks are in stderr.log",
    "SIGBUS": (
        "likely cause: /dev/shm is full (DataLoader workers use it), or a mapped file was truncated"
    ),
    "SIGABRT": (
        "likely cause: an assertion in C++ code (NCCL, CUDA, glibc); its words are in stderr.log"
    ),
    "SIGILL": "likely cause: a library built for another processor",
    "SIGFPE": "likely cause: an integer division by zero in C code",
    "SIGTERM": "likely cause: somebody ended it (a scheduler, kill)",
    "SIGINT": "likely cause: somebody interrupted it",
    "SIGXCPU": (
        "likely cause: it used up the processor time that its limit allows (RLIMIT_CPU, ulimit -t)"
    ),
    "SIGXFSZ": "likely cause: a file grew beyond what the limit allows (RLIMIT_FSIZE, ulimit -f)",
    "SIGSYS": "likely cause: a system call that a sandbox (seccomp) forbids",
}


def _read_end(stderr: Path) -> str:
    try:
        with open(safe_open.open_file(stderr, any_owner=True), "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _STDERR_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _hint_for_shadowed_module(stderr: Path) -> str:
    """Names the file that hides a module of the standard library, if a traceback shows that.

    Such a file lies in the working directory, so that it is imported in place of the module.
    """
    _, found, traceback = _read_end(stderr).rpartition("Traceback (most recent call last):")
    with contextlib.suppress(OSError):
        for file in os.listdir() if found else ():
            name, path = file.removesuffix(".py"), os.path.abspath(file)
            if name in sys.stdlib_module_names and (
                path in traceback or f"'{name}" in traceback.splitlines()[-1]
            ):
                return (
                    f"{path} was imported in place of the standard library's module {name!r}: "
                    "give it another name"
                )
    return ""


def _last_lines(stderr: Path) -> str:
    """The last lines of a rank's stderr, or faulthandler's report of a crash without our frames."""
    text = _read_end(stderr)
    _, crash, report = text.rpartition("Fatal Python error: ")
    if crash:
        lines = [
            line
            for line in (crash + report).splitlines()
            if line and not line.startswith(_LINES_TO_SKIP)
        ]
        return "\n".join(lines[: 2 * _STDERR_LINES])
    lines = text.splitlines()[-_STDERR_LINES:]
    return "\n".join(["the last lines of its stderr:", *lines]) if lines else ""


def sort_by_cause(failures: list[Failure]) -> list[Failure]:
    """Sorts failures by time, but puts consequences of another rank's end last.

    A rank's death closes its connections before anybody can notice the death. So the errors of its
    peers have an earlier time than its own. This also sets `Failure.consequence`.
    """
    for failure in failures:
        failure.consequence = bool(_CONSEQUENCE.search(failure.message))
    return sorted(failures, key=lambda failure: (failure.consequence, failure.time))


class OomKillCounter:
    """Counts the out-of-memory kills of this process's cgroup, since these explain a SIGKILL."""

    def __init__(self) -> None:
        self._before = self._count()

    def describe(self) -> str:
        """A clause about the kills since this object was made. Empty if there were none."""
        now = self._count()
        if now is None or self._before is None or now <= self._before:
            return ""
        return f": the cgroup's oom_kill count rose by {now - self._before}"

    @staticmethod
    def _count() -> int | None:
        try:
            entries = Path("/proc/self/cgroup").read_text().splitlines()
        except OSError:
            return None
        for entry in entries:
            _, controllers, path = entry.split(":", 2)
            for base, file in (
                ("/sys/fs/cgroup", "memory.events")
                if not controllers
                else ("/sys/fs/cgroup/memory", "memory.oom_control"),
            ):
                if controllers and "memory" not in controllers.split(","):
                    continue
                try:
                    lines = Path(f"{base}{path.rstrip('/')}/{file}").read_text().splitlines()
                except OSError:
                    continue
                for line in lines:
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        return int(value)
        return None
