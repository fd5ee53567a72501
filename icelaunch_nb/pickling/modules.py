"""Pickles module objects.

A module goes by name if an import finds the same one, by its file if no import finds it but the
file is there, and else by value.

cloudpickle handles plain modules only. But a module object may be of any class: torch's backends
with their flags, ``torch.ops``, configurations, modules that load themselves on first use, modules
whose ``__class__`` was patched.

A module that was loaded from a file off the import path (`importlib.util.spec_from_file_location`)
is loaded from that file in the other process, under the same name. Its functions and classes are
found in it there.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import sys
import types
from importlib.machinery import (
    ExtensionFileLoader,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from typing import Any

from cloudpickle import cloudpickle as _cp


class ModuleReducer:
    """Reduces the module objects of one pickle, and the other objects in ``sys.modules``."""

    def __init__(self) -> None:
        self._others: dict[int, str] | None = None
        self._off_import_path: dict[str, bool] = {}

    def __call__(self, obj: object) -> Any:
        """Reduces a module, for ``reducer_override``; NotImplemented if it is none."""
        # Not isinstance, which asks a proxy for its `__class__`.
        if issubclass(type(obj), types.ModuleType):
            return _reduce(obj)  # type: ignore[arg-type]
        # A module may put any object in its own place; an `import` in a cell then gives that.
        if self._others is None:
            self._others = _others_than_modules()
        name = self._others.get(id(obj)) if self._others else None
        if name is None or sys.modules.get(name) is not obj or not _found_by_import(name, obj, {}):
            return NotImplemented
        return _cp.subimport, (name,)

    def reduce_member(self, obj: Any) -> Any:
        """Reduces a function or a class of a module off the import path to its name there.

        Returns:
            NotImplemented for all others.
        """
        name: Any = getattr(obj, "__module__", None)
        qualname: Any = getattr(obj, "__qualname__", None)
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or name == "__main__" or not isinstance(qualname, str):
            return NotImplemented
        if name not in self._off_import_path:
            self._off_import_path[name] = bool(
                files_off_import_path(name)
            ) and not _cp._is_registered_pickle_by_value(module)
        path = tuple(qualname.split("."))
        if not self._off_import_path[name] or _attribute(module, path) is not obj:
            return NotImplemented
        return functools.reduce, (getattr, path, module)


# The result of `scan_modules`: the last name in ``sys.modules`` then, and what was found up to
# it.
_scanned: dict[str, Any] = {}


def scan_modules() -> None:
    """Searches ``sys.modules`` once, for all children that this process forks.

    In a child, a search of all modules would copy 5 MB of shared pages.
    """
    _scanned.update(found=_others_than_modules(), last=next(reversed(sys.modules)))


def _others_than_modules() -> dict[int, str]:
    """The names of those objects in ``sys.modules`` that are no modules, by id."""
    known, found = (
        (_scanned["last"], dict(_scanned["found"]))
        if _scanned.get("last") in sys.modules
        else (None, {})
    )
    try:
        # The newest come first.
        names = list(itertools.takewhile(lambda name: name != known, reversed(sys.modules)))
    except RuntimeError:  # another thread is importing something
        names = list(sys.modules)
    for name in names:
        value = sys.modules.get(name)
        if (
            type(value) is not types.ModuleType
            and value is not None
            and not issubclass(type(value), types.ModuleType)
        ):
            found[id(value)] = name
    return found


def made_by_hand(name: str | None) -> bool:
    """Whether a module is in ``sys.modules``, but no import in another process would find it."""
    module = sys.modules.get(name or "")
    if module is None or name == "__main__" or not issubclass(type(module), types.ModuleType):
        return False
    return not _found_by_import(str(name), module, _namespace(module))


def _reduce(module: types.ModuleType) -> Any:
    namespace = _namespace(module)
    name = namespace.get("__name__")
    if not isinstance(name, str) or (
        type(module) is types.ModuleType and _cp._is_registered_pickle_by_value(module)
    ):
        return NotImplemented
    registered = (
        name
        if sys.modules.get(name) is module
        else next((key for key, value in list(sys.modules.items()) if value is module), None)
    )
    if registered is not None and (files := files_off_import_path(registered)):
        return _from_files, (files,)
    if registered is not None and _found_by_import(registered, module, namespace):
        return _cp.subimport, (registered,)
    if registered is None:
        above, path = _nearest_above(name)
        if path and _attribute(above, path) is module:  # such as torch.ops.aten
            return functools.reduce, (getattr, path, above)
        if _is_stand_in(name, module, namespace):
            return _cp.subimport, (name,)
    if (
        type(module).__reduce_ex__ is not object.__reduce_ex__
        or type(module).__reduce__ is not object.__reduce__
    ):
        return NotImplemented
    state = {key: value for key, value in namespace.items() if key != "__builtins__"}
    return _make, (type(module), name, registered), state, None, None, _fill


def _namespace(module: types.ModuleType) -> dict[str, Any]:
    """A module's ``__dict__``. A module that loads itself on first use isn't loaded by this."""
    return object.__getattribute__(module, "__dict__")


def _found_by_import(name: str, module: object, namespace: dict[str, Any]) -> bool:
    """Whether a process that imports `name` gets this module.

    An import made it, or its package puts it into ``sys.modules``.
    """
    if (
        namespace.get("__spec__") is not None
        or "__file__" in namespace
        or name in ("__main__", *sys.builtin_module_names)
    ):
        return not _only_in_this_process(name, namespace)
    package = name.rpartition(".")[0]
    if package in sys.modules:
        return not made_by_hand(package)
    return (
        type(module) is not types.ModuleType
        and type(module).__module__ != "__main__"
        and _findable(name)
    )


# A module's name, its file, and the folders of its submodules if it is a package.
_File = tuple[str, str, "list[str] | None"]


def files_off_import_path(name: str) -> tuple[_File, ...]:
    """The files from which a module is loaded that no import finds, its packages first.

    Args:
        name: The module's name in ``sys.modules``.

    Returns:
        The files; empty for a module that an import finds.
    """
    files: list[_File] = []
    while name and (file := _file_off_import_path(name)) is not None:
        files.insert(0, file)
        name = name.rpartition(".")[0]
    return tuple(files)


def _file_off_import_path(name: str) -> _File | None:
    namespace = _namespace_of(name)
    spec: Any = namespace.get("__spec__")
    origin, loader = getattr(spec, "origin", None), type(getattr(spec, "loader", None))
    if (
        not isinstance(origin, str)
        or loader not in (SourceFileLoader, SourcelessFileLoader, ExtensionFileLoader)
        or name == "__main__"
    ):
        return None
    locations = spec.submodule_search_locations
    if (
        _is_on_package_path(name, origin, locations is not None)
        or _import_finds(name, origin)
        or not os.path.isfile(origin)
    ):
        return None
    return (
        name,
        os.path.abspath(origin),
        locations if locations is None else [os.path.abspath(path) for path in locations],
    )


def _is_on_package_path(name: str, origin: str, is_package: bool) -> bool:
    """Whether a module's file is where its name belongs on its package's path.

    It reads no directory.
    """
    place = os.path.dirname(origin) if is_package else origin
    folder, (package, _, last) = os.path.dirname(place), name.rpartition(".")
    if os.path.basename(place).partition(".")[0] != last:
        return False
    if not package:
        return folder in sys.path or (folder == os.getcwd() and "" in sys.path)
    return (
        package in sys.modules and folder in _paths(package) and not files_off_import_path(package)
    )


def _paths(package: str) -> list[str]:
    try:
        return list(_namespace_of(package).get("__path__", ()))
    except Exception:  # a namespace package whose parent was removed
        return []


def _import_finds(name: str, origin: str) -> bool:
    """Whether a first import of that name would find that file."""
    package, folders = name.rpartition(".")[0], None
    if package:
        if package not in sys.modules or files_off_import_path(package):
            return False
        folders = _paths(package)
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, folders)
        except Exception:  # a finder of another kind
            continue
        if spec is not None:
            return spec.origin is not None and os.path.realpath(spec.origin) == os.path.realpath(
                origin
            )
    return False


def _only_in_this_process(name: str, namespace: dict[str, Any]) -> bool:
    """Whether a module has a file, but another process can't load it.

    The file is gone, or its loader is defined in this process alone.
    """
    spec = namespace.get("__spec__")
    loader = type(getattr(spec, "loader", None))
    if loader.__module__ == "__main__":
        return True
    origin = getattr(spec, "origin", None)
    if not isinstance(origin, str) or loader not in (SourceFileLoader, SourcelessFileLoader):
        return False
    return not os.path.isfile(origin) and not _import_finds(name, origin)


def _namespace_of(name: str) -> dict[str, Any]:
    module: Any = sys.modules.get(name)
    return _namespace(module) if issubclass(type(module), types.ModuleType) else {}


def _from_files(files: tuple[_File, ...]) -> types.ModuleType:
    """Loads these files, except those that this process has, and returns the last one's module."""
    for name, file, locations in files:
        known = _namespace_of(name).get("__spec__")
        if (
            known is not None
            and known.origin is not None
            and os.path.realpath(known.origin) == os.path.realpath(file)
        ):
            continue
        spec = importlib.util.spec_from_file_location(
            name, file, submodule_search_locations=locations
        )
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(
                f"{file} can't be loaded as the module {name!r}", name=name, path=file
            )
        before, module = sys.modules.get(name), importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            if before is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = before
            raise
        package, _, last = name.rpartition(".")
        if package in sys.modules:
            setattr(sys.modules[package], last, module)
    return sys.modules[files[-1][0]]


