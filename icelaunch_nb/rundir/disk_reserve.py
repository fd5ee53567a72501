"""A reserve on the disk that makes room for a run's last words.

A full disk must not keep a run from saying how it ended. So each run holds a little space that it doesn't need; whoever finds the
disk full drops it and tries again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_SIZE = 128 << 10  # a journal's last lines and some error files, clipped at 20,000 characters each
_KEEP_SIZE = 1  # fallocate(2), which Python doesn't offer
_CANT_WRITE = 100  # exit codes from here on hold an errno
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOTHING_FITS = (
    32 << 10
)  # bytes; a disk with less is called full, since blocks are 4 kB and root may still have some

T = TypeVar("T")


def create(reserve: Path) -> None:
    """Reserves some space; a disk that hasn't that much, or can't reserve, goes without."""
    with contextlib.suppress(OSError, AttributeError):
        fd = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _SIZE)
        finally:
            os.close(fd)


def release(reserve: Path) -> bool:
    """Gives the space back; whether there was any."""
    try:
        reserve.unlink()
    except OSError:
        return False
    return True


def unlink_keep_open(path: Path) -> int | None:
    """Removes a file's name; the descriptor that its space hangs on. None: there is no such file."""
    try:
        fd = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        )  # never waiting, whatever lies there
    except OSError:
        return None
    with contextlib.suppress(OSError):
        path.unlink()
    return fd


def preallocate(fd: int, size: int) -> None:
    """Sets blocks aside behind the end of a file, so that it can grow by `size` bytes on a full disk; where the system can, on Linux."""
    import ctypes  # 2 ms that a launching process needn't pay

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fallocate(
            fd, _KEEP_SIZE, ctypes.c_int64(os.fstat(fd).st_size), ctypes.c_int64(size)
        )


def retry_without_reserve(write: Callable[[], T], reserve: Path) -> T:
    """Writes, and once more without the reserve where the disk is full; another rank may have dropped it a moment ago.

    Raises:
        OSError: It can't be written.
    """
    try:
        return write()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        release(reserve)
        return write()


def exit_code_of(error: OSError) -> int:
    """The exit code of an agent that can't write in its run's directory, and so can't say why there."""
    return (
        _CANT_WRITE + (error.errno or 0)
        if 0 <= (error.errno or 0) < 256 - _CANT_WRITE
        else _CANT_WRITE
    )


def cause_of(code: int | None) -> str:
    """What such an exit code says, as a clause; empty for any other."""
    if code is None or not _CANT_WRITE <= code < 256:
        return ""
    reason = f": {os.strerror(code - _CANT_WRITE)}" if code > _CANT_WRITE else ""
    return f"ended, since it can't write in the run's directory{reason}"


def disk_full_message(path: Path) -> str:
    """``the disk is full: …`` where it is; empty where it is not, or where that can't be told."""
    try:
        found = os.statvfs(path)
    except OSError:
        return ""
    if found.f_files and not found.f_favail:
        return f"the disk is full: it has no inodes left for new files where {path} lies"
    if found.f_bavail * found.f_frsize >= _NOTHING_FITS:
        return ""
    return f"the disk is full: {found.f_bavail * found.f_frsize / 1000:.0f} kB are free where {path} lies"
