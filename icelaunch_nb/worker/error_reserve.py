"""What a rank sets aside so that it can say how it ended, whatever its code does to the process.

Code may leave no descriptor free, lower limits, change the root directory (chroot) or become another user. So a rank holds a few
descriptors that it closes in the end, and a file that stands in for the error file. That one is open, mapped and of its full length
from the start: a rank writes to it that may not open, create or rename any more, and through memory where RLIMIT_FSIZE forbids to
write. The agent reads it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import signal
import sys
from typing import Any

from icelaunch_nb.rundir.paths import RankDir
from icelaunch_nb.system.files import open_private

_SIZE = (
    128 << 10
)  # bytes; an error file holds three texts of at most 20,000 characters each, more where they are escaped
_SPARE = 4  # descriptors; a traceback's source lines, a late import and a result take one at a time
_LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_DATA)
_DEPTH = 1000  # frames, as Python has it


class ErrorReserve:
    """What one rank holds; a rank whose folder is gone holds nothing.

    Args:
        rank_dir: Its folder.
    """

    def __init__(self, rank_dir: RankDir) -> None:
        self._path, self._written = rank_dir.error_reserve, False
        self._limits = [(limit, resource.getrlimit(limit)) for limit in _LIMITS]
        self._file: os.stat_result | None = None
        self._fd = -1
        self._memory: Any = None
        self._spare: list[int] = []
        with contextlib.suppress(OSError):
            self._fd = open_private(self._path, os.O_RDWR)
            os.ftruncate(self._fd, _SIZE)  # no space is taken by that
            self._file = os.fstat(self._fd)
            self._memory = mmap.mmap(self._fd, _SIZE)
            self._spare = [os.dup(self._fd) for _ in range(_SPARE)]

    def release(self) -> None:
        """Gives descriptors, limits and depth back, now that the user's function is over."""
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEPTH))
        with contextlib.suppress(ValueError):
            signal.signal(
                signal.SIGXFSZ, signal.SIG_IGN
            )  # as Python has it: what is too long for RLIMIT_FSIZE is an error then
        for limit, (soft, hard) in self._limits:
            try:
                resource.setrlimit(limit, (soft, hard))
            except (OSError, ValueError):
                with contextlib.suppress(
                    OSError, ValueError
                ):  # the hard one was lowered too, for good
                    resource.setrlimit(limit, (resource.getrlimit(limit)[1],) * 2)
        for fd in self._spare:
            if self._has(fd):
                os.close(fd)
        self._spare.clear()

    def close(self) -> None:
        """Closes and removes all of it, after the prewarming."""
        for fd in (self._fd, *self._spare):
            os.close(fd)
        self._memory.close()
        self.drop()

    def write(self, data: bytes) -> bool:
        """Writes what the error file should hold to the file in reserve; whether that was possible."""
        if not self._has(self._fd) or len(data) > _SIZE:
            return False
        self._written = True
        try:
            return os.pwrite(self._fd, data, 0) == len(data)
        except OSError as error:
            if (
                error.errno != errno.EFBIG
            ):  # on a full disk memory can't be written either, and SIGBUS would be the last word
                return False
        self._memory[: len(data)] = data
        return True

    def drop(self) -> None:
        """Removes the file in the end, unless it was written to."""
        if not self._written:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _has(self, fd: int) -> bool:
        """Whether a descriptor is still the file's: code that closes all of them may have another file under its number."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(fd), self._file)
        except OSError:
            return False
