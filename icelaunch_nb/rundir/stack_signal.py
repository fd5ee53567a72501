"""The signal that makes a rank write its stacks, and the lock that shows that its handler is set.

The signal is SIGURG, and its handler is faulthandler's. faulthandler writes from a handler in C, so
it works while a C call holds the GIL. A rank whose stacks nobody wants pays nothing: it has no
thread for this (``os.fork`` would warn of one) and polls nothing. SIGURG is harmless where nobody
handles it, since the system ignores it by default. So it kills neither a program that the rank has
become nor a rank whose handler was reset a moment ago. SIGUSR1 and the realtime signals would.
macOS has SIGURG too.

The signal is sent only to a process whose handler is ours. As long as that is so, the rank holds a
lock on one byte of its ``stacks.txt``. Linux and macOS drop such a lock when its holder ends,
becomes another program or closes the file, and they say who holds it. This has two consequences:

* No other process can pass for a rank, whatever a run directory says.
* A rank that closed the descriptor isn't asked, so its stacks don't go into another file that has
  the descriptor's number now.

The rank itself drops the lock when its Python code takes the signal (`cpython.watch_handler`). C
code that takes the signal goes unnoticed, so `handles_signal` also reads what Linux says of
handlers and masks (``/proc/<pid>/status``).
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys

SIGNUM = signal.SIGURG
# The byte whose lock shows that its holder is the rank that the folder belongs to. It lies far
# behind what is written to the file.
RANK = 0x1CE0
# The byte whose lock shows that the handler is set. It isn't next to `RANK`, since the locks of two
# neighbours would be merged.
HANDLER = 0x1CE2
# struct flock: kind, whence, start, length, holder; on macOS start, length, holder, kind, whence.
_FLOCK = "qqihh" if sys.platform == "darwin" else "hhqqi"


def lock(fd: int, byte: int) -> None:
    """Locks a byte of a file for this process.

    Raises:
        OSError: Another process holds the lock, or the file system has no locks.
    """
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)


def unlock(fd: int, byte: int) -> None:
    """Unlocks a byte of a file."""
    fcntl.lockf(fd, fcntl.LOCK_UN, 1, byte)


def holder(fd: int, byte: int) -> int | None:
    """The pid of the process that locks exactly this byte. None: there is none.

    A lock on more than this byte isn't ours.

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
    """Whether a process has a handler for the signal, and a thread that doesn't block it.

    Only Linux says so. Elsewhere the answer is always True.
    """
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
