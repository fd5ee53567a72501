"""What a run writes where the disk may be full: whole files, and a ballast that makes room for its last words.

A full disk must not keep a run from saying how it ended. So each run holds a little space that it doesn't need; whoever finds the
disk full drops it and tries again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

BALLAST = "ballast"
_BALLAST_SIZE = (
    128 << 10
)  # a journal's last lines and some error files, clipped at 20,000 characters each
_KEEP_SIZE = 1  # fallocate(2), which Python doesn't offer
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOTHING_FITS = (
    32 << 10
)  # bytes; a disk with less is called full, since blocks are 4 kB and root may still have some

T = TypeVar("T")


def take_on_ballast(run_dir: Path) -> None:
    """Reserves some space; a disk that hasn't that much, or can't reserve, goes without."""
    with contextlib.suppress(OSError, AttributeError):
        fd = os.open(run_dir / BALLAST, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _BALLAST_SIZE)
        finally:
            os.close(fd)


def drop_ballast(run_dir: Path) -> bool:
    """Gives the space back; whether there was any."""
    try:
        (run_dir / BALLAST).unlink()
    except OSError:
        return False
    return True


def unname(path: Path) -> int | None:
    """Removes a file's name; the descriptor that its space hangs on. None: there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        path.unlink()
    return fd


def reserve(fd: int, size: int) -> None:
    """Sets blocks aside behind the end of a file, so that it can grow by `size` bytes on a full disk; where the system can, on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fallocate(
            fd, _KEEP_SIZE, ctypes.c_int64(os.fstat(fd).st_size), ctypes.c_int64(size)
        )


def pressing(write: Callable[[], T], run_dir: Path) -> T:
    """Writes, and once more without the ballast where the disk is full.

    Raises:
        OSError: It can't be written.
    """
    try:
        return write()
    except OSError as error:
        if error.errno not in _FULL or not drop_ballast(run_dir):
            raise
        return write()


def complaint(path: Path) -> str:
    """``the disk is full: …`` where it is; empty where it is not, or where that can't be told."""
    try:
        found = os.statvfs(path)
    except OSError:
        return ""
    if found.f_bavail * found.f_frsize >= _NOTHING_FITS:
        return ""
    return f"the disk is full: {found.f_bavail * found.f_frsize / 1000:.0f} kB are free where {path} lies"


def write_whole(path: Path, data: bytes) -> None:
    """Write-then-rename, mode 0600.

    Raises:
        OSError: It can't be written; nothing of it stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        draft.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
