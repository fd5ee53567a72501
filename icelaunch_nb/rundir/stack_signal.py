"""How a rank is asked for its stacks: SIGURG, whose handler is faulthandler's, and a lock that says that the handler is still there.

faulthandler writes from a handler in C, so it works while a C call holds the GIL, and a rank that nobody asks pays nothing: no
thread (``os.fork`` would warn of it), no poll. Of all signals SIGURG is the one that can't hurt: where nobody handles it, the system
ignores it, so neither a program that the rank has become nor a handler that was reset a moment ago makes it deadly, as SIGUSR1 and
the realtime signals are. macOS has it too.

A signal is sent only to a process whose handler is ours. The rank holds a lock on one byte of its ``stacks.txt`` while that is so.
Linux and macOS drop such a lock when its holder ends, becomes another program or closes the file, and tell who holds it. So nobody
else can pass for a rank, whatever a run directory says, and a rank that closed the descriptor gets no stacks into the file that
has its number now. The rank itself drops the lock where its code takes the signal (`cpython.watch_handler`). Of code in C that
takes it nothing is known; what Linux says of handlers and masks (``/proc/<pid>/status``) is asked besides.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys

SIGNUM = signal.SIGURG
RANK = 0x1CE0  # the byte whose lock says: this is the rank that the folder belongs to; far behind what is written to the file
HANDLER = 0x1CE2  # and this one: its handler is in place; neighbours would be merged into one lock
_FLOCK = (
    "qqihh" if sys.platform == "darwin" else "hhqqi"
)  # struct flock; start, length, holder, kind, whence on macOS


def lock(fd: int, byte: int) -> None:
    """Locks a byte for this process.

    Raises:
        OSError: Somebody holds it, or the file system has no locks.
    """
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)


def unlock(fd: int, byte: int) -> None:
    """Gives it back."""
    fcntl.lockf(fd, fcntl.LOCK_UN, 1, byte)


def holder(fd: int, byte: int) -> int | None:
    """The process that holds this very lock; a lock on more than the byte is somebody else's.

    Raises:
        OSError: The file system has no locks.
    """
    if sys.platform == "darwin":
        query = struct.pack(_FLOCK, byte, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
        start, length, pid, kind, _ = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, query))
    else:
        query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind, _, start, length, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, query))
    return pid if (kind, start, length) == (fcntl.F_WRLCK, byte, 1) else None


def handles_signal(pid: int) -> bool:
    """Whether a process has a handler for the signal and a thread that doesn't block it, as far as the system tells."""
    if sys.platform != "linux":
        return True
    bit = 1 << (SIGNUM - 1)
    try:
        status = _status(f"/proc/{pid}/status")
        if not int(status[b"SigCgt"], 16) & bit:
            return False
        threads = (
            status,
            *(
                _status(f"/proc/{pid}/task/{thread}/status")
                for thread in os.listdir(f"/proc/{pid}/task")
            ),
        )
        return any(not int(thread[b"SigBlk"], 16) & bit for thread in threads)
    except (OSError, KeyError, ValueError):
        return False


def _status(path: str) -> dict[bytes, bytes]:
    with open(path, "rb") as file:
        return dict(line.split(b":\t", 1) for line in file if line.startswith(b"Sig"))
