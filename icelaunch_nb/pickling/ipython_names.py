"""The names that IPython lays among a notebook's: what they mean in a rank, which has no IPython shell.

``get_ipython`` isn't defined there, as in any script, so a test for a notebook says no; ``display`` prints; ``exit``, ``quit`` and
``open`` are Python's own. Nothing here imports IPython.
"""

from __future__ import annotations

import builtins
import os
import pickle
import sys
import types
from typing import Any


def display(*objects: Any, **options: Any) -> None:
    """Prints the objects, as IPython's own ``display`` does outside of a notebook."""
    print(*objects)  # noqa: T201 (into the rank's own log)


def python_exit() -> Any:
    """Python's ``exit``; an interpreter without the site module has none."""
    return getattr(builtins, "exit", sys.exit)


def reduce_injected(obj: Any) -> Any:
    """What ``reducer_override`` should return, or NotImplemented for what isn't IPython's.

    Raises:
        pickle.PicklingError: It is the shell itself.
    """
    if type(obj) is types.FunctionType:
        return (getattr, (builtins, "open")) if is_ipythons_open(obj) else NotImplemented
    if _is_a(obj, "IPython.core.autocall", "IPyAutocall"):
        return python_exit, ()
    if is_shell(obj):
        raise pickle.PicklingError("it is the notebook's IPython shell, and a rank has none")
    return NotImplemented


def is_shell(obj: Any) -> bool:
    """Whether it is IPython's shell."""
    return _is_a(obj, "IPython.core.interactiveshell", "InteractiveShell")


def _is_a(obj: Any, module: str, name: str) -> bool:
    """Whether it is an instance of a class of a module that may not be imported."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and issubclass(type(obj), cls)


def is_ipythons_open(value: Any) -> bool:
    """IPython lays an ``open`` of its own among the notebook's names."""
    code = getattr(value, "__code__", None)
    return (
        isinstance(code, types.CodeType)
        and code.co_name == "_modified_open"
        and "IPython" in code.co_filename.split(os.sep)
    )


def as_in_a_rank(carried: dict[str, Any], names: Any) -> None:
    """Sets right what a function takes along of its globals.

    Args:
        carried: The globals that it takes along; changed in place.
        names: All names that it looks up among its globals.
    """
    value = carried.get("get_ipython")
    if isinstance(value, types.MethodType) and value.__name__ == "get_ipython":
        del carried["get_ipython"]
    if "display" in names and "display" not in carried and has_display():
        carried["display"] = display


def has_display() -> bool:
    """Whether IPython laid ``display`` among this process's builtins."""
    return str(getattr(getattr(builtins, "display", None), "__module__", "")).startswith("IPython.")
