"""The notebook's functions: those that a form offers to launch."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.notebook.form.parameters import behind


def launchable(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Functions by name: those that the notebook defines, the newest last, then those it imported from files of its own folder.

    Names with a leading underscore are left out: IPython's, and what a notebook hides.
    """
    defined, imported = dict[str, Any](), dict[str, Any]()
    for name, value in list(namespace.items()):
        fn = behind(value)
        if name.startswith("_") or not inspect.isfunction(fn) or inspect.ismethod(value):
            continue
        if fn.__module__ == "__main__" and not _of_the_shell(fn):
            defined[name] = value
        elif _beside_the_notebook(fn):
            imported[name] = value
    return {**defined, **imported}


def called(value: Any, namespace: Mapping[str, Any]) -> str:
    """How the notebook names something: ``train``, or ``lib.train`` for a function of a module; empty where it doesn't."""
    own = getattr(value, "__name__", "")
    if own and namespace.get(own) is value:
        return own
    names = [(name, one) for name, one in list(namespace.items()) if not name.startswith("_")]
    plain = next((name for name, one in names if one is value), "")
    if plain or not own.isidentifier():
        return plain
    return next(
        (
            f"{name}.{own}"
            for name, one in names
            if inspect.ismodule(one) and vars(one).get(own) is value
        ),
        "",
    )


def importable(cls: type, namespace: Mapping[str, Any]) -> tuple[str, str]:
    """The statement that imports a class, and how it is named then; both empty where none does, or it would take a name from the notebook."""
    first, *inner = cls.__qualname__.split(".")
    found = getattr(sys.modules.get(cls.__module__), first, None)
    for name in inner:
        found = getattr(found, name, None)
    if found is not cls or cls.__module__ == "__main__" or first in namespace:
        return "", ""
    return f"from {cls.__module__} import {first}", cls.__qualname__


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
