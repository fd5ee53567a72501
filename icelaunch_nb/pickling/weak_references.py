"""Weak references in pickles, which pickle refuses: they arrive with what they refer to.

Something in the launching process holds that. So a rank holds it, too, as the script would whose cells a notebook's are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

_held: list[Any] = []


def reduce_weak(obj: Any, hold: bool) -> Any:
    """What ``reducer_override`` should return, or NotImplemented for what is no weak reference.

    Args:
        obj: The object.
        hold: Whether the other process is to hold what it refers to.
    """
    cls = type(obj)
    if cls is weakref.WeakKeyDictionary or cls is weakref.WeakValueDictionary:
        return cls, (), dict(obj), None, None, _update_and_hold if hold else _update
    if cls is weakref.WeakSet:
        return cls, (), set(obj), None, None, _update_and_hold if hold else _update
    if cls is weakref.ReferenceType or cls is weakref.WeakMethod:
        target = obj()
        return (_dead, ()) if target is None else (_refer, (cls, target, obj.__callback__, hold))
    if cls is weakref.ProxyType or cls is weakref.CallableProxyType:
        try:
            target = obj.__reduce_ex__.__self__
        except (ReferenceError, AttributeError):  # it is gone; it has a way of its own
            return NotImplemented
        return _refer, (weakref.proxy, target, None, hold)
    return NotImplemented


def _update(made: Any, contents: Any) -> None:
    made.update(contents)


def _update_and_hold(made: Any, contents: Any) -> None:
    _held.append(contents)
    made.update(contents)


def _refer(make: Callable[..., Any], target: Any, callback: Any, hold: bool) -> Any:
    if hold:
        _held.append(target)
    return make(target, callback) if callback is not None else make(target)


class _Gone:
    """What a dead reference referred to."""


def _dead() -> weakref.ReferenceType[Any]:
    return weakref.ref(_Gone())
