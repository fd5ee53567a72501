"""What a rank sets aside so that it can record its error, whatever its code does to the process.

Code may leave no descriptor free, lower limits, change the root directory (chroot) or become
another user. So a rank holds a few descriptors that it closes in the end, and a file that stands in
for the error file. This file is open, mapped and of its full length from the start. A rank can
write to it when it may no longer open, create or rename files, and through memory where
RLIMIT_FSIZE forbids to write. The agent reads it.
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

# Bytes: an error file holds three texts of at most 20,000 characters each, more where escaped.
_SIZE = 128 << 10
_SPARE = 4  # descriptors; a traceback's source lines, a late import and a result use one at a time
_LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_DATA)
_RECURSION_LIMIT = 1000  # frames; Python's default


class ErrorReserve:
    """The descriptors, the file and the limits that one rank keeps for its end.

    Where the rank's folder is gone, it keeps the limits alone.

    Args:
        rank_dir: The rank's folder.
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
            os.ftruncate(self._fd, _SIZE)  # this uses no disk space
            self._file = os.fstat(self._fd)
            self._memory = mmap.mmap(self._fd, _SIZE)
            self._spare = [os.dup(self._fd) for _ in range(_SPARE)]

    def release(self) -> None:
        """Frees the descriptors and restores the limits, once the user's function is over."""
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _RECURSION_LIMIT))
        with contextlib.suppress(ValueError):
            # Python's default: a write beyond RLIMIT_FSIZE is an error then, not the end.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit, (soft, hard) in self._limits:
            try:
                resource.setrlimit(limit, (soft, hard))
            except (OSError, ValueError):
                # The hard limit was lowered too, for good.
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(limit, (resource.getrlimit(limit)[1],) * 2)
        for fd in self._spare:
            if self._is_ours(fd):
                os.close(fd)
        self._spare.clear()

    def close(self) -> None:
        """Closes and removes all of it, after prewarming."""
        for fd in (self._fd, *self._spare):
            os.close(fd)
        self._memory.close()
        self.drop()

    def write(self, data: bytes) -> bool:
        """Writes the error file's content to the reserved file.

        Args:
            data: The content.

        Returns:
            Whether it is written.
        """
        if not self._is_ours(self._fd) or len(data) > _SIZE:
            return False
        self._written = True
        try:
            return os.pwrite(self._fd, data, 0) == len(data)
        except OSError as error:
            # On a full disk a write to the memory fails too, and SIGBUS would kill the rank.
            if error.errno != errno.EFBIG:
                return False
        self._memory[: len(data)] = data
        return True

    def drop(self) -> None:
        """Removes the file, unless it was written to."""
        if not self._written:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _is_ours(self, fd: int) -> bool:
        """Whether a descriptor is still the reserved file's.

        Code that closes all descriptors may have another file under its number.
        """
        try:
            return self._file is not None and os.path.samestat(os.fstat(fd), self._file)
        except OSError:
            return False
