"""The notebook's functions: those that a form offers to launch."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any


def launchable(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Functions by name: those that the notebook defines, the newest last, then those it imported from files of its own folder.

    Names with a leading underscore are left out: IPython's, and what a notebook hides.
    """
    defined, imported = dict[str, Any](), dict[str, Any]()
    for name, value in list(namespace.items()):
        if name.startswith("_") or not inspect.isfunction(value):
            continue
        if value.__module__ == "__main__" and not _of_the_shell(value):
            defined[name] = value
        elif _beside_the_notebook(value):
            imported[name] = value
    return {**defined, **imported}


def called(fn: Any, namespace: Mapping[str, Any]) -> str:
    """The notebook's name for a function; empty where it has none."""
    own = getattr(fn, "__name__", "")
    if own and namespace.get(own) is fn:
        return own
    return next((name for name, value in list(namespace.items()) if value is fn and not name.startswith("_")), "")


def _of_the_shell(fn: Any) -> bool:
    """IPython's own (`open`, `exit`) lie in the notebook's namespace, too."""
    return "IPython" in getattr(fn.__code__, "co_filename", "").split(os.sep)


def _beside_the_notebook(fn: Any) -> bool:
    path = getattr(sys.modules.get(fn.__module__), "__file__", None)
    if not path:
        return False
    here = os.path.realpath(os.getcwd())
    path = os.path.realpath(path)
    return path.startswith(here + os.sep) and "site-packages" not in path[len(here) :].split(os.sep)
