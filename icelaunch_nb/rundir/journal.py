"""The journal of a run: what happened, a JSON object a line. `journal_events` says which."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
import time
from pathlib import Path

from icelaunch_nb.rundir import disk_reserve
from icelaunch_nb.rundir.journal_events import Event, parse_event
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.records import parse_line
from icelaunch_nb.system import safe_open

_RESERVED = (
    64 << 10
)  # bytes for a journal: some attempts and failures, whose tracebacks are clipped at 20,000 characters

_LONGEST_LINE = 32 << 20  # bytes: some hundred ranks that failed with a traceback each
_AT_ONCE = 1 << 28  # bytes that one look reads; of what no run has written, the rest can wait


class JournalWriter:
    """Appends what happened, a JSON object a line, each in one write.

    The agent is the writer; after its end the host adds what the agent couldn't say, and the kernel what the host couldn't.
    """

    def __init__(self, path: Path) -> None:
        self._reserve, self._lock = RunDir(path.parent).disk_reserve, threading.Lock()
        self._fd = safe_open.open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # the writer before this one died within a line

    def write(self, event: Event) -> None:
        """Adds an event, with the time of now.

        Raises:
            OSError: The disk is full; what was written of the line is taken back.
        """
        event.t = time.time()
        line = json.dumps(event.to_line(), ensure_ascii=True).encode() + b"\n"
        with self._lock:
            disk_reserve.retry_without_reserve(lambda: self._write(line), self._reserve)

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._fd).st_size
        if os.write(self._fd, line) < len(line):
            os.ftruncate(self._fd, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def reserve(self) -> None:
        """Sets space aside for what may happen, so that it can be written while ranks fill the disk."""
        disk_reserve.preallocate(self._fd, _RESERVED)

    def release(self) -> None:
        """Gives back what was not needed of it."""
        with contextlib.suppress(OSError), self._lock:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size)

    def close(self) -> None:
        """Nothing more will happen."""
        os.close(self._fd)

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_events(path: Path, offset: int, run_dir: RunDir | None = None) -> tuple[list[Event], int]:
    """The events after `offset`, and the offset after them.

    A last line without its newline isn't finished yet and is left for the next call. A finished line that is no JSON object (a
    torn write, before a crash), or an event with a value that can't be, is passed over.

    Args:
        path: The journal.
        offset: Where to begin, in bytes.
        run_dir: The run whose journal it is, as it was when it was attached; None: whatever lies at `path`.

    Raises:
        UntrustedFileError: It belongs to somebody else, or is no file.
        OSError: It can't be read.
    """
    try:
        # A look that finds nothing new is all that most looks are, and this is its whole cost.
        found = os.stat(path, follow_symlinks=False)
        if found.st_size <= offset and stat.S_ISREG(found.st_mode):
            return [], offset
        fd = run_dir.open(path) if run_dir is not None else safe_open.open_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return [], offset
    events: list[Event] = []
    try:
        began = offset
        for line, offset in safe_open.read_lines(fd, began, _LONGEST_LINE):
            with contextlib.suppress(ValueError):
                if line and (event := parse_event(parse_line(line))) is not None:
                    events.append(event)
            if offset - began > _AT_ONCE:
                break
    finally:
        os.close(fd)
    return events, offset
