"""The notebook's functions that a form offers to launch, and the notebook's names for them."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.notebook.form.parameters import unwrap


def launchable(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The functions that a form offers, by name.

    The notebook's own functions come first, then those from files of its folder. In each group, the
    newest comes last. Names with a leading underscore are left out: they are IPython's, or private.
    """
    defined, imported = dict[str, Any](), dict[str, Any]()
    for name, value in list(namespace.items()):
        fn = unwrap(value)
        if name.startswith("_") or not inspect.isfunction(fn) or inspect.ismethod(value):
            continue
        if fn.__module__ == "__main__" and not _is_ipythons(fn):
            defined[name] = value
        elif _in_notebook_folder(fn):
            imported[name] = value
    return {**defined, **imported}


def name_in_notebook(value: Any, namespace: Mapping[str, Any]) -> str:
    """The notebook's name for a value: ``train`` or ``lib.train``; empty where it has none."""
    own = getattr(value, "__name__", "")
    if own and namespace.get(own) is value:
        return own
    names = [(name, one) for name, one in list(namespace.items()) if not name.startswith("_")]
    plain = next((name for name, one in names if one is value), "")
    if plain or not own.isidentifier():
        return plain
    for name, one in names:
        if inspect.ismodule(one) and vars(one).get(own) is value:
            return f"{name}.{own}"
    return ""


def import_statement(cls: type, namespace: Mapping[str, Any]) -> tuple[str, str]:
    """The statement that imports a class, and the class's name after it.

    Both are empty where no statement imports the class, or where it would replace a name of the
    notebook.
    """
    first, *inner = cls.__qualname__.split(".")
    found = getattr(sys.modules.get(cls.__module__), first, None)
    for name in inner:
        found = getattr(found, name, None)
    if found is not cls or cls.__module__ == "__main__" or first in namespace:
        return "", ""
    return f"from {cls.__module__} import {first}", cls.__qualname__


def _is_ipythons(fn: Any) -> bool:
    """Whether a function is IPython's. The notebook's namespace has some: ``open``, ``exit``."""
    return "IPython" in getattr(fn.__code__, "co_filename", "").split(os.sep)


def _in_notebook_folder(fn: Any) -> bool:
    path = getattr(sys.modules.get(fn.__module__), "__file__", None)
    if not path:
        return False
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:
        # The working directory was removed.
        return False
    path = os.path.realpath(path)
    return path.startswith(here + os.sep) and "site-packages" not in path[len(here) :].split(os.sep)
