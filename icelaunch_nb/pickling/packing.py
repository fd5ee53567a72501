"""cloudpickle of the call, the results and the exceptions.

Beyond plain cloudpickle:

* Large buffers (numpy arrays, tensors) are written out of band, so they are never copied into the pickle, and mapped when
  they are read: ``<pickle> <buffers, aligned> <offset and length of each> <footer>``.
* A notebook function's globals become the rank's ``__main__``, as a script's would be: ``global`` works, and what a cell
  defined can be pickled by name in the rank (``torch.save`` of a model, say).
* The source of the cells that the functions come from is collected, for tracebacks, ``inspect.getsource``, torch.compile.
* A class that came from the kernel goes back as "that class of yours", so ``isinstance`` holds there.
* What can't be pickled is named by the path to it.

cloudpickle's private names that this leans on (``globals_ref``, ``_code_reduce``, the class tracker) stand here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import linecache
import mmap
import os
import pickle
import struct
import sys
import time
import types
import typing
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _cp

from icelaunch_nb.errors import BigCaptureWarning, PackingError
from icelaunch_nb.rundir import check_owner
from icelaunch_nb.tensors import TensorReducer

BIG = 64 << 20
_FOOTER = struct.Struct("<QQ8s")  # number of buffers, where their table starts, magic
_ENTRY = struct.Struct("<QQ")
_MAGIC = b"icepack1"
_ALIGN = 64  # torch and numpy like cache lines
_MAP_FROM = 1 << 20  # below, reading is cheaper than a mapping and its file descriptor


class _MainGlobals(dict):
    """Stands for the kernel's ``__main__`` namespace in a pickle. Not empty: cloudpickle fills empty ones."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _main_globals, ()


def _main_globals() -> dict[str, Any]:
    return vars(sys.modules["__main__"])


def _tracked_class(tracker_id: str, definition: bytes) -> type:
    """The class that this process knows by that id; where it doesn't (another kernel), the class as the rank had it."""
    known = _cp._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)
    return known if known is not None else pickle.loads(definition)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, with the additions that the module's docstring lists.

    Args:
        file: Where the pickle goes.
        buffer_callback: Takes the out-of-band buffers.
        homeward: Whether it goes from a rank to the kernel, which has the classes of its cells already.
    """

    def __init__(
        self,
        file: Any,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
        homeward: bool,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self.functions: list[types.FunctionType] = []
        self._homeward = homeward
        self._tensors = TensorReducer()
        if not homeward:
            main = _MainGlobals()
            main["__name__"] = "__main__"
            self.globals_ref[id(_main_globals())] = main

    def reducer_override(self, obj: Any) -> Any:
        reduced = self._tensors(obj)
        if reduced is not NotImplemented:
            return reduced
        if self._homeward and isinstance(obj, type) and obj in _class_ids():
            return _tracked_class, (_class_ids()[obj], cloudpickle.dumps(obj))
        if (
            self._homeward
            and isinstance(obj, BaseException)
            and type(obj).__reduce__ is BaseException.__reduce__
        ):
            return _rebuild_exception, (type(obj), obj.args, obj.__dict__)
        if isinstance(obj, types.FunctionType):
            self.functions.append(obj)
        special = _special(obj)
        if special is not NotImplemented:
            return special
        return _with_slots(obj, super().reducer_override(obj))


def _rebuild_exception(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    """An exception without a call of its ``__init__``, which often takes other arguments than ``args``."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _code_from(
    filename: str, make: Callable[..., types.CodeType], args: tuple[Any, ...]
) -> types.CodeType:
    return make(*args).replace(co_filename=filename)


def _special(obj: Any) -> Any:
    """How to reduce what cells define and cloudpickle 3.1 can't carry; NotImplemented for everything else."""
    if isinstance(
        obj, types.CodeType
    ):  # since 3.1.3 it calls every file <dynamic-code>: no traceback would find its source
        return _code_from, (obj.co_filename, *_cp._code_reduce(obj))
    if isinstance(obj, functools._lru_cache_wrapper) and not _importable(obj):
        return _empty_cache, (obj.cache_parameters(),), obj.__wrapped__, None, None, _fill_cache
    if type(obj) is functools.cached_property:  # holds a lock before Python 3.12
        return functools.cached_property, (obj.func,), obj.attrname, None, None, _name_property
    if type(obj) is weakref.WeakKeyDictionary:  # functools.singledispatch has one
        return weakref.WeakKeyDictionary, (dict(obj),)
    if type(obj) is typing.NewType and obj.__module__ == "__main__":
        return typing.NewType, (obj.__name__, obj.__supertype__)
    return NotImplemented


