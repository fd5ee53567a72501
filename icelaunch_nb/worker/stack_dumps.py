"""Lets faulthandler dump a rank's stacks on a signal (see `rundir.stack_signal`).

It does so until the user's code sets its own handler of that signal.
"""

from __future__ import annotations

import contextlib
import os

# Imported by name: the originals, before `cpython.watch_handler` replaces them in the module.
from faulthandler import register, unregister

from icelaunch_nb.rundir.paths import RankDir
from icelaunch_nb.rundir.stack_signal import HANDLER, RANK, SIGNUM, lock, unlock
from icelaunch_nb.system import cpython
from icelaunch_nb.system.files import open_private


def enable(rank_dir: RankDir) -> None:
    """Writes the stacks of all threads to the rank's folder on request, from here on.

    Args:
        rank_dir: The rank's folder.
    """
    fd = open_private(rank_dir.stacks, os.O_RDWR | os.O_APPEND)
    rank_pid, file = os.getpid(), os.fstat(fd)

    def is_open() -> bool:
        """Whether this is the rank, no forked child, and the descriptor is still the file's."""
        try:
            return os.getpid() == rank_pid and os.path.samestat(os.fstat(fd), file)
        except OSError:
            return False

    def remove_handler() -> None:
        unregister(SIGNUM)  # in a forked child too: it has inherited the rank's handler
        if is_open():
            unlock(fd, HANDLER)

    def set_handler() -> None:
        if is_open():
            register(SIGNUM, file=fd, all_threads=True)
            # On a file system without locks nobody requests stacks, and nothing else is lost.
            with contextlib.suppress(OSError):
                lock(fd, HANDLER)

    with contextlib.suppress(OSError):
        lock(fd, RANK)
    set_handler()
    cpython.watch_handler(SIGNUM, on_replace=remove_handler, on_restore=set_handler)
