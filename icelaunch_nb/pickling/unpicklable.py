"""Classes whose objects are bound to the process that made them, and what to do instead.

The classes are named, not imported. An entry also holds for classes derived from it.
"""

from __future__ import annotations

import sys

_MAKE = "it belongs to its process: make it in the function"
_BETWEEN = (
    "it is shared between a process and the children that it starts, "
    "and ranks are no children of the notebook: "
    "return values from the function, or exchange them by torch.distributed"
)
_READ = "it is what one process has open: open it in the function"
_ONCE = "it is used up by whoever reads it: pass a list of its values, or make it in the function"
OPERATOR_ADVICE = "define it with torch.library.custom_op, in a module, or in the function"

_ADVICE: dict[str, str] = {
    **dict.fromkeys(
        (
            "_thread.lock",
            "_thread.RLock",
            "threading.Condition",
            "threading.Event",
            "threading.Semaphore",
            "threading.Barrier",
            "_thread._local",
            "_threading_local.local",
            "threading.Thread",
            "queue.Queue",
            "_queue.SimpleQueue",
            "queue._PySimpleQueue",
            "concurrent.futures._base.Executor",
            "concurrent.futures._base.Future",
        ),
        _MAKE,
    ),
    **dict.fromkeys(
        (
            "asyncio.events.AbstractEventLoop",
            "_asyncio.Task",
            "_asyncio.Future",
            "asyncio.futures.Future",
            "_contextvars.Context",
            "_contextvars.Token",
            "coroutine",
            "frame",
        ),
        _MAKE,
    ),
    **dict.fromkeys(
        (
            "multiprocessing.queues.Queue",
            "multiprocessing.queues.SimpleQueue",
            "multiprocessing.queues.JoinableQueue",
            "multiprocessing.synchronize.SemLock",
            "multiprocessing.synchronize.Condition",
            "multiprocessing.synchronize.Event",
            "multiprocessing.pool.Pool",
            "multiprocessing.process.BaseProcess",
            "multiprocessing.managers.BaseProxy",
            "multiprocessing.managers.BaseManager",
            "multiprocessing.sharedctypes.SynchronizedBase",
        ),
        _BETWEEN,
    ),
    **dict.fromkeys(
        ("_io._IOBase", "tempfile._TemporaryFileWrapper", "mmap.mmap", "logging.FileHandler"),
        _READ + ", by its path",
    ),
    **dict.fromkeys(
        (
            "socket.socket",
            "_socket.socket",
            "ssl.SSLSocket",
            "ssl.SSLContext",
            "_ssl._SSLContext",
            "select.epoll",
            "select.poll",
        ),
        _MAKE,
    ),
    **dict.fromkeys(
        ("sqlite3.Connection", "sqlite3.Cursor", "sqlite3.dbapi2.Connection"),
        "connect in the function: each rank has a connection of its own",
    ),
    **dict.fromkeys(
        (
            "generator",
            "async_generator",
            "callable_iterator",
            "torch.utils.data.dataloader._BaseDataLoaderIter",
        ),
        _ONCE,
    ),
    **dict.fromkeys(("random.SystemRandom", "numpy.ufunc"), _MAKE),
    **dict.fromkeys(
        ("_ctypes.PyCFuncPtr", "_ctypes.CFuncPtr", "_ctypes._Pointer"),
        "it holds an address of the process that made it: make it in the function",
    ),
    "traceback": "pass the exception, or traceback.format_exception of it",
    "subprocess.Popen": "it is the notebook's child: start the program in the function",
    "weakref.ReferenceType": "pass the object itself",
    "logging.Handler": "it belongs to the process that made it: add the handler in the function",
    **dict.fromkeys(
        ("torch.library.Library", "torch._C._DispatchModule"),
        OPERATOR_ADVICE.replace("it", "its operators", 1),
    ),
    **dict.fromkeys(
        (
            "torch._ops.OpOverloadPacket",
            "torch._ops.OpOverload",
            "torch._ops._OpNamespace",
            "torch._library.custom_ops.CustomOpDef",
        ),
        OPERATOR_ADVICE,
    ),
    **dict.fromkeys(
        ("torch.jit._script.ScriptModule", "torch._C.ScriptFunction", "torch.jit.ScriptFunction"),
        "script it in the function",
    ),
    "ctypes.CDLL": "load the library in the function",
    "icelaunch_nb.events.Events": (
        "pass it as launch(..., events=...); the function finds it as get_context().events"
    ),
}
# The beginning of CPython's message about an object of C that has no reduction.
_OF_ONE_PROCESS = "cannot pickle '"


def advice(obj: object) -> str:
    """What to do instead of passing this object; empty if its class isn't listed."""
    for cls in type(obj).__mro__:
        name = (
            cls.__qualname__
            if cls.__module__ == "builtins"
            else f"{cls.__module__}.{cls.__qualname__}"
        )
        if (found := _ADVICE.get(name)) is not None:
            return found
    return ""


def reason_with_advice(reason: str, obj: object) -> str:
    """The reason why an object can't be pickled, followed by what to do instead.

    Args:
        reason: The message of pickling's exception.
        obj: The object.
    """
    what = advice(obj) or (_MAKE if reason.startswith(_OF_ONE_PROCESS) else "")
    return f"{reason}; {what}" if what and what not in reason else reason


def refusal(obj: object) -> str:
    """Why an object is refused that could be pickled, but not be used in another process.

    Returns:
        The reason; empty for all other objects.
    """
    managers = sys.modules.get("multiprocessing.managers")
    if managers is not None and issubclass(type(obj), managers.BaseProxy):
        return f"it stands for an object of a manager's process; {_BETWEEN}"
    return ""