def _with_slots(obj: Any, reduced: Any) -> Any:
    """Has the skeleton of a class with slots made with them; else its instances get a ``__dict__`` that the original lacks."""
    if (
        isinstance(obj, type)
        and vars(obj).get("__slots__")
        and isinstance(reduced, tuple)
        and reduced[0] is _cp._make_skeleton_class
    ):
        reduced[1][3]["__slots__"] = vars(obj)["__slots__"]
    return reduced


def _name_property(made: Any, attrname: str | None) -> None:
    made.attrname = attrname


def _importable(function: Any) -> bool:
    """Whether a process that imports its module finds this very object by its name."""
    module = sys.modules.get(function.__module__ or "")
    return (
        function.__module__ != "__main__"
        and getattr(module, function.__qualname__, None) is function
    )


def _empty_cache(parameters: dict[str, Any]) -> Any:
    """A `functools.lru_cache` whose function comes later: a recursive one refers to its own cache."""
    functions: list[Any] = []

    @functools.lru_cache(**parameters)  # type: ignore[untyped-decorator, unused-ignore]
    def cached(*args: Any, **kwargs: Any) -> Any:
        return functions[0](*args, **kwargs)

    cached._functions = functions  # type: ignore[attr-defined]
    return cached


def _fill_cache(cached: Any, function: Any) -> None:
    cached._functions.append(function)
    functools.update_wrapper(cached, function)


def _class_ids() -> Any:
    return _cp._DYNAMIC_CLASS_TRACKER_BY_CLASS


class NotWritten(OSError):
    """The file of a pickle could not be written. An OSError that an object raised while it was pickled is not this one."""


class _Sheet:
    """A file whose errors can be told from those of the objects written to it."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        try:
            return int(self._file.write(data))
        except OSError as error:
            raise NotWritten(error.errno, error.strerror) from error


def dump(obj: Any, path: Path, *, homeward: bool = False) -> list[types.FunctionType]:
    """Writes `obj` to a file that appears whole, mode 0600.

    Args:
        obj: Anything that cloudpickle can carry.
        path: The file.
        homeward: See `Pickler`.

    Returns:
        The functions that went by value or by name.

    Raises:
        Exception: Whatever pickling raised; `explain` finds the culprit.
        NotWritten: The disk is full, or the directory is gone.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror) from error
    file = open(fd, "wb", buffering=1 << 20)
    try:
        buffers: list[pickle.PickleBuffer] = []
        pickler = Pickler(_Sheet(file), buffers.append, homeward)
        pickler.dump(obj)
        try:
            _append_buffers(file, buffers)
            file.close()
            draft.rename(path)
        except OSError as error:
            raise NotWritten(error.errno, error.strerror) from error
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk again, for what was buffered
            file.close()
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    return pickler.functions


def _append_buffers(file: Any, buffers: list[pickle.PickleBuffer]) -> None:
    views = [buffer.raw() for buffer in buffers]
    position, table = file.tell(), []
    for view in views:
        position += -position % _ALIGN
        table.append((position, view.nbytes))
        position += view.nbytes
    _reserve(file.fileno(), position + len(table) * _ENTRY.size + _FOOTER.size)
    for view, (offset, _) in zip(views, table, strict=True):
        file.write(b"\0" * (offset - file.tell()))
        file.write(view)
    file.write(
        b"".join(_ENTRY.pack(*entry) for entry in table)
        + _FOOTER.pack(len(table), position, _MAGIC)
    )
    file.flush()


def _reserve(fd: int, size: int) -> None:
    """Allocates a large file's blocks beforehand.

    256 MB took 0.05 s to write on ext4 then, five times of five, and 0.06 to 0.76 s otherwise. A full disk is known at once.
    """
    if size < _MAP_FROM or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def load(path: Path) -> Any:
    """Reads what `dump` wrote. Large buffers are mapped, copy on write: they cost no memory until they are changed.

    Raises:
        IcelaunchError: Somebody else owns the file.
        ValueError: It is no such file, or not whole.
        Exception: Whatever unpickling raised.
    """
    check_owner(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size >= _MAP_FROM:
            data = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY))
        else:
            data = memoryview(bytearray(file.read()))
    if size < _FOOTER.size:
        raise ValueError(f"{path} is not whole")
    count, start, magic = _FOOTER.unpack(data[size - _FOOTER.size :])
    if magic != _MAGIC or start + count * _ENTRY.size + _FOOTER.size != size:
        raise ValueError(f"{path} is not whole")
    table = _ENTRY.iter_unpack(data[start : size - _FOOTER.size])
    return pickle.loads(
        data[:start], buffers=[data[offset : offset + length] for offset, length in table]
    )


def cell_sources(functions: list[types.FunctionType]) -> dict[str, dict[str, str]]:
    """Source and name of the cells that `functions` come from, by code filename; real files are left out."""
    found: dict[str, dict[str, str]] = {}
    for filename in {function.__code__.co_filename for function in functions}:
        if not os.path.exists(filename) and (lines := linecache.getlines(filename)):
            found[filename] = {"name": _cell_name(filename), "source": "".join(lines)}
    return found


