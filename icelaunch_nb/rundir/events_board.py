"""The board of a run: flags and counters that all its processes share, in a memory-mapped file.

A flag is one byte, a counter one aligned 8-byte integer. A single store writes either. Other
processes see the store at once and never half, so no reader or writer waits for a lock.

    offset  content
         0  magic
        64  a byte per flag
       128  eight progress bars, outermost first: steps done, steps in all
       256  how many bars are shown
       264  when a checkpoint was last finished, in µs since the epoch
       512  numbers of the requests that the agent carried out last

The agent sets the flags that ask for something (`REQUESTS`) when a request of `control` arrives.
Ranks set the flags that answer. They clear a request once they have carried it out.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from icelaunch_nb.system import safe_open
from icelaunch_nb.system.files import open_private

REQUESTS = ("pause", "resume", "stop_all_tasks", "trigger_save_checkpoint")
FLAGS = (
    "pause",
    "paused",
    "resume",
    "stop_all_tasks",
    "trigger_save_checkpoint",
    "finished_save_checkpoint",
    "debugger_start",
    "debugger_end",
)
COUNTERS = ("progress_bar_iter", "progress_bar_total")
BARS = 8

_MAGIC = b"iceboard"
_FLAGS_OFFSET = 64
_OFFSETS = {name: _FLAGS_OFFSET + number for number, name in enumerate(FLAGS)}
# Indexes of 8-byte words.
FLAGS_WORD = _FLAGS_OFFSET // 8
BARS_WORD = 16
DEPTH_WORD = 32
CHECKPOINT_TIME_WORD = 33
_REQUESTS_WORD = 64
# How many requests have their numbers kept.
_KEPT_REQUESTS = 64
_SIZE = 4096
# Seconds since the epoch. A later time is no time: no calendar goes so far.
_MAX_TIME = 1e11


class Board:
    """A board, mapped into this process.

    Args:
        path: The board's file. None: the board lies in memory that this process shares with its
            forked children, until `move_to` gives it a file.

    Attributes:
        path: The board's file. None: it has none yet.
        words: The board as 8-byte integers.

    Raises:
        OSError: There is no such file, or it isn't a regular file.
        ValueError: The file is no board.
    """

    words: memoryview

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        if path is None:
            private = mmap.mmap(-1, _SIZE)
            private[:] = _empty_content()
            self._map(private)
        else:
            self._map(_open(path))

    def _map(self, board: mmap.mmap) -> None:
        # A memoryview reads and writes an item by one 8-byte move. struct.pack_into would clear the
        # bytes first, and others could see that.
        self._bytes, self.words = board, memoryview(board).cast("q")

    def is_set(self, flag: str) -> bool:
        """Whether a flag is set."""
        return self._bytes[_OFFSETS[flag]] == 1

    def set(self, flag: str) -> None:
        """Sets a flag."""
        self._bytes[_OFFSETS[flag]] = 1

    def clear(self, flag: str) -> None:
        """Clears a flag."""
        self._bytes[_OFFSETS[flag]] = 0

    def flags(self) -> list[str]:
        """Lists the flags that are set."""
        return [name for name in FLAGS if self.is_set(name)] if self.words[FLAGS_WORD] else []

    @property
    def bars(self) -> list[tuple[int, int]]:
        """The progress bars that are shown, that of the outermost loop first.

        Each is steps done and steps in all, where 0 in all means that the number isn't known.
        """
        words, shown = self.words, min(BARS, max(1, self.words[DEPTH_WORD]))
        return [(words[at], words[at + 1]) for at in range(BARS_WORD, BARS_WORD + 2 * shown, 2)]

    @property
    def checkpoint_finished(self) -> float | None:
        """When ranks last finished a checkpoint, in seconds since the epoch. None: never."""
        finished = self.words[CHECKPOINT_TIME_WORD] / 1e6
        return finished if 0 < finished <= _MAX_TIME else None

    def is_done(self, number: int) -> bool:
        """Whether the agent has carried out the request with this number."""
        return bool(self.words[_REQUESTS_WORD + number % _KEPT_REQUESTS] == number)

    def mark_done(self, number: int) -> None:
        """Notes that the agent has carried out the request with this number."""
        self.words[_REQUESTS_WORD + number % _KEPT_REQUESTS] = number

    def move_to(self, path: Path) -> None:
        """Gives this board the file `path`, with all that is set. A run does so as it begins.

        A board that already has a file belonged to an earlier run, and both runs share it. The
        flags ``stop_all_tasks`` and ``paused`` were meant for the earlier run, so they are cleared.
        ``resume`` is cleared unless ``pause`` is set.

        Args:
            path: The new file.

        Raises:
            FileExistsError: Something lies there already.
            OSError: The file can't be made.
        """
        if self.path != path and not self.is_set("pause"):
            self.clear("resume")
        if self.path is not None:
            if self.path == path:
                return
            self.clear("stop_all_tasks")
            self.clear("paused")
            try:
                os.link(self.path, path)
                self.path = path
                return
            except FileExistsError:
                raise
            # The first run's directory is gone, or lies on another file system. The board is a new
            # one from here on.
            except OSError:
                pass
        content = bytes(self._bytes)
        self.path = path
        self._map(_open(path, content))

    @contextlib.contextmanager
    def locked(self, timeout: float = 1.0) -> Iterator[None]:
        """Locks the board against other callers, for the rare changes of several things at once.

        After `timeout` seconds the body runs without the lock: a rank that a debugger or SIGSTOP
        halts must not halt the kernel.

        Args:
            timeout: Seconds.
        """
        if self.path is None:
            yield
            return
        try:
            fd = safe_open.open_file(self.path, os.O_RDWR)
        # The run directory is gone.
        except OSError:
            yield
            return
        try:
            deadline = time.monotonic() + timeout
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() >= deadline:
                        break
                    time.sleep(0.0005)
            yield
        finally:
            os.close(fd)


def flags_mask(*names: str) -> int:
    """The mask of some flags in the word of all flags, so that one read tests them all."""
    return int.from_bytes(bytes(name in names for name in FLAGS), sys.byteorder)


def _empty_content() -> bytes:
    return _MAGIC + b"\0" * (_SIZE - len(_MAGIC))


def _open(path: Path, content: bytes | None = None) -> mmap.mmap:
    fd = (
        open_private(path, os.O_RDWR | os.O_EXCL)
        if content is not None
        else safe_open.open_file(path, os.O_RDWR)
    )
    with open(fd, "r+b") as file:
        if content is not None:
            file.write(content)
            file.flush()
        if os.fstat(file.fileno()).st_size != _SIZE:
            raise ValueError(f"{path} is no events board")
        board = mmap.mmap(file.fileno(), _SIZE)
    if board[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{path} is no events board")
    return board
