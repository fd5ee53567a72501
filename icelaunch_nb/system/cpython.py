"""The door to CPython's private names: multiprocessing's forkserver, atexit, threading.

``tests/test_doors.py`` runs each of these and fails on a Python where one has moved.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import threading
import weakref
from typing import Any


def share_parents_forkserver() -> None:
    """Makes a process that a forkserver forked ask that same forkserver for its own children.

    Such a process knows the server's address already, but not that it runs (it isn't its child), and would start a second,
    cold one. CPython 3.10 to 3.14: ``Lib/multiprocessing/forkserver.py``, ``ForkServer.ensure_running``.
    """
    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_address is None or server._forkserver_alive_fd is None:
        raise RuntimeError("this process was not started by a forkserver")
    server.ensure_running = lambda: None


def keep_pipes_from_program() -> None:
    """Closes multiprocessing's pipes, inheritable for children of Python's, when this process becomes another program.

    A write end in a stranger's hands keeps the forkserver or the resource tracker alive as long as that stranger's children live.
    """
    server: Any = multiprocessing.forkserver._forkserver
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    for fd in (server._forkserver_alive_fd, tracker._fd):
        with contextlib.suppress(TypeError, OSError):  # none, or closed already
            os.set_inheritable(fd, False)


def forkserver_pid() -> int | None:
    """The pid of the forkserver that this process started, None before it did."""
    server: Any = multiprocessing.forkserver._forkserver
    return server._forkserver_pid


def forkserver_end() -> int | None:
    """What ended the forkserver that this process started: its exit code, negative for a signal; None while it lives.

    It is left for multiprocessing to reap, which does so when it starts another one.
    """
    pid = forkserver_pid()
    try:
        found = (
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if pid is not None
            else None
        )
    except (AttributeError, ChildProcessError):  # macOS before Python 3.13; reaped already
        return None
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def forget_start_method() -> None:
    """Back to the platform's default start method: a forked child has its parent's, ``forkserver``."""
    multiprocessing.set_start_method(None, force=True)


def run_exit_functions() -> None:
    """What an interpreter does at its end, for a process that leaves by ``os._exit``.

    multiprocessing's children skip atexit functions (CPython gh-83856); wandb and others rely on them.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def keep_finalizers_from_children() -> None:
    """Takes `weakref.finalize` objects of this process off its end, for a forkserver whose children run exit functions.

    torch's operator libraries register dozens; a rank that ran them at its end, to no purpose, took 36 ms longer to leave.
    """
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
