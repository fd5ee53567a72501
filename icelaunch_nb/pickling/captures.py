"""The globals and closure variables that functions take along, and a warning about large ones."""

from __future__ import annotations

import pickle
import types
import warnings
from pathlib import Path
from typing import Any

from icelaunch_nb.errors import BigCaptureWarning
from icelaunch_nb.pickling.packing import ByteCounter, Pickler, captured

BIG = 64 << 20  # bytes; a larger global is worth a warning


def warn_of_big_captures(
    functions: list[types.FunctionType], path: Path, *, stacklevel: int
) -> None:
    """Warns about each global over 64 MB that functions take along.

    Globals are only measured if the whole pickle is that large.

    Args:
        functions: The functions that were pickled.
        path: The pickle.
        stacklevel: As `warnings.warn` takes it, seen from the caller.
    """
    if path.stat().st_size < BIG:
        return
    seen: set[int] = set()
    for function in functions:
        for name, value in captured(function):
            if id(value) in seen or _is_definition(value):
                continue
            seen.add(id(value))
            size = _packed_size(value)
            if size > BIG:
                warnings.warn(
                    f"{function.__qualname__} captures `{name}` ({size / (1 << 20):,.0f} MB), "
                    "which is written at every launch; "
                    "load it inside the function, or pass a path",
                    BigCaptureWarning,
                    stacklevel=stacklevel + 1,
                )


def captures(functions: list[types.FunctionType]) -> dict[str, Any]:
    """The objects that functions take along, by name, without modules, functions and classes."""
    found = {name: value for function in functions for name, value in captured(function)}
    return {name: value for name, value in found.items() if not _is_definition(value)}


def _is_definition(value: Any) -> bool:
    return issubclass(type(value), types.ModuleType | types.FunctionType | type)


def _packed_size(value: Any) -> int:
    counter, outside = ByteCounter(), 0

    def count(buffer: pickle.PickleBuffer) -> None:
        nonlocal outside
        outside += buffer.raw().nbytes

    try:
        Pickler(counter, count, False).dump(value)
    except Exception:
        return 0
    return counter.size + outside