def _findable(name: str) -> bool:
    try:
        return "." not in name and PathFinder.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _nearest_above(name: str) -> tuple[Any, tuple[str, ...]]:
    """The innermost imported module on the way of a dotted name, and the rest of the name."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        above = sys.modules.get(".".join(parts[:length]))
        if above is not None:
            return above, tuple(parts[length:])
    return None, ()


def _attribute(obj: Any, path: tuple[str, ...]) -> Any:
    try:
        return functools.reduce(getattr, path, obj)
    except Exception:  # whatever a module's own __getattr__ raises
        return None


def _is_stand_in(name: str, module: types.ModuleType, namespace: dict[str, Any]) -> bool:
    """Whether it is a stand-in that loads the module `name` on first use, or has loaded it."""
    if type(module) is types.ModuleType:
        return False
    real = sys.modules.get(name)
    if type(module).__module__ != "__main__":
        return real is not None or _findable(name)
    spec = namespace.get("__spec__")
    if spec is None or real is None or not issubclass(type(real), types.ModuleType):
        return False
    return _namespace(real).get("__spec__") is spec


def _make(cls: type[types.ModuleType], name: str, registered: str | None) -> types.ModuleType:
    module: types.ModuleType = cls.__new__(cls, name)  # type: ignore[call-arg]
    types.ModuleType.__init__(module, name)
    return sys.modules.setdefault(registered, module) if registered else module


def _fill(module: types.ModuleType, state: dict[str, Any]) -> None:
    _namespace(module).update(state)
