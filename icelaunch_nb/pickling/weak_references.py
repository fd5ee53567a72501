"""Pickles weak references, which pickle refuses. They arrive with what they refer to.

Something in the launching process keeps the referent alive. A script that ran the notebook's cells
would keep it alive, too. So a rank does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

_kept_alive: list[Any] = []


def reduce_weak(obj: Any, keep_alive: bool) -> Any:
    """Reduces a weak reference, for ``reducer_override``; NotImplemented if it is none.

    Args:
        obj: The object.
        keep_alive: Whether the other process keeps the referent alive.
    """
    cls = type(obj)
    if cls is weakref.WeakKeyDictionary or cls is weakref.WeakValueDictionary:
        return cls, (), dict(obj), None, None, _update_and_hold if keep_alive else _update
    if cls is weakref.WeakSet:
        return cls, (), set(obj), None, None, _update_and_hold if keep_alive else _update
    if cls is weakref.ReferenceType or cls is weakref.WeakMethod:
        target = obj()
        if target is None:
            return _dead, ()
        return _refer, (cls, target, obj.__callback__, keep_alive)
    if cls is weakref.ProxyType or cls is weakref.CallableProxyType:
        try:
            target = obj.__reduce_ex__.__self__
        # The referent is gone, or has a `__reduce_ex__` that isn't a bound method.
        except (ReferenceError, AttributeError):
            return NotImplemented
        return _refer, (weakref.proxy, target, None, keep_alive)
    return NotImplemented


def _update(made: Any, contents: Any) -> None:
    made.update(contents)


def _update_and_hold(made: Any, contents: Any) -> None:
    _kept_alive.append(contents)
    made.update(contents)


def _refer(make: Callable[..., Any], target: Any, callback: Any, keep_alive: bool) -> Any:
    if keep_alive:
        _kept_alive.append(target)
    return make(target, callback) if callback is not None else make(target)


class _Gone:
    """The referent of a reference that is dead from the start."""


def _dead() -> weakref.ReferenceType[Any]:
    return weakref.ref(_Gone())
