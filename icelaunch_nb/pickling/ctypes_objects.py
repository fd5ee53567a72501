"""Pickles objects of ctypes: libraries and their functions by name, and a cell's structures.

Addresses of one process mean nothing in another. So pickle still refuses pointers and callbacks.
"""

from __future__ import annotations

import operator
import os
import pickle
import sys
from typing import Any

_DEFINED_FIRST = ("_pack_", "_align_", "_layout_", "_anonymous_", "_swappedbytes_")


def reduce_ctypes(obj: Any) -> Any:
    """Reduces a library or a function of one, for ``reducer_override``.

    Returns:
        NotImplemented for everything else, and for what pickle can carry itself.

    Raises:
        pickle.PicklingError: The library's file is gone.
    """
    ctypes = sys.modules.get("ctypes")
    cls = type(obj)
    if ctypes is None or cls.__module__ != "ctypes":
        return NotImplemented
    for name in ("cdll", "pydll", "pythonapi"):
        if getattr(ctypes, name, None) is obj:
            return getattr, (ctypes, name)
    if cls is ctypes.CDLL or cls is ctypes.PyDLL:
        return _library, (cls, _path(obj._name)), _functions(obj), None, None, _set_functions
    library = (
        (getattr(obj, "_objects", None) or {}).get("0") if cls.__name__ == "_FuncPtr" else None
    )
    if type(library) in (ctypes.CDLL, ctypes.PyDLL) and getattr(library, "_FuncPtr", None) is cls:
        return _function, (library, obj.__name__), _signature(obj, cls), None, None, _set_signature
    return NotImplemented


def _path(name: Any) -> Any:
    if not isinstance(name, str) or os.sep not in name:
        return name
    if not os.path.exists(name):
        raise pickle.PicklingError(f"the file of the library, {name}, is gone")
    return os.path.abspath(name)


def _library(cls: Any, name: Any) -> Any:
    return cls(name)


def _function(library: Any, name: str) -> Any:
    return library[name]


def _functions(library: Any) -> dict[str, Any]:
    """The signatures of a library's functions and its other attributes, by name."""
    cls, kept = library._FuncPtr, {}
    for name, value in vars(library).items():
        if name not in ("_name", "_handle", "_FuncPtr"):
            kept[name] = _signature(value, cls) if type(value) is cls else (value,)
    return kept


def _signature(function: Any, cls: Any) -> tuple[Any, ...] | None:
    """The argument types, result type and error check set for a function; None if none is."""
    signature = (function.argtypes, function.restype, getattr(function, "errcheck", None))
    return None if signature == (None, cls._restype_, None) else signature


def _set_functions(library: Any, kept: dict[str, Any]) -> None:
    for name, value in kept.items():
        if value is not None and len(value) == 1:
            setattr(library, name, value[0])
        else:
            _set_signature(getattr(library, name), value)


def _set_signature(function: Any, signature: tuple[Any, ...] | None) -> None:
    if signature is not None:
        function.argtypes, function.restype = signature[:2]
        if signature[2] is not None:
            function.errcheck = signature[2]


def reduce_ctypes_class(cls: type) -> Any:
    """Reduces a ctypes class to what it is made of, for ``reducer_override``.

    These are the types of pointers, arrays and callbacks, and the bases of structures.

    Returns:
        NotImplemented for all other classes.
    """
    ctypes, kind = sys.modules.get("ctypes"), type(cls).__name__
    if ctypes is None or "_ctypes" not in (type(cls).__module__, cls.__module__):
        return NotImplemented
    made: Any = cls
    for base in (
        ctypes.Structure,
        ctypes.Union,
        ctypes.BigEndianStructure,
        ctypes.LittleEndianStructure,
    ):
        if type(base) is cls:
            return type, (base,)
    if kind == "PyCPointerType" and ctypes.POINTER(made._type_) is cls:
        return ctypes.POINTER, (made._type_,)
    if kind == "PyCArrayType" and made._type_ * made._length_ is cls:
        return operator.mul, (made._type_, made._length_)
    if (
        kind == "PyCFuncPtrType"
        and hasattr(made, "_argtypes_")
        and ctypes.CFUNCTYPE(made._restype_, *made._argtypes_) is cls
    ):
        return ctypes.CFUNCTYPE, (made._restype_, *made._argtypes_)
    return NotImplemented


def without_fields(cls: type, reduced: Any) -> Any:
    """Reduces the class of a structure or a union with its ``_fields_``.

    The attributes that ctypes makes of these fields are left out. Setting the fields makes them
    again.

    Args:
        cls: The class.
        reduced: What cloudpickle reduces it to.
    """
    ctypes = sys.modules.get("ctypes")
    if (
        ctypes is None
        or not issubclass(cls, ctypes.Structure | ctypes.Union)
        or "_fields_" not in vars(cls)
        or not isinstance(reduced, tuple)
    ):
        return reduced
    make, args, (attributes, slots), *rest = reduced
    made = {field[0] for field in vars(cls)["_fields_"]}
    made |= {name for name, value in vars(cls).items() if type(value).__name__ == "CField"}
    first = {name: attributes[name] for name in _DEFINED_FIRST if name in attributes}
    others = {
        name: value
        for name, value in attributes.items()
        if name not in made and name not in first and name != "_fields_"
    }
    return make, args, ({**first, "_fields_": attributes["_fields_"], **others}, slots), *rest
