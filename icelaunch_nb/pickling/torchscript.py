"""Pickles functions and modules of TorchScript, and exported programs, which pickle refuses.

Each goes as torch writes it to a file. A function that a cell has scripted is scripted again where
it arrives, from its source, so that functions that are scripted there can call it. If that fails,
and for a traced function, the compiled code is loaded as a module.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import sys
import warnings
from typing import Any


def reduce_scripted(obj: Any) -> Any:
    """Reduces such an object, for ``reducer_override``; NotImplemented for everything else."""
    torch, cls = sys.modules["torch"], type(obj)
    jit = getattr(torch, "jit", None)
    if jit is None:  # another thread is importing torch just now
        return NotImplemented
    if cls is jit.ScriptFunction:
        return _function, (
            getattr(obj, "_torchdynamo_inline", None) if _is_scripted(obj) else None,
            _saved(obj),
        )
    if issubclass(cls, jit.ScriptModule):
        tensors = dict(obj.state_dict(keep_vars=True))
        return _load, (_saved(obj),), tensors, None, None, _put
    if cls.__module__ == "torch.export.exported_program" and cls.__name__ == "ExportedProgram":
        return _load_program, (_saved_program(torch, obj),)
    return NotImplemented


def _is_scripted(function: Any) -> bool:
    """Whether a function was scripted, not traced.

    The code of a scripted function names its source. That of a traced one holds what the example
    inputs made of it.
    """
    # A constant has no source range.
    ranges = filter(None, (node.sourceRange() for node in function.graph.nodes()))
    return all('  File "' in found for found in ranges)


def _saved(obj: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that TorchScript is deprecated
        try:
            sys.modules["torch"].jit.save(obj, file)
        except RuntimeError as error:
            raise pickle.PicklingError(
                f"torch.jit.save: {str(error).strip().splitlines()[0]}"
            ) from error
    return file.getvalue()


def _saved_program(torch: Any, program: Any) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _function(original: Any, data: bytes) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if original is not None:
            # Its source may be missing here, or it uses a name that only an annotation's text has.
            with contextlib.suppress(Exception):
                return torch.jit.script(original)
        return torch.jit.load(io.BytesIO(data))


def _load(data: bytes) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(io.BytesIO(data), map_location="cpu")


def _put(module: Any, tensors: dict[str, Any]) -> None:
    """Replaces the module's parameters by those that an optimizer of the same call refers to."""
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        setattr(functools.reduce(getattr, path, module), last, tensor)


def _load_program(data: bytes) -> Any:
    import torch

    return torch.export.load(io.BytesIO(data))
