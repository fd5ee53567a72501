"""Why a rank ended: read from its error file, its exit code and the machine's own records."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import time
from pathlib import Path
from typing import Any

from icelaunch_nb import disk
from icelaunch_nb.errors import Failure, signal_name
from icelaunch_nb.rundir import RankDir

_LAST_WORDS = 12  # lines of stderr.log that speak for a rank that can't


_CONSEQUENCE = re.compile(
    r"Connection closed by peer|Connection reset by peer|connectFullMesh failed|remote process exited|Broken pipe"
    r"|NCCL communicator was aborted|remote error|wait timeout after|Stop_waiting response is expected",
    re.IGNORECASE,
)
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NOT_THEIRS = (
    "Extension modules:",
    f'  File "{_HOME}',
    f'  File "{os.path.dirname(multiprocessing.__file__)}',
    '  File "<string>"',
)


def failure_of(
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
    """The failure of a rank that ended without returning.

    Args:
        rank: Global rank.
        local_rank: Local rank.
        attempt: Number of the attempt.
        pid: Its process.
        exitcode: As multiprocessing reports it.
        ended: When its end was noticed, in seconds since the epoch.
        rank_dir: Its folder.
        unwatched: Whether its forkserver was killed, so that its exit code can't be had.
        oom: What the cgroup says about memory (`OomWatch.news`), empty for nothing.
    """
    told, full = _told(rank_dir), disk.complaint(rank_dir.path)
    if told is not None:
        return Failure(
            rank,
            local_rank,
            attempt,
            float(told.get("time", ended)),
            pid,
            told["kind"],
            exitcode,
            told["type_name"],
            told["message"],
            told["traceback"],
            _hint_for(told) or full,
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
    last_words, late = _last_words(rank_dir.stderr), rank_dir.result.exists()
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
            f"killed by {name}" + " after it had returned" * late,
            "",
            last_words,
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
        f"exited with code {exitcode} {'after it had' if late else 'before it'} returned",
        "",
        last_words,
        full,
    )


def _told(rank_dir: RankDir) -> dict[str, Any] | None:
    """What the rank said itself: our worker's fields, or torch's ``@record`` in a program."""
    try:
        data = json.loads(rank_dir.error.read_bytes())
    except (OSError, ValueError):
        return None
    if "icelaunch" in data:
        return data["icelaunch"]
    message = data.get("message", "")
    text = message.get("message", "") if isinstance(message, dict) else str(message)
    extra = message.get("extraInfo", {}) if isinstance(message, dict) else {}
    kind, _, rest = text.partition(": ")
    return {
        "kind": "raised",
        "type_name": kind,
        "message": rest,
        "traceback": extra.get("py_callstack", text),
        "time": float(extra.get("timestamp", time.time())),
    }


def is_incurable(rank_dir: RankDir) -> bool:
    """Whether a retry could not help: the code itself is wrong, or the call can't be carried."""
    told = _told(rank_dir)
    return bool(told and told.get("incurable"))


def _hint_for(told: dict[str, Any]) -> str:
    if told["kind"] == "loading" and told["type_name"] == "ModuleNotFoundError":
        return "the rank imports what the notebook imports by its sys.path and working directory; is the module only in memory?"
    if told["type_name"] == "SystemExit":
        return "sys.exit() ends a rank without a value; return instead"
    if told["type_name"] == "OutOfMemoryError":
        return "the GPU's memory is full: a smaller batch, or another process on it (nvidia-smi)"
    return ""


_SIGNAL_HINTS = {
    "SIGKILL": "likely cause: out of memory, or somebody's kill -9{oom}",
    "SIGSEGV": "likely cause: a crash in C or C++ code; the stacks are in stderr.log",
    "SIGBUS": "likely cause: /dev/shm is full (DataLoader workers use it), or a mapped file was truncated",
    "SIGABRT": "likely cause: an assertion in C++ code (NCCL, CUDA, glibc); its words are in stderr.log",
    "SIGILL": "likely cause: a library built for another processor",
    "SIGFPE": "likely cause: an integer division by zero in C code",
    "SIGTERM": "likely cause: somebody ended it (a scheduler, kill)",
    "SIGINT": "likely cause: somebody interrupted it",
}


def _last_words(stderr: Path) -> str:
    """The end of a rank's stderr; of a crash that faulthandler told, all of it but our own frames."""
    try:
        with open(stderr, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 16384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    _, crash, told = text.rpartition("Fatal Python error: ")
    if crash:
        lines = [
            line
            for line in (crash + told).splitlines()
            if line and not line.startswith(_NOT_THEIRS)
        ]
        return "\n".join(lines[: 2 * _LAST_WORDS])
    lines = text.splitlines()[-_LAST_WORDS:]
    return "\n".join(["the last lines of its stderr:", *lines]) if lines else ""


def by_cause(failures: list[Failure]) -> list[Failure]:
    """In order of time, but what only tells of another rank's end comes after what doesn't.

    A rank's death closes its connections before anybody can notice it, so its peers' complaints carry the earlier time.
    """
    for failure in failures:
        failure.consequence = bool(_CONSEQUENCE.search(failure.message))
    return sorted(failures, key=lambda failure: (failure.consequence, failure.time))


class OomWatch:
    """Counts the cgroup's out-of-memory kills, so that a SIGKILL can be explained."""

    def __init__(self) -> None:
        self._before = self._count()

    def news(self) -> str:
        """A clause about kills since this watch began, or nothing."""
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
