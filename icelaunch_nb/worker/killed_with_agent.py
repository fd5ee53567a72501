"""The operating system ends a whole rank when its agent is gone.

The agent holds the write end of a FIFO in the run directory. A rank leads a session and a process
group of its own. It opens the read end and asks Linux for SIGKILL to its group when the last
writer closes the FIFO (``F_SETSIG``, ``O_ASYNC``). This needs no thread and no poll, so it works
while a C call holds the GIL, and for the rank's children too: all are gone within 50 ms of the
agent's SIGKILL. torch's parent-death signal can't do this, since the parent of a rank is the
forkserver.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

F_SETSIG = 10  # fcntl(2), Linux; Python's fcntl has it only from 3.13


def enable(agent_alive: Path) -> None:
    """Lets this process and its group end with the agent. The process must lead its group.

    Args:
        agent_alive: The FIFO whose only writer is the agent (`RunDir.agent_alive`).
    """
    fd = os.open(agent_alive, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if sys.platform == "linux":
        os.set_inheritable(fd, True)  # a program that replaces this process ends with the agent too
        fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(fd, F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # it was gone before the signal was armed
    else:
        threading.Thread(
            target=_kill_group_when_closed, args=(fd,), name="icelaunch-agent-alive", daemon=True
        ).start()


def _kill_group_when_closed(fd: int) -> None:
    """Does the same on systems without F_SETSIG.

    It needs the GIL, so a rank that is deep in C code outlives its agent there.
    """
    os.set_blocking(fd, True)
    while os.read(fd, 1):
        pass
    os.killpg(0, signal.SIGKILL)
