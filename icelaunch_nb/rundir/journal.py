"""The journal of a run: what happened, a JSON object a line."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icelaunch_nb import disk

_RESERVED = (
    64 << 10
)  # bytes for a journal: some attempts and failures, whose tracebacks are clipped at 20,000 characters


class JournalWriter:
    """Appends what happened, a JSON object a line, each in one write.

    The agent is the writer; after its end the host adds what the agent couldn't say, and the kernel what the host couldn't.
    """

    def __init__(self, path: Path) -> None:
        self._folder, self._lock = path.parent, threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # the writer before this one died within a line

    def write(self, event: str, **facts: Any) -> None:
        """Adds an event, with the time in seconds since the epoch.

        Raises:
            OSError: The disk is full; what was written of the line is taken back.
        """
        line = (
            json.dumps(
                {"t": round(time.time(), 4), "event": event, **facts}, ensure_ascii=True
            ).encode()
            + b"\n"
        )
        with self._lock:
            disk.pressing(lambda: self._write(line), self._folder)

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._fd).st_size
        if os.write(self._fd, line) < len(line):
            os.ftruncate(self._fd, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def reserve(self) -> None:
        """Sets space aside for what may happen, so that it can be written while ranks fill the disk."""
        disk.reserve(self._fd, _RESERVED)

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


def read_journal(path: Path, offset: int) -> tuple[list[Mapping[str, Any]], int]:
    """The events after `offset`, and the offset after them.

    A last line without its newline isn't finished yet and is left for the next call; a finished line that is no JSON object (a
    torn write, before a crash) is passed over.
    """
    try:
        if os.stat(path).st_size <= offset:
            return [], offset
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole, newline, _ = data.rpartition(b"\n")
    events: list[Mapping[str, Any]] = []
    for line in whole.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events, offset + len(whole) + len(newline)
