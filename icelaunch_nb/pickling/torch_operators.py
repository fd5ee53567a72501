"""Pickles torch's custom operators.

An operator that a cell defines goes by what it was registered with. One that a module defines goes
by that module.

An operator exists in its process only, under a name: ``torch.ops.mine.twice`` finds it, whoever
registered it. So a function that names a namespace of operators takes along whatever registers
operators in it. What a cell registers through `torch.library.Library` can't be read back, and is
refused.

Only this module uses torch's private names for operators. ``tests/system/test_cpython.py`` fails
where one has moved. Pickling doesn't import torch.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from icelaunch_nb.pickling.torch_objects import closure_of
from icelaunch_nb.pickling.unpicklable import OPERATOR_ADVICE

_CUSTOM_OPS = "torch._library.custom_ops"
_TORCH_NAMESPACES = {
    "aten",
    "prim",
    "prims",
    "rngprims",
    "quantized",
    "mkldnn",
    "sparse",
    "profiler",
    "c10d",
    "_c10d_functional",
    "inductor",
}
_DISPATCH_MODE = "FunctionalTensorMode"  # torch registers each triton_op for this mode, too


def reduce_operator(obj: Any) -> Any:
    """Reduces an operator, for ``reducer_override``; NotImplemented if it is none."""
    cls = type(obj)
    if cls.__module__ == _CUSTOM_OPS and cls.__name__ == "CustomOpDef":
        return _reduce_definition(obj)
    if cls.__module__ == "torch._ops":
        return _reduce_by_name(obj)
    return NotImplemented


def _reduce_by_name(obj: Any) -> Any:
    """Reduces an operator (``torch.ops.aten.add``), an overload or a namespace to its name."""
    ops = sys.modules["torch"].ops
    if type(obj).__name__ == "_OpNamespace":
        return (
            (_follow, ((obj.name,), _registrars(obj.name), ops))
            if obj.name not in _TORCH_NAMESPACES
            else NotImplemented
        )
    path = tuple(str(obj).split("."))
    try:
        known = functools.reduce(getattr, path, ops)
    except (AttributeError, RuntimeError):
        return NotImplemented
    return (_follow, (path, _registrars(path[0]), ops)) if known is obj else NotImplemented


def _follow(path: tuple[str, ...], registrars: Any, ops: Any) -> Any:
    return functools.reduce(getattr, path, ops)


def registrars_for(code: types.CodeType) -> list[Any]:
    """Everything that registers the operators that a function names, and so must go with it.

    Raises:
        pickle.PicklingError: A cell registered one of them in a way that can't be read back.
    """
    return [registrar for name in _namespaces(code) for registrar in _registrars(name)]


def _namespaces(code: types.CodeType) -> Iterator[str]:
    """The namespaces of operators that a function and its nested functions name beside ``ops``."""
    names = code.co_names
    if "ops" in names:
        yield from (name for name in names if name in _known_namespaces())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _namespaces(constant)


def _known_namespaces() -> set[str]:
    """Every namespace of operators except torch's own."""
    torch = sys.modules["torch"]
    names = (*torch._C._dispatch_get_all_op_names(), *torch.library._defs, *_definitions())
    return {name.partition("::")[0] for name in names} - _TORCH_NAMESPACES


def _definitions() -> Any:
    """The operators of this process that `torch.library.custom_op` has made, by name."""
    return getattr(sys.modules.get(_CUSTOM_OPS), "OPDEFS", {})


def _registrars(namespace: str) -> list[Any]:
    """The definitions, modules and libraries that register the operators of a namespace."""
    if namespace in _TORCH_NAMESPACES:
        return []
    prefix, definitions, torch = f"{namespace}::", dict(_definitions()), sys.modules["torch"]
    registrars = [
        _registrar(definition)
        for name, definition in definitions.items()
        if name.startswith(prefix)
    ]
    others = [
        name for name in torch.library._defs if name.startswith(prefix) and name not in definitions
    ]
    registrars += [_module_of(name) for name in others]
    if not registrars and (module := sys.modules.get(namespace)) is not None:
        registrars.append(module)  # torchvision's operators come with torchvision
    elif not registrars:
        registrars += [
            _Library(path)
            for path in sorted(torch.ops.loaded_libraries)
            if not path.startswith(torch.__path__[0])
        ]
    return list({id(one): one for one in registrars if one is not None}.values())


def _registrar(definition: Any) -> Any:
    """The object that registers an operator in another process: its definition, or its module."""
    return (
        definition if _is_from_cell(definition) else sys.modules[_original(definition).__module__]
    )


