"""CPython's private names that are used here: of multiprocessing, atexit, asyncio and others.

``tests/system/test_cpython.py`` runs each function and fails on a Python where a name has moved.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import atexit
import contextlib
import faulthandler
import functools
import gc
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

_X_VARIABLES = {
    "no_debug_ranges": "PYTHONNODEBUGRANGES",
    "warn_default_encoding": "PYTHONWARNDEFAULTENCODING",
    "perf": "PYTHONPERFSUPPORT",
    "gil": "PYTHON_GIL",
    "cpu_count": "PYTHON_CPU_COUNT",
    "thread_inherit_context": "PYTHON_THREAD_INHERIT_CONTEXT",
    "context_aware_warnings": "PYTHON_CONTEXT_AWARE_WARNINGS",
}


def share_parents_forkserver() -> None:
    """Makes this process start its children by the forkserver that forked it.

    The process knows the server's address already. But the server isn't its child, so
    multiprocessing takes it for stopped and would start a second, cold one. Since Python 3.14 a
    client must prove that it knows the server's key. The server doesn't pass the key on: it is a
    local variable of the loop that forked this process.

    CPython 3.10 to 3.14: ``Lib/multiprocessing/forkserver.py``, ``ForkServer.ensure_running``.

    Raises:
        RuntimeError: No forkserver forked this process, or this isn't its main thread.
    """
    import multiprocessing.forkserver

    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_address is None or server._forkserver_alive_fd is None:
        raise RuntimeError("this process was not started by a forkserver")
    if hasattr(server, "_forkserver_authkey"):
        server._forkserver_authkey = _forkserver_key()
    server.ensure_running = lambda: None


def _forkserver_key() -> bytes:
    """The key of the forkserver that forked this process; found from the main thread only."""
    import multiprocessing.forkserver

    frame = sys._getframe()
    while frame.f_code is not multiprocessing.forkserver.main.__code__:
        if frame.f_back is None:
            raise RuntimeError("this thread is not the one that a forkserver started")
        frame = frame.f_back
    key: bytes = frame.f_locals["authkey"]
    return key


def close_pipes_on_exec() -> None:
    """Closes multiprocessing's pipes in each program that this process starts or becomes.

    multiprocessing makes them inheritable. A program that holds a write end keeps the forkserver or
    the resource tracker alive as long as it or a child of it lives.
    """
    import multiprocessing.forkserver
    import multiprocessing.resource_tracker

    server: Any = multiprocessing.forkserver._forkserver
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    for fd in (server._forkserver_alive_fd, tracker._fd):
        with contextlib.suppress(TypeError, OSError):  # none, or closed already
            os.set_inheritable(fd, False)


def start_resource_tracker(name: str) -> None:
    """Starts a resource tracker for this process and its children, in place of the forkserver's.

    Once all of them are gone, the tracker unlinks the shared memory and semaphores that they left,
    however they ended. It is forked from this process, since a fresh interpreter would take five
    times as long. So this process must have no threads yet.

    Args:
        name: The tracker's name in Linux's process list.
    """
    import multiprocessing.resource_tracker

    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
                comm.write(name)
            # Not os.closerange: the limit may be a billion, and an old Linux closes one by one.
            for fd in map(int, os.listdir("/dev/fd")):
                if fd > 2 and fd != reading:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            multiprocessing.resource_tracker.main(reading)
        finally:
            os._exit(0)
    os.close(reading)
    if tracker._fd is not None:
        os.close(tracker._fd)
    tracker._fd, tracker._pid = writing, pid


def forkserver_pid() -> int | None:
    """The pid of the forkserver that this process started; None before it did."""
    import multiprocessing.forkserver

    server: Any = multiprocessing.forkserver._forkserver
    return server._forkserver_pid


def forkserver_exit_code() -> int | None:
    """The exit code of the forkserver that this process started, negative for a signal.

    It leaves the process unreaped. multiprocessing reaps it when it starts another forkserver.

    Returns:
        The code. None while the forkserver lives, or where the system can't report its end.
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


def reset_start_method() -> None:
    """Restores multiprocessing's default start method; a forked child inherits ``forkserver``."""
    import multiprocessing

    multiprocessing.set_start_method(None, force=True)


def interpreter_flags() -> list[str]:
    """This interpreter's options that change how code runs: ``-O``, ``-b`` and ``-X``.

    ``-W`` isn't among them. Ranks get the current filters, and a warning under ``-W error`` must
    not end a host or an agent. multiprocessing passes the options from a host to its forkserver,
    and from a rank to its children.
    """
    switches = [
        f"-{letter * count}"
        for letter, count in (("O", sys.flags.optimize), ("b", sys.flags.bytes_warning))
        if count
    ]
    options = [
        name if value is True else f"{name}={value}" for name, value in sys._xoptions.items()
    ]
    return [*switches, *(f"-X{option}" for option in options)]


