"""The names that IPython adds to a notebook's, and what they mean in a rank, which has no IPython.

As in a script, ``get_ipython`` isn't defined, so a test for a notebook finds none. ``display``
prints. ``exit``, ``quit`` and ``open`` are Python's own. This module doesn't import IPython.
"""

from __future__ import annotations

import builtins
import os
import pickle
import sys
import types
from typing import Any


def display(*objects: Any, **options: Any) -> None:
    """Prints the objects, as IPython's ``display`` does outside of a notebook."""
    print(*objects)  # noqa: T201 (into the rank's own log)


def python_exit() -> Any:
    """Python's ``exit``. An interpreter without the site module lacks it and gets `sys.exit`."""
    return getattr(builtins, "exit", sys.exit)


def reduce_injected(obj: Any) -> Any:
    """Reduces an object that IPython has added, for ``reducer_override``.

    Returns:
        NotImplemented for all other objects.

    Raises:
        pickle.PicklingError: It is the shell itself.
    """
    if type(obj) is types.FunctionType:
        return (getattr, (builtins, "open")) if is_ipython_open(obj) else NotImplemented
    if _is_a(obj, "IPython.core.autocall", "IPyAutocall"):
        return python_exit, ()
    if is_shell(obj):
        raise pickle.PicklingError("it is the notebook's IPython shell, and a rank has none")
    return NotImplemented


def is_shell(obj: Any) -> bool:
    """Whether it is IPython's shell."""
    return _is_a(obj, "IPython.core.interactiveshell", "InteractiveShell")


def _is_a(obj: Any, module: str, name: str) -> bool:
    """Whether it is an instance of a class. The class's module may not be imported."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and issubclass(type(obj), cls)


def is_ipython_open(value: Any) -> bool:
    """Whether it is the ``open`` that IPython adds to the notebook's names."""
    code = getattr(value, "__code__", None)
    return (
        isinstance(code, types.CodeType)
        and code.co_name == "_modified_open"
        and "IPython" in code.co_filename.split(os.sep)
    )


def adapt_globals(carried: dict[str, Any], names: Any) -> None:
    """Adapts the globals that a function takes along to a rank.

    Args:
        carried: These globals; changed in place.
        names: All names that the function looks up among its globals.
    """
    value = carried.get("get_ipython")
    if isinstance(value, types.MethodType) and value.__name__ == "get_ipython":
        del carried["get_ipython"]
    if "display" in names and "display" not in carried and has_display():
        carried["display"] = display


def has_display() -> bool:
    """Whether IPython has added ``display`` to this process's builtins."""
    return str(getattr(getattr(builtins, "display", None), "__module__", "")).startswith("IPython.")