class _Library:
    """A file that `torch.ops.load_library` has loaded."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_library, (self._path,)


def _load_library(path: str) -> None:
    import torch

    torch.ops.load_library(path)


def _module_of(name: str) -> types.ModuleType | None:
    """The module that registered an operator through `torch.library.Library`.

    Returns:
        The module; None if torch itself registered it, or if the module isn't known.

    Raises:
        pickle.PicklingError: A cell registered it.
    """
    registered = re.search(r"registered at (.*):\d+", sys.modules["torch"]._C._dispatch_dump(name))
    file = registered[1] if registered else ""
    if (
        _is_cell_file(file)
        or _cell_library_defines(name)
        or (file.endswith(f"torch{os.sep}library.py") and _cell_source_has(name))
    ):
        raise pickle.PicklingError(
            f"the operator torch.ops.{name.replace('::', '.')} is registered by the notebook "
            f"alone, and what it does can't be read again; {OPERATOR_ADVICE}"
        )
    for module in list(sys.modules.values()):
        if (
            issubclass(type(module), types.ModuleType)
            and object.__getattribute__(module, "__dict__").get("__file__") == file
        ):
            return module
    return None


def _is_cell_file(file: str) -> bool:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return file == main or (file in linecache.cache and not os.path.exists(file))


def _cell_library_defines(name: str) -> bool:
    """Whether a global of the notebook or script is the Library that defined an operator.

    torch 2.6 reports another file than the definition's: that of its caller's caller.
    """
    library = sys.modules["torch"].library.Library
    return any(
        type(value) is library and name in value._op_defs
        for value in list(vars(sys.modules["__main__"]).values())
    )


def _cell_source_has(name: str) -> bool:
    """Whether the source of a cell, or of the script, contains an operator's name."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    files = [file for file in list(linecache.cache) if not os.path.exists(file)] + (
        [main] if main else []
    )
    return any(name in line for file in files for line in linecache.getlines(file))


# Operators made by `torch.library.custom_op`.


def _is_from_cell(definition: Any) -> bool:
    """Whether no import of a module makes this operator."""
    function = _original(definition)
    module = sys.modules.get(function.__module__ or "")
    return (
        module is None or function.__module__ == "__main__" or "<locals>" in function.__qualname__
    )


def _original(definition: Any) -> Any:
    """The function that an operator was made of."""
    function = definition._init_fn
    return closure_of(function).get("fn", function) if _is_triton_op(definition) else function


def _is_triton_op(definition: Any) -> bool:
    return (
        any(cls.__name__ == _DISPATCH_MODE for cls in definition._torch_dispatch_fns)
        and definition._init_fn.__module__ == "torch._library.triton"
    )


def _reduce_definition(definition: Any) -> Any:
    qualname, function, is_triton = (
        definition._qualname,
        _original(definition),
        _is_triton_op(definition),
    )
    if not _is_from_cell(definition):
        return _defined_by_module, (qualname, sys.modules[function.__module__])
    kernels = {device: _kernel(definition, device) for device in definition._backend_fns}
    own = [device for device, kernel in kernels.items() if kernel is definition._init_fn]
    tags = [tag.name for tag in getattr(definition, "_tags", ()) if tag.name != "pt2_compliant_tag"]
    state = {
        "kernels": {device: kernel for device, kernel in kernels.items() if device not in own},
        "fake": None
        if is_triton and definition._abstract_fn is function
        else definition._abstract_fn,
        "autograd": definition._backward_fn
        and (definition._backward_fn, definition._setup_context_fn),
        "vmap": definition._vmap_fn,
        "autocast": dict(getattr(definition, "_autocast_dtype", {})),
        "dispatch": {
            cls: rule
            for cls, rule in definition._torch_dispatch_fns.items()
            if not (is_triton and cls.__name__ == _DISPATCH_MODE)
        },
    }
    args = (
        qualname,
        is_triton,
        definition._schema,
        _mutated(definition),
        None if None in own or not own else own,
        tags,
        function,
    )
    return _make, args, state, None, None, _register


def _kernel(definition: Any, device: str | None) -> Any:
    """The function that was registered for a device, without torch's wrappers."""
    kernel = closure_of(inspect.unwrap(definition._backend_fns[device])).get("fn")
    if kernel is None:
        raise pickle.PicklingError(
            f"this version of torch doesn't give the kernel of {definition._qualname}; "
            "define it in the function"
        )
    return kernel


def _mutated(definition: Any) -> tuple[str, ...]:
    arguments = definition._opoverload._schema.arguments
    return tuple(
        argument.name
        for argument in arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _defined_by_module(qualname: str, module: types.ModuleType) -> Any:
    return _definitions()[qualname]


# Ids of the operators made here whose registrations are still to come.
_unregistered: set[int] = set()


def _make(
    qualname: str,
    is_triton: bool,
    schema: str,
    mutates_args: tuple[str, ...],
    devices: list[str] | None,
    tags: list[str],
    function: Callable[..., Any],
) -> Any:
    """Makes the operator of that name, unless this process has one, which stays as it is."""
    import torch

    known = _definitions().get(qualname)
    if known is not None:
        return known
    options: dict[str, Any] = {"mutates_args": mutates_args, "schema": schema}
    if not is_triton:
        options["device_types"] = devices
    if tags:
        options["tags"] = [getattr(torch.Tag, tag) for tag in tags]
    made = (torch.library.triton_op if is_triton else torch.library.custom_op)(
        qualname, function, **options
    )
    _unregistered.add(id(made))
    return made


def _register(definition: Any, state: dict[str, Any]) -> None:
    if id(definition) not in _unregistered:
        return
    _unregistered.discard(id(definition))
    for device, kernel in state["kernels"].items():
        definition.register_kernel(device, kernel)
    if state["fake"] is not None:
        definition.register_fake(state["fake"])
    if state["autograd"] is not None:
        definition.register_autograd(state["autograd"][0], setup_context=state["autograd"][1])
    if state["vmap"] is not None:
        definition.register_vmap(state["vmap"])
    for device, dtype in state["autocast"].items():
        definition.register_autocast(device, dtype)
    for cls, rule in state["dispatch"].items():
        definition.register_torch_dispatch(cls, rule)
