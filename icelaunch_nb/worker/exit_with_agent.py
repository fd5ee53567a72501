"""The leash: the operating system ends a whole rank when its agent is gone.

The agent holds the write end of a FIFO in the run directory. A rank, leader of a session and process group of its own,
opens the read end and asks Linux for SIGKILL to its group when the last writer closes it (``F_SETSIG``, ``O_ASYNC``). No
thread and no poll is involved, so it works while a C call holds the GIL and for the rank's children too: all gone within
50 ms of the agent's SIGKILL. torch's parent-death signal can't do this, since the parent of a rank is the forkserver.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path


def hold(leash: Path) -> None:
    """Puts this process on the leash. It must lead its own process group."""
    fd = os.open(leash, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if sys.platform == "linux":
        os.set_inheritable(fd, True)  # a program that this process becomes stays on it
        fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(fd, F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # it was gone before the leash was on
    else:
        threading.Thread(target=_watch, args=(fd,), name="icelaunch-leash", daemon=True).start()


F_SETSIG = 10  # fcntl(2), Linux; Python's fcntl has it only from 3.13


def _watch(fd: int) -> None:
    """The same for systems without F_SETSIG; it needs the GIL, so a rank deep in C code outlives its agent there."""
    os.set_blocking(fd, True)
    while os.read(fd, 1):
        pass
    os.killpg(0, signal.SIGKILL)
