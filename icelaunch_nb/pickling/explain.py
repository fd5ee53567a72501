"""Explains why something can't be pickled.

The error names the path to the innermost object that can't be pickled, its type and the reason.
"""

from __future__ import annotations

import contextlib
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from icelaunch_nb.errors import PackingError
from icelaunch_nb.pickling import unpicklable
from icelaunch_nb.pickling.ipython_names import is_shell
from icelaunch_nb.pickling.packing import ByteCounter, Pickler, captured, type_name


def explain(
    error: BaseException, roots: dict[str, Any], *, seconds: float = 5.0, to_a_rank: bool = True
) -> PackingError:
    """Finds what made pickling fail.

    Args:
        error: What pickling raised.
        roots: Candidates by the name to show (``{"args[0]": model}``).
        seconds: How long to search. After that, the error names the innermost culprit so far.
        to_a_rank: Whether it was on its way to a rank. Then the error says what to do instead.

    Returns:
        The error to raise, with the path to the innermost object that can't be pickled by itself.
    """
    deadline = time.monotonic() + seconds
    for name, value in roots.items():
        reason = _failure_reason(value)
        if reason is None:
            continue
        path, culprit, seen = name, value, {id(value)}
        while (
            time.monotonic() < deadline
            and not is_shell(culprit)
            and not unpicklable.advice(culprit)
        ):
            for step, child in _children(culprit):
                if id(child) in seen:
                    continue
                seen.add(id(child))
                child_reason = _failure_reason(child)
                if child_reason == reason == _TOO_DEEP and type(child) is type(culprit):
                    # The next levels are alike: they would add nothing but length to the path.
                    return PackingError(path, type_name(culprit), reason)
                if child_reason is not None:
                    path, culprit, reason = path + step, child, child_reason
                    break
            else:
                break
        return PackingError(
            path,
            type_name(culprit),
            unpicklable.reason_with_advice(reason, culprit) if to_a_rank else reason,
        )
    return PackingError(next(iter(roots), "?"), "?", f"{type(error).__name__}: {error}")


def _failure_reason(value: Any) -> str | None:
    try:
        Pickler(ByteCounter(), lambda _: None, False).dump(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a `__reduce__` can raise SystemExit
        if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
            return _TOO_DEEP
        return (
            f"{type(error).__name__}: {error}" if not isinstance(error, TypeError) else str(error)
        )
    return None


_TOO_DEEP = (
    "it is nested too deeply; make it flat (a list of its parts, say), or build it in the rank"
)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the parts of a value as `_parts` does, until the value raises."""
    with contextlib.suppress(Exception):
        yield from _parts(value)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the parts of a value, each with its step of the path (``.name``, ``[0]``)."""
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
        for name, item in captured(value):
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


def can_pickle(value: Any) -> bool:
    """Whether a value can be pickled by itself."""
    return _failure_reason(value) is None


def visit_objects(value: Any, visit: Callable[[Any], None]) -> None:
    """Calls `visit` with each object that would be pickled with a value. See `Pickler`."""
    with contextlib.suppress(Exception):
        Pickler(ByteCounter(), lambda _: None, False, visit).dump(value)
