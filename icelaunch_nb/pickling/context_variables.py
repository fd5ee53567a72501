"""Pickles context variables, which pickle refuses.

One of an imported module goes by its name there. One of a cell goes with its value.
"""

from __future__ import annotations

import contextvars
import importlib
import sys
import types
from typing import Any

from icelaunch_nb.pickling.modules import made_by_hand


def reduce_context_variable(variable: contextvars.ContextVar[Any]) -> Any:
    """Reduces a context variable, for ``reducer_override``.

    A variable doesn't say where it is defined, and a copy of a module's variable would be another
    variable. So all imported modules are searched. With 4,000 modules, that takes 30 ms, but only
    for a call that has a context variable.
    """
    for name, module in list(sys.modules.items()):
        if (
            name in ("__main__", "__mp_main__")
            or not issubclass(type(module), types.ModuleType)
            or made_by_hand(name)
        ):
            continue
        # object's: a lazy module's own __getattribute__ would import it.
        for attribute, value in list(object.__getattribute__(module, "__dict__").items()):
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
