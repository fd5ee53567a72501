"""Events: the flags and counters that kernel, agent and every rank of a run see.

The board is a small memory-mapped file: one byte per flag, one aligned 8-byte integer per counter. A flag or counter is
written by a single store, which other processes see at once and never half; no reader or writer waits for a lock.

     0  magic         64  a byte per flag        128  eight progress bars, outermost first: done, total
   256  how many bars are shown                  264  when a checkpoint was last finished, in µs since the epoch
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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

_MAGIC = b"iceboard"
_FLAGS_AT = 64
_COUNTERS_AT = 128
# Numbers of 8-byte words, for `steps`.
FLAGS_WORD, BARS_WORD, DEPTH_WORD, CHECKPOINT_TIME_WORD = _FLAGS_AT // 8, _COUNTERS_AT // 8, 32, 33
BARS = 8
_SIZE = 4096
_POLL = 0.002  # seconds; a flag is a byte in memory, looking at it costs nothing

# What to do when a rank first looks whether it should stop; `steps` sets it in a rank.
on_listening: Callable[[], None] | None = None


class _Memory:
    """The board as this process has mapped it. Flags hold this and not their `Events`: without a cycle, the map goes with them."""

    def __init__(self, board: mmap.mmap) -> None:
        self.keep(board)

    def keep(self, board: mmap.mmap) -> None:
        """From here on that map is the board."""
        # A memoryview's item is read and written by one 8-byte move; struct.pack_into clears the bytes first.
        self.bytes, self.words = board, memoryview(board).cast("q")


class Flag:
    """One event, with the methods of `threading.Event`, seen by every process of the run."""

    def __init__(self, memory: _Memory, name: str) -> None:
        self._memory, self._at, self.name = memory, _FLAGS_AT + FLAGS.index(name), name

    def set(self) -> None:
        """Sets it."""
        self._memory.bytes[self._at] = 1

    def clear(self) -> None:
        """Clears it."""
        self._memory.bytes[self._at] = 0

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._memory.bytes[self._at] == 1

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is set, at most `timeout` seconds; whether it is."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = _POLL if deadline is None else min(_POLL, deadline - time.monotonic())
            if left <= 0:
                return False
            time.sleep(left)
        return True

    def __repr__(self) -> str:
        return f"<{self.name}: {'set' if self.is_set() else 'clear'}>"


class _StopFlag(Flag):
    """``stop_all_tasks``: a rank that looks at it is given the grace of a stop; one that never does is ended by SIGTERM at once."""

    def is_set(self) -> bool:
        global on_listening
        if on_listening is not None:
            listen, on_listening = on_listening, None
            listen()
        return super().is_set()


class Counter:
    """A whole number that every process of the run sees."""

    def __init__(self, memory: _Memory, name: str) -> None:
        self._memory, self._at, self.name = memory, BARS_WORD + COUNTERS.index(name), name

    @property
    def value(self) -> int:
        """The number; assign to set it."""
        return self._memory.words[self._at]

    @value.setter
    def value(self, value: int) -> None:
        self._memory.words[self._at] = int(value)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.value}>"


class Events:
    """The vocabulary of a run: eight flags and two counters.

    ``pause``, ``paused``, ``resume``, ``stop_all_tasks``, ``trigger_save_checkpoint``, ``finished_save_checkpoint``,
    ``debugger_start`` and ``debugger_end`` have ``set``, ``clear``, ``is_set`` and ``wait(timeout)``;
    ``progress_bar_iter`` and ``progress_bar_total`` have ``value``. An instance can be given to `launch`, passed to the
    launched function as an argument, or reached in a rank as ``get_context().events``: it is the same board.
    Loops over ``ctx.steps`` clear ``resume`` once they have heeded it, so code of yours may not wait for it beside them.

    Args:
        path: The board's file. None: one in memory-backed or temporary storage that is removed with the last reference.
    """

    pause: Flag
    paused: Flag
    resume: Flag
    stop_all_tasks: Flag
    trigger_save_checkpoint: Flag
    finished_save_checkpoint: Flag
    debugger_start: Flag
    debugger_end: Flag
    progress_bar_iter: Counter
    progress_bar_total: Counter

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path: Path | None = Path(path) if path is not None else None
        self._memory = _Memory(
            self._private_board() if self.path is None else _open_board(self.path)
        )
        for name in FLAGS:
            setattr(
                self, name, (_StopFlag if name == "stop_all_tasks" else Flag)(self._memory, name)
            )
        for name in COUNTERS:
            setattr(self, name, Counter(self._memory, name))

    @property
    def words(self) -> memoryview:
        """The board as 8-byte integers, for the protocol of `steps`."""
        return self._memory.words

    @classmethod
    def of_run(cls, run_dir: str | os.PathLike[str]) -> Events:
        """The board of the run that lies in `run_dir`."""
        return cls(Path(run_dir) / "events.board")

    @property
    def bars(self) -> list[tuple[int, int]]:
        """The progress bars that are shown, outermost loop first: steps done, and steps in all (0: not known).

        The first one is ``progress_bar_iter`` and ``progress_bar_total``.
        """
        words, shown = self._memory.words, min(BARS, max(1, self._memory.words[DEPTH_WORD]))
        return [(words[at], words[at + 1]) for at in range(BARS_WORD, BARS_WORD + 2 * shown, 2)]

    @property
    def checkpoint_finished(self) -> float | None:
        """When ``finished_save_checkpoint`` was last set by the ranks, in seconds since the epoch; None: never."""
        return self._memory.words[CHECKPOINT_TIME_WORD] / 1e6 or None

    def move_to(self, path: Path) -> None:
        """Gives this board the file `path`, with what was set so far; done once, when a run takes the board over.

        A later run that is given the same board shares it; a stop was meant for the run before, and is cleared, and so is a
        resume that resumes nothing.
        """
        if self.path != path and not self.pause.is_set():
            self.resume.clear()
        if self.path is not None:
            if self.path == path:
                return
            self.stop_all_tasks.clear()
            self.paused.clear()
            try:
                os.link(self.path, path)
                self.path = path
                return
            except FileExistsError:
                raise
            except OSError:  # the first run's directory is gone, or lies on another file system: a new board from here on
                pass
        content = bytes(self._memory.bytes)
        self.path = path
        self._memory.keep(_open_board(path, content))

    @contextlib.contextmanager
    def locked(self, patience: float = 1.0) -> Iterator[None]:
        """Keeps others that ask for this out meanwhile; only for the rare steps that change several things at once.

        Goes on without it after `patience` seconds: a rank that a debugger or SIGSTOP halts must not halt the kernel.
        """
        if self.path is None:
            yield
            return
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # the run directory is gone
            yield
            return
        try:
            deadline = time.monotonic() + patience
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

    def _private_board(self) -> mmap.mmap:
        with tempfile.TemporaryFile() as file:
            file.write(_fresh())
            file.flush()
            return mmap.mmap(file.fileno(), _SIZE)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            raise TypeError(
                "these Events belong to no run yet: give them to launch(events=…) or launch_agent(…, ice_events)"
            )
        return type(self), (str(self.path),)

    def __repr__(self) -> str:
        flags = [name for name in FLAGS if getattr(self, name).is_set()]
        progress = f"{self.progress_bar_iter.value}/{self.progress_bar_total.value}"
        return f"<Events {', '.join(flags) or 'nothing set'}, progress {progress}>"


def flags_mask(*names: str) -> int:
    """A mask for the word of all flags: one read tells whether any of these is set."""
    return int.from_bytes(bytes(name in names for name in FLAGS), sys.byteorder)


def _fresh() -> bytes:
    return _MAGIC + b"\0" * (_SIZE - len(_MAGIC))


def _open_board(path: Path, content: bytes | None = None) -> mmap.mmap:
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if content is not None else 0)
    with open(os.open(path, flags, 0o600), "r+b") as file:
        if content is not None:
            file.write(content)
            file.flush()
        if os.fstat(file.fileno()).st_size != _SIZE:
            raise ValueError(f"{path} is no events board")
        board = mmap.mmap(file.fileno(), _SIZE)
    if board[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{path} is no events board")
    return board
