"""A reserve of disk space for a run's last records.

A full disk must not keep a run from recording how it ended. So each run reserves a little space. A
process that finds the disk full removes the reserve and writes again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

# Bytes: a journal's last lines and some error files, clipped at 20,000 characters each.
_SIZE = 128 << 10
# A flag of fallocate(2), which Python doesn't offer.
_KEEP_SIZE = 1
# Exit codes from here on hold an errno.
_CANT_WRITE = 100
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Bytes. A disk with less is called full, since blocks are 4 kB and root may still have some.
_MIN_FREE = 32 << 10

T = TypeVar("T")


def create(reserve: Path) -> None:
    """Reserves the space, unless the disk has less or its file system can't reserve any."""
    with contextlib.suppress(OSError, AttributeError):
        fd = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _SIZE)
        finally:
            os.close(fd)


def release(reserve: Path) -> bool:
    """Gives the space back. Returns whether there was any."""
    try:
        reserve.unlink()
    except OSError:
        return False
    return True


def unlink_keep_open(path: Path) -> int | None:
    """Removes a file's name, and keeps its space until the returned descriptor is closed.

    Returns:
        The descriptor. None: there is no such file.
    """
    try:
        # O_NONBLOCK: a FIFO in the file's place must not make this wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        path.unlink()
    return fd


def preallocate(fd: int, size: int) -> None:
    """Reserves blocks behind the end of a file, so that it can grow on a full disk.

    Only Linux can, and not on every file system. Elsewhere nothing is reserved.

    Args:
        fd: The file.
        size: Bytes by which it can grow.
    """
    # Not at the top: the import takes 2 ms, which a launching process needn't pay.
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fallocate(
            fd, _KEEP_SIZE, ctypes.c_int64(os.fstat(fd).st_size), ctypes.c_int64(size)
        )


def retry_without_reserve(write: Callable[[], T], reserve: Path) -> T:
    """Calls `write`, and once more after removing the reserve if the disk is full.

    It is called again even if there is no reserve, since another rank may have removed it a moment
    ago.

    Args:
        write: Writes something.
        reserve: The run's reserve.

    Returns:
        What `write` returns.

    Raises:
        OSError: `write` failed for another reason, or the disk is full even so.
    """
    try:
        return write()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        release(reserve)
        return write()


def exit_code_of(error: OSError) -> int:
    """The exit code of an agent that can't write in its run's directory, and so not why either."""
    return (
        _CANT_WRITE + (error.errno or 0)
        if 0 <= (error.errno or 0) < 256 - _CANT_WRITE
        else _CANT_WRITE
    )


def cause_of(code: int | None) -> str:
    """The reason that an exit code of `exit_code_of` holds, as a clause. Empty for any other."""
    if code is None or not _CANT_WRITE <= code < 256:
        return ""
    reason = f": {os.strerror(code - _CANT_WRITE)}" if code > _CANT_WRITE else ""
    return f"ended, since it can't write in the run's directory{reason}"


def disk_full_message(path: Path) -> str:
    """``the disk is full: …``, if it is. Empty if it isn't, or if that can't be found out."""
    try:
        found = os.statvfs(path)
    except OSError:
        return ""
    if found.f_files and not found.f_favail:
        return f"the disk is full: it has no inodes left for new files where {path} lies"
    if found.f_bavail * found.f_frsize >= _MIN_FREE:
        return ""
    free = found.f_bavail * found.f_frsize / 1000
    return f"the disk is full: {free:.0f} kB are free where {path} lies"
