"""Context variables in pickles, which pickle refuses: one of an imported module by its name there, one of a cell with its value."""

from __future__ import annotations

import contextvars
import importlib
import sys
import types
from typing import Any

from icelaunch_nb.pickling.modules import made_by_hand


def reduce_context_variable(variable: contextvars.ContextVar[Any]) -> Any:
    """What ``reducer_override`` should return.

    A variable doesn't say where it is defined. A copy of one that a module has would be another variable than the module's own,
    so all imported modules are searched: 30 ms with 4,000 modules, for whoever uses one.
    """
    for name, module in list(sys.modules.items()):
        if (
            name in ("__main__", "__mp_main__")
            or not issubclass(type(module), types.ModuleType)
            or made_by_hand(name)
        ):
            continue
        for attribute, value in list(
            object.__getattribute__(module, "__dict__").items()
        ):  # wakes no module that loads itself on use
            if value is variable:
                return _found, (name, attribute)
    default, value = contextvars.Context().run(_value, variable), _value(variable)
    return _make, (variable.name, default, value)


def _value(variable: contextvars.ContextVar[Any]) -> tuple[Any, ...]:
    try:
        return (variable.get(),)
    except LookupError:
        return ()


def _found(module: str, attribute: str) -> Any:
    return getattr(importlib.import_module(module), attribute)


def _make(
    name: str, default: tuple[Any, ...], value: tuple[Any, ...]
) -> contextvars.ContextVar[Any]:
    variable = (
        contextvars.ContextVar(name, default=default[0])
        if default
        else contextvars.ContextVar(name)
    )
    if value and not (default and value[0] is default[0]):
        variable.set(value[0])
    return variable