def _cell_name(filename: str) -> str:
    """``Cell In[3]``, as the notebook's own tracebacks name it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    label = getattr(getattr(shell, "compile", None), "format_code_name", lambda _: None)(filename)
    return " ".join(label) if label else filename


def warn_of_big_captures(
    functions: list[types.FunctionType], path: Path, *, stacklevel: int
) -> None:
    """Names the globals over 64 MB that functions took along. Measures only where the payload is that large at all."""
    if path.stat().st_size < BIG:
        return
    seen: set[int] = set()
    for function in functions:
        for name, value in _captured(function):
            if id(value) in seen or isinstance(value, types.ModuleType | types.FunctionType | type):
                continue
            seen.add(id(value))
            size = _packed_size(value)
            if size > BIG:
                warnings.warn(
                    f"{function.__qualname__} captures `{name}` ({size / (1 << 20):,.0f} MB), which is written at every launch; "
                    "load it inside the function, or pass a path",
                    BigCaptureWarning,
                    stacklevel=stacklevel + 1,
                )


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Names and values of the globals and closure variables that cloudpickle takes along."""
    if _importable(function):
        return
    for name in _cp._extract_code_globals(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue


class _Counter(io.RawIOBase):
    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.size += len(data)
        return len(data)


def _packed_size(value: Any) -> int:
    counter, outside = _Counter(), 0

    def count(buffer: pickle.PickleBuffer) -> None:
        nonlocal outside
        outside += buffer.raw().nbytes

    try:
        Pickler(counter, count, False).dump(value)
    except Exception:
        return 0
    return counter.size + outside


def explain(error: BaseException, roots: dict[str, Any], *, seconds: float = 5.0) -> PackingError:
    """Finds what made pickling fail.

    Args:
        error: What pickling raised.
        roots: Candidates by the name to show (``{"args[0]": model}``).
        seconds: How long to look at most; then the innermost culprit so far is named.

    Returns:
        The error to raise, with the path to the innermost object that can't be pickled by itself.
    """
    deadline = time.monotonic() + seconds
    for name, value in roots.items():
        reason = _why_not(value)
        if reason is None:
            continue
        path, culprit, seen = name, value, {id(value)}
        while time.monotonic() < deadline:
            for step, child in _children(culprit):
                if id(child) in seen:
                    continue
                seen.add(id(child))
                child_reason = _why_not(child)
                if child_reason is not None:
                    path, culprit, reason = path + step, child, child_reason
                    break
            else:
                break
        return PackingError(path, _type_name(culprit), reason)
    return PackingError(next(iter(roots), "?"), "?", f"{type(error).__name__}: {error}")


def fits(value: Any) -> bool:
    """Whether a value can be packed by itself."""
    return _why_not(value) is None


def _why_not(value: Any) -> str | None:
    try:
        Pickler(_Counter(), lambda _: None, False).dump(value)
    except Exception as error:
        return (
            f"{type(error).__name__}: {error}" if not isinstance(error, TypeError) else str(error)
        )
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Parts of a value and how one reaches each, as far as the value lets itself be looked at."""
    with contextlib.suppress(Exception):
        yield from _parts(value)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Parts of a value and how one reaches each."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r}]", item
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, set | frozenset):
        for item in value:
            yield "{…}", item
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        for name, item in _captured(value):
            yield f" → {name}", item
        for name, item in (value.__kwdefaults__ or {}).items():
            yield f" → default {name}", item
        for name, item in zip(_default_names(value), value.__defaults__ or (), strict=False):
            yield f" → default {name}", item
    elif isinstance(value, type):
        for name, item in vars(value).items():
            if not name.startswith("__"):
                yield f".{name}", item
    if not isinstance(value, type | types.FunctionType | types.ModuleType):
        for name, item in getattr(value, "__dict__", {}).items():
            yield f".{name}", item
        for cls in type(value).__mro__:
            slots = vars(cls).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    yield f".{name}", getattr(value, name)
        for name in ("func", "args", "keywords") if type(value).__name__ == "partial" else ():
            yield f".{name}", getattr(value, name)


def _default_names(function: types.FunctionType) -> tuple[str, ...]:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return names[len(names) - len(function.__defaults__ or ()) :]


def _type_name(value: Any) -> str:
    cls = type(value)
    return (
        cls.__qualname__
        if cls.__module__ in ("builtins", "__main__")
        else f"{cls.__module__}.{cls.__qualname__}"
    )


def adopt_main_classes() -> None:
    """Makes the classes that came with the call attributes of ``__main__``, where a script would have them."""
    main = _main_globals()
    for cls in list(_class_ids()):
        if cls.__module__ == "__main__" and "." not in cls.__qualname__:
            main.setdefault(cls.__qualname__, cls)
