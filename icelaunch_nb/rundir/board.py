"""The board of a run: the flags and counters that kernel, agent and every rank see, in one small memory-mapped file.

One byte per flag, one aligned 8-byte integer per counter. A flag or counter is written by a single store, which other processes see at
once and never half; no reader or writer waits for a lock.

     0  magic         64  a byte per flag        128  eight progress bars, outermost first: done, total
   256  how many bars are shown                  264  when a checkpoint was last finished, in µs since the epoch
   512  numbers of the requests that the agent carried out last

The agent sets the flags that ask for something (`REQUESTS`), as the requests of `control` say; ranks set those that answer, and clear a
request once they have carried it out.
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
_FLAGS_AT = 64
_AT = {name: _FLAGS_AT + number for number, name in enumerate(FLAGS)}
# Numbers of 8-byte words.
FLAGS_WORD, BARS_WORD, DEPTH_WORD, CHECKPOINT_TIME_WORD, _DONE_WORD = (
    _FLAGS_AT // 8,
    128 // 8,
    32,
    33,
    64,
)
_DONE = 64  # requests whose numbers are kept
_SIZE = 4096
_LATEST = 1e11  # seconds since the epoch, beyond which no calendar goes


class Board:
    """A board as this process has mapped it.

    Args:
        path: Its file. None: memory of this process and its forked children, until `move_to` gives it a file.

    Attributes:
        path: Its file; None: it has none yet.
        words: The board as 8-byte integers.

    Raises:
        OSError: There is no such file, or something else lies there.
        ValueError: It is no board.
    """

    words: memoryview

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        if path is None:
            private = mmap.mmap(-1, _SIZE)
            private[:] = _fresh()
            self._map(private)
        else:
            self._map(_open(path))

    def _map(self, board: mmap.mmap) -> None:
        # A memoryview's item is read and written by one 8-byte move; struct.pack_into clears the bytes first.
        self._bytes, self.words = board, memoryview(board).cast("q")

    def is_set(self, flag: str) -> bool:
        """Whether a flag is set."""
        return self._bytes[_AT[flag]] == 1

    def set(self, flag: str) -> None:
        """Sets a flag."""
        self._bytes[_AT[flag]] = 1

    def clear(self, flag: str) -> None:
        """Clears a flag."""
        self._bytes[_AT[flag]] = 0

    def flags(self) -> list[str]:
        """The flags that are set."""
        return [name for name in FLAGS if self.is_set(name)] if self.words[FLAGS_WORD] else []

    @property
    def bars(self) -> list[tuple[int, int]]:
        """The progress bars that are shown, outermost loop first: steps done, and steps in all (0: not known)."""
        words, shown = self.words, min(BARS, max(1, self.words[DEPTH_WORD]))
        return [(words[at], words[at + 1]) for at in range(BARS_WORD, BARS_WORD + 2 * shown, 2)]

    @property
    def checkpoint_finished(self) -> float | None:
        """When ranks last finished a checkpoint, in seconds since the epoch; None: never."""
        finished = self.words[CHECKPOINT_TIME_WORD] / 1e6
        return finished if 0 < finished <= _LATEST else None

    def is_done(self, number: int) -> bool:
        """Whether the agent has carried out the request of that number."""
        return bool(self.words[_DONE_WORD + number % _DONE] == number)

    def mark_done(self, number: int) -> None:
        """Says so."""
        self.words[_DONE_WORD + number % _DONE] = number

    def move_to(self, path: Path) -> None:
        """Gives this board the file `path`, with what was set so far; done once, when a run takes the board over.

        A later run that is given the same board shares it; a stop was meant for the run before, and is cleared, and so is a
        resume that resumes nothing.
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
            except OSError:  # the first run's directory is gone, or lies on another file system: a new board from here on
                pass
        content = bytes(self._bytes)
        self.path = path
        self._map(_open(path, content))

    @contextlib.contextmanager
    def locked(self, timeout: float = 1.0) -> Iterator[None]:
        """Keeps others that ask for this out meanwhile; only for the rare steps that change several things at once.

        Goes on without it after `timeout` seconds: a rank that a debugger or SIGSTOP halts must not halt the kernel.
        """
        if self.path is None:
            yield
            return
        try:
            fd = safe_open.open_file(self.path, os.O_RDWR)
        except OSError:  # the run directory is gone
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
    """A mask for the word of all flags: one read tells whether any of these is set."""
    return int.from_bytes(bytes(name in names for name in FLAGS), sys.byteorder)


def _fresh() -> bytes:
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