def interpreter_variables() -> dict[str, str]:
    """Environment variables for those ``-X`` options that multiprocessing doesn't pass on."""
    return {
        variable: "1" if value is True else value
        for option, variable in _X_VARIABLES.items()
        if (value := sys._xoptions.get(option))
    }


def warnings_are_recorded() -> bool:
    """Whether this is within ``warnings.catch_warnings(record=True)``, as pytest's tests are."""
    return isinstance(getattr(getattr(warnings, "_showwarnmsg_impl", None), "__self__", None), list)


def set_main_of_children(main_file: Callable[[], str]) -> None:
    """Makes children by spawn and forkserver run a given file as their ``__main__``.

    This applies where this process's own ``__main__`` has neither a file nor a name.

    Args:
        main_file: Returns the file's path. It is called for each child.
    """
    import multiprocessing.spawn

    prepare = multiprocessing.spawn.get_preparation_data

    def with_main(name: str) -> dict[str, Any]:
        data: dict[str, Any] = prepare(name)
        if "init_main_from_path" not in data and "init_main_from_name" not in data:
            data["init_main_from_path"] = main_file()
        return data

    multiprocessing.spawn.get_preparation_data = with_main


def cmp_to_key_parts(key: Any) -> tuple[Any, tuple[Any, ...]]:
    """The parts of a result of `functools.cmp_to_key`.

    Args:
        key: The callable that ``cmp_to_key`` returned, or a key that this callable returned.

    Returns:
        The comparison function, and a tuple with the key's value. It is empty for the callable.
    """
    compare, *value = [part for part in gc.get_referents(key) if part is not type(key)]
    return compare, tuple(value)


def run_exit_functions() -> None:
    """Joins threads and runs atexit functions, for a process that ends by ``os._exit``.

    Children of multiprocessing skip atexit functions (CPython gh-83856). wandb and others rely on
    them.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def disable_finalizers_at_exit() -> None:
    """Keeps this process's `weakref.finalize` objects from running at exit.

    It is for a forkserver whose children run exit functions. torch's operator libraries register
    dozens. A rank that ran them took 36 ms longer to exit, without any use.
    """
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False


def disable_log_handlers_at_exit() -> None:
    """Keeps this process's logging handlers from being flushed and closed at exit.

    It is for a forkserver whose children run exit functions. torch has 40 handlers, and none of
    them buffers. A rank that flushed and closed them copied 150 of the pages shared by the fork.
    """
    import logging

    logging._handlerList.clear()  # type: ignore[attr-defined]


def ctrl_c_cancels_main_task() -> bool:
    """Whether Ctrl+C has just cancelled the main task of ``asyncio.run``.

    Before Python 3.11 it cancels nothing: KeyboardInterrupt ends the loop.

    CPython 3.11 to 3.14: ``Lib/asyncio/runners.py``, ``Runner._on_sigint``.
    """
    handler = signal.getsignal(signal.SIGINT)
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    return getattr(runner, "_interrupt_count", 0) > 0


def become_main_process() -> None:
    """Makes this process multiprocessing's ``MainProcess``, as that of a script is.

    A process that a forkserver forked is called ``ForkServerProcess-3:1``. Users' code checks the
    name before it logs, and the names of children are built from it.

    CPython 3.10 to 3.14: ``Lib/multiprocessing/process.py``.
    """
    import multiprocessing.process

    process: Any = multiprocessing.process.current_process()
    process._name, process._identity, process._parent_pid = "MainProcess", (), None
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]


def watch_handler(
    signum: int, on_replace: Callable[[], None], on_restore: Callable[[], None]
) -> None:
    """Watches whether Python code replaces the handler of a signal that faulthandler has.

    Users' code, asyncio and libraries call ``signal.signal``, which calls ``_signal.signal``. The
    latter is replaced here.

    Args:
        signum: The signal.
        on_replace: Called before ``signal.signal`` or ``faulthandler.register`` sets a handler.
        on_restore: Called once the handler is the present one again.
    """
    original = _signal.getsignal(signum)
    set_handler, register = _signal.signal, faulthandler.register
    unregister: Any = faulthandler.unregister

    @functools.wraps(set_handler)
    def watched_signal(signalnum: Any, handler: Any, /) -> Any:
        if signalnum != signum:
            return set_handler(signalnum, handler)
        on_replace()
        try:
            return set_handler(signalnum, handler)
        finally:
            if _signal.getsignal(signum) == original:
                on_restore()

    @functools.wraps(register)
    def watched_register(signum_: Any, *args: Any, **kwargs: Any) -> None:
        if signum_ == signum:
            on_replace()
        register(signum_, *args, **kwargs)

    @functools.wraps(unregister)
    def watched_unregister(signum_: Any) -> Any:
        done: Any = unregister(signum_)
        if signum_ == signum and _signal.getsignal(signum) == original:
            on_restore()
        return done

    _signal.signal = watched_signal
    faulthandler.register = watched_register  # type: ignore[assignment]
    faulthandler.unregister = watched_unregister
