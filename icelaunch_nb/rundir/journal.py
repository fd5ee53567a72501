"""The journal of a run: its events, a JSON object per line. `journal_events` defines them."""

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

# Bytes: some attempts and failures, whose tracebacks are clipped at 20,000 characters.
_RESERVED = 64 << 10
# Bytes: some hundred ranks that failed with a traceback each.
_MAX_LINE = 32 << 20
# Bytes that one call reads at most. No run writes so much; of a made-up journal the rest can wait.
_MAX_READ = 1 << 28


class JournalWriter:
    """Appends events to a journal, each in one write.

    The agent is the writer. After its end the host adds an end that the agent couldn't write, and
    the kernel one that the host couldn't.

    Args:
        path: The journal, which is made if it doesn't exist.

    Raises:
        UntrustedFileError: The file belongs to another user, or isn't a regular file.
        OSError: The file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._reserve, self._lock = RunDir(path.parent).disk_reserve, threading.Lock()
        self._fd = safe_open.open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            # The writer before this one died within a line.
            os.write(self._fd, b"\n")

    def write(self, event: Event) -> None:
        """Appends an event, and sets its time to now.

        Raises:
            OSError: The line can't be written whole, and nothing of it is left in the journal.
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
        """Reserves space, so that later events can be written while ranks fill the disk."""
        disk_reserve.preallocate(self._fd, _RESERVED)

    def release(self) -> None:
        """Gives back the reserved space that wasn't needed."""
        with contextlib.suppress(OSError), self._lock:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size)

    def close(self) -> None:
        """Closes the journal."""
        os.close(self._fd)

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_events(path: Path, offset: int, run_dir: RunDir | None = None) -> tuple[list[Event], int]:
    """Reads the events after `offset`.

    A last line without its newline isn't finished yet, and is left for the next call. A finished
    line is skipped if it is no JSON object (a torn write, before a crash) or if a field of its
    event has a wrong value.

    Args:
        path: The journal. One that doesn't exist yet has no events.
        offset: Where to begin, in bytes.
        run_dir: The run's directory, with its identity at the time when it was attached. None: read
            whatever lies at `path`.

    Returns:
        The events, and the offset after them.

    Raises:
        UntrustedFileError: The journal belongs to another user, or isn't a regular file.
        OSError: The journal can't be read.
    """
    try:
        # Most calls find nothing new, and this is all that they cost.
        found = os.stat(path, follow_symlinks=False)
        if found.st_size <= offset and stat.S_ISREG(found.st_mode):
            return [], offset
        fd = run_dir.open(path) if run_dir is not None else safe_open.open_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return [], offset
    events: list[Event] = []
    try:
        first = offset
        for line, offset in safe_open.read_lines(fd, first, _MAX_LINE):
            with contextlib.suppress(ValueError):
                if line and (event := parse_event(parse_line(line))) is not None:
                    events.append(event)
            if offset - first > _MAX_READ:
                break
    finally:
        os.close(fd)
    return events, offset
