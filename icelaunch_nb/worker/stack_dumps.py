"""A rank's side of `stacks.ask`: faulthandler answers the signal until the user's code takes it."""

from __future__ import annotations

import contextlib
import os
from faulthandler import (
    register,
    unregister,
)  # as they are before `cpython.watch_handler` replaces them

from icelaunch_nb.rundir.paths import RankDir
from icelaunch_nb.rundir.stack_signal import HANDLER, RANK, SIGNUM, lock, unlock
from icelaunch_nb.system import cpython
from icelaunch_nb.system.files import open_private


def serve(rank_dir: RankDir) -> None:
    """From here on the stacks of all threads are written to the rank's folder on request."""
    fd = open_private(rank_dir.stacks, os.O_RDWR | os.O_APPEND)
    me, file = os.getpid(), os.fstat(fd)

    def is_open() -> bool:
        """Whether this is still the rank, not a child that it forked, and the descriptor still the file's."""
        try:
            return os.getpid() == me and os.path.samestat(os.fstat(fd), file)
        except OSError:
            return False

    def take() -> None:
        unregister(SIGNUM)  # in a child too: its handler is the rank's
        if is_open():
            unlock(fd, HANDLER)

    def give_back() -> None:
        if is_open():
            register(SIGNUM, file=fd, all_threads=True)
            with contextlib.suppress(
                OSError
            ):  # a file system without locks: nobody asks, and nothing else is lost
                lock(fd, HANDLER)

    with contextlib.suppress(OSError):
        lock(fd, RANK)
    give_back()
    cpython.watch_handler(SIGNUM, take, give_back)
