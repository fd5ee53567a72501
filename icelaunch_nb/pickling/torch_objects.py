"""Pickles objects of torch that pickle refuses, or of which it loses a part.

These are compiled functions and modules, modules with parametrizations, and limits of dtypes.

A compiled function is code of the process that compiled it. So what it was made from is pickled,
the function and the options of ``torch.compile``. It is compiled again where it arrives. torch's
own pickling loses `torch.nn.Module.compile` and most options of ``torch.compile``.

Only this module uses torch._dynamo's private names. ``tests/system/test_cpython.py`` fails where
one has moved. Pickling doesn't import torch.
"""

from __future__ import annotations

import copyreg
import sys
import types
from collections.abc import Callable
from typing import Any

_EVAL_FRAME = "torch._dynamo.eval_frame"  # the module that wraps compiled functions


def reduce_torch_object(obj: Any) -> Any:
    """Reduces such an object, for ``reducer_override``; NotImplemented for everything else."""
    if type(obj) is types.FunctionType:
        return (
            _reduce_compiled(obj)
            if obj.__globals__.get("__name__") == _EVAL_FRAME
            else NotImplemented
        )
    cls = type(obj)
    if cls.__module__ == "torch" and cls.__name__ in ("finfo", "iinfo"):
        return cls, (getattr(sys.modules["torch"], obj.dtype),)
    if cls.__module__ == _EVAL_FRAME and cls.__name__ == "OptimizeContext":
        return _context, _options_of(obj)
    if vars_of(obj).get("_compiled_call_impl") is not None:
        return _reduce_compiled_module(obj)
    if "parametrizations" in vars_of(obj).get("_modules", ()):
        return _reduce_parametrized(obj)
    return NotImplemented


def vars_of(obj: Any) -> dict[str, Any]:
    """The ``__dict__`` of a torch module; empty for anything else."""
    nn = sys.modules.get("torch.nn.modules.module")
    return obj.__dict__ if nn is not None and issubclass(type(obj), nn.Module) else {}


def _reduce_compiled(wrapper: types.FunctionType) -> Any:
    context, function = (
        closure_of(wrapper).get("self"),
        wrapper.__dict__.get("_torchdynamo_orig_callable"),
    )
    if type(context).__name__ != "OptimizeContext" or function is None:
        return NotImplemented
    return _apply, (context, function)


def _reduce_compiled_module(module: Any) -> Any:
    context = closure_of(module._compiled_call_impl).get("self")
    if type(context).__name__ != "OptimizeContext" or "__reduce__" in {
        name for cls in type(module).__mro__[:-1] for name in vars(cls)
    }:
        return NotImplemented
    make, args, state = module.__reduce_ex__(4)[:3]
    return make, args, (state, context), None, None, _set_and_compile


def _reduce_parametrized(module: Any) -> Any:
    """Reduces a module with a parametrization to its class and its attributes.

    torch refuses it: its class is made at run time, and a file couldn't name it. Here the class
    goes along.
    """
    if not sys.modules["torch.nn.utils.parametrize"].is_parametrized(module):
        return NotImplemented
    return copyreg.__newobj__, (type(module),), module.__dict__  # type: ignore[attr-defined]


def closure_of(function: Any) -> dict[str, Any]:
    """The closure variables of a function that are set, by name."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    found = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


def _options_of(context: Any) -> tuple[Any, dict[str, Any]]:
    """The backend and the other options that ``torch.compile`` was called with."""
    chain = [context.callback]
    while (inner := _inner(chain[-1])) is not None:
        chain.append(inner)
    kinds, backend = {type(link).__name__ for link in chain}, chain[-1]
    options: dict[str, Any] = {
        # torch 2.6 doesn't store it as an attribute.
        "fullgraph": getattr(context, "fullgraph", "ConvertFrame" not in kinds),
        "dynamic": context._dynamic,
    }
    if type(backend).__name__ == "_TorchCompileInductorWrapper":
        options["options"], backend = dict(backend.config), "inductor"
    elif type(backend).__name__ == "_TorchCompileWrapper":
        options |= backend.kwargs
        backend = (
            getattr(backend, "compiler_name", "")
            if _is_known(getattr(backend, "compiler_name", ""))
            else backend.compiler_fn
        )
    guard_filter = getattr(getattr(context, "_hooks", None), "guard_filter_fn", None)
    if guard_filter is not None:
        options["options"] = {**(options.get("options") or {}), "guard_filter_fn": guard_filter}
    return backend, options


def _inner(link: Any) -> Any:
    # The second name is that of torch 2.6 and older.
    for name in ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable"):
        inner = getattr(link, name, None)
        if inner is not None:
            return inner
    return None


def _is_known(backend: str) -> bool:
    from torch._dynamo import list_backends

    return backend in list_backends(exclude_tags=None)


def _context(backend: Any, options: dict[str, Any]) -> Callable[[Any], Any]:
    """A callable that compiles a function with these options of ``torch.compile``."""
    import torch

    return closure_of(torch.compile(_nothing, backend=backend, **options)).get("self", _unchanged)


def _nothing() -> None:
    """Stands for the function that is to be compiled."""


def _unchanged(function: Any) -> Any:
    """Does what ``torch.compile`` does where it is switched off (TORCHDYNAMO_DISABLE)."""
    return function


def _apply(context: Callable[[Any], Any], function: Any) -> Any:
    return context(function)


def _set_and_compile(module: Any, state: tuple[Any, Any]) -> None:
    module.__setstate__(state[0])
    module._compiled_call_impl = state[1](module._call_impl)
