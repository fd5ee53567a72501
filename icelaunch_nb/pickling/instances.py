"""Pickles instances whose own methods mislead pickle.

Their ``__class__`` names another class, or their ``__getattr__`` runs before they have attributes.
pickle believes an instance's ``__class__``. On loading, it looks up ``__setstate__`` of an instance
that has no attributes yet. A ``__getattr__`` that reads an attribute then calls itself without end.
So such an instance goes by its attributes, and these are set without a call of its methods.
"""

from __future__ import annotations

import copyreg
import struct
from collections.abc import Mapping
from typing import Any


class InstanceReducer:
    """Reduces the instances of one pickle.

    Args:
        protocol: The pickle protocol.
        reducers: The pickler's dispatch table.
    """

    def __init__(self, protocol: int, reducers: Mapping[type, Any]) -> None:
        self._protocol, self._reducers = protocol, reducers
        self._misleading: dict[type, bool] = {}

    def __call__(self, obj: Any) -> Any:
        """Reduces an instance, for ``reducer_override``; NotImplemented if pickle can do it."""
        cls = type(obj)
        misleading = self._misleading.get(cls)
        if misleading is None:
            misleading = self._misleading[cls] = not issubclass(cls, type) and _misleads_pickle(cls)
        if not misleading or cls in self._reducers:
            return NotImplemented
        reduces_itself = _defines(
            cls,
            "__reduce_ex__",
            "__reduce__",
            "__getstate__",
            "__getnewargs__",
            "__getnewargs_ex__",
        )
        base = None if reduces_itself else _base_without_other_data(cls)
        if base is not None:
            items = list.__iter__(obj) if base is list else None
            reduced: Any = (
                _new,
                (cls,),
                _attributes(obj),
                items,
                iter(dict.items(obj)) if base is dict else None,
            )
        else:
            reduced = cls.__reduce_ex__(obj, self._protocol)  # type: ignore[arg-type, call-arg]
        by_new = (_new, copyreg.__newobj__)  # type: ignore[attr-defined]
        if not isinstance(reduced, tuple) or reduced[0] not in by_new:
            return reduced
        _, args, state, items, pairs, setter = (*reduced, None, None, None, None)[:6]
        if state is not None and setter is None and not _defines(cls, "__setstate__"):
            setter = _fill
        return _new, args, state, items, pairs, setter


def _misleads_pickle(cls: type) -> bool:
    if _defines(cls, "__class__"):
        return True
    return _defines(cls, "__getattr__", "__getattribute__") and not _defines(
        cls, "__setstate__", "__reduce__", "__reduce_ex__"
    )


def _defines(cls: type, *names: str) -> bool:
    """Whether a class or a base of it defines one of these methods in Python."""
    return any(
        type(vars(base).get(name, _FROM_C)) is not _FROM_C_TYPE
        for base in cls.__mro__[:-1]
        for name in names
    )


_FROM_C: Any = object.__getattribute__
_FROM_C_TYPE = type(object.__dict__["__getattribute__"])


def _base_without_other_data(cls: type) -> type | None:
    """The base whose instances the class extends by a ``__dict__`` and slots alone.

    Returns:
        `object`, `list` or `dict`. None if instances hold other data, too.
    """
    base = next(
        (base for base in cls.__mro__ if base is object or base is list or base is dict), object
    )
    pointer = struct.calcsize("P")
    slots = len(copyreg._slotnames(cls))  # type: ignore[attr-defined]
    parts = bool(cls.__dictoffset__) + bool(cls.__weakrefoffset__) + slots
    return (
        base
        if not cls.__itemsize__ and cls.__basicsize__ <= base.__basicsize__ + pointer * parts
        else None
    )


def _attributes(obj: Any) -> Any:
    """The state that pickle takes of an instance: its ``__dict__``, and its slots if any."""
    try:
        attributes = dict(object.__getattribute__(obj, "__dict__"))
    except AttributeError:
        attributes = {}
    slots = {}
    for name in copyreg._slotnames(type(obj)):  # type: ignore[attr-defined]
        try:
            slots[name] = object.__getattribute__(obj, name)
        except AttributeError:
            continue
    return (attributes, slots) if slots else attributes or None


def _new(cls: Any, *args: Any) -> Any:
    """Does what ``copyreg.__newobj__`` does.

    For that one, pickle compares the class with the instance's ``__class__``.
    """
    return cls.__new__(cls, *args)


def _fill(made: Any, state: Any) -> None:
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if attributes:
        object.__getattribute__(made, "__dict__").update(attributes)
    for name, value in (slots or {}).items():
        object.__setattr__(made, name, value)
