"""Pickles objects that pickle looks up by name in ``__main__``.

These are type parameters and aliases, sentinels, and whatever else reduces to a string. A rank's
``__main__`` is empty when the call arrives there. So they go by value, once. Afterwards,
``__main__`` has them under their name, as a script's has. On the way back they are the kernel's own
objects again.
"""

from __future__ import annotations

import enum
import functools
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

# Classes of typing, or of typing_extensions where typing lacks one.
_PARAMETERS = ("TypeVar", "ParamSpec", "TypeVarTuple")


def name_in_main(obj: Any, protocol: int, reducers: Mapping[type, Any]) -> Any:
    """Calls the ``__reduce_ex__`` of an object of ``__main__``.

    Args:
        obj: The object.
        protocol: The pickle protocol.
        reducers: The pickler's dispatch table.

    Returns:
        What the object returns: a string is its name in ``__main__``. NotImplemented for an object
        of another module, and for one that has no reduction of its own.
    """
    cls: Any = type(obj)
    if cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__:
        return NotImplemented
    if (getattr(obj, "__module__", None) != "__main__" and not _is_parameter_of_syntax(obj)) or (
        cls in reducers and not is_type_variable(obj)
    ):
        return NotImplemented
    return obj.__reduce_ex__(protocol)


def _is_parameter_of_syntax(obj: Any) -> bool:
    """Whether it is a parameter of ``def f[*Ts]``. Its ``__module__`` is typing, not the cell's."""
    return (
        type(obj).__module__ == "typing"
        and type(obj).__name__ in _PARAMETERS
        and getattr(typing, obj.__name__, None) is not obj
    )


def is_in_main(name: str, obj: Any) -> bool:
    """Whether ``__main__`` has this object under that name."""
    try:
        return functools.reduce(getattr, name.split("."), sys.modules["__main__"]) is obj
    except AttributeError:
        return False


def reduce_by_value(obj: Any, name: str | None) -> tuple[Any, ...]:
    """Reduces an object to its value, for ``reducer_override``.

    Args:
        obj: The object.
        name: Its name in the other process's ``__main__``; None: it isn't put there.
    """
    make, args = _constructor_and_args(obj)
    return _define, (name, make, args), _state(obj), None, None, _restore


def known(name: str, load: Callable[[bytes], Any], definition: bytes) -> Any:
    """This process's object of that name. Another kernel, which has none, gets the rank's."""
    try:
        return functools.reduce(getattr, name.split("."), sys.modules["__main__"])
    except AttributeError:
        return load(definition)


def is_type_variable(obj: Any) -> bool:
    """Whether it is a `typing.TypeVar`."""
    return type(obj) is typing.TypeVar


def _constructor_and_args(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    cls = type(obj)
    if cls.__module__ in ("typing", "typing_extensions"):
        if cls.__name__ in _PARAMETERS:
            return _parameter, (
                cls,
                obj.__name__,
                getattr(obj, "__constraints__", ()),
                _options(obj),
            )
        if cls.__name__ == "NewType":
            return cls, (obj.__name__, obj.__supertype__)
        if cls.__name__ == "TypeAliasType":
            if _is_lazy(obj):
                return _lazy_alias, (obj.__name__,)
            return _alias, (cls, obj.__name__, obj.__value__, obj.__type_params__)
    if isinstance(obj, enum.Enum):
        return cls, (obj.value,)
    base = next(kind for kind in cls.__mro__ if not kind.__flags__ & _HEAP_TYPE)
    return _instance, (cls, base, None if base is object else _base_value(obj, base))


_HEAP_TYPE = 1 << 9  # set for classes that Python code defines


def _base_value(obj: Any, base: type) -> Any:
    """The value of an instance of a subclass of ``int``, ``str`` and the like."""
    return str.__str__(obj) if base is str else base(obj)


def _options(parameter: Any) -> dict[str, Any]:
    given = {
        name: getattr(parameter, f"__{name}__", None)
        for name in ("bound", "covariant", "contravariant", "infer_variance")
    }
    if sys.version_info >= (3, 13) and parameter.has_default():
        given["default"] = parameter.__default__
    return {
        name: value for name, value in given.items() if value is not None and value is not False
    }


def _parameter(cls: Any, name: str, constraints: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return cls(name, *constraints, **options)


def _alias(cls: Any, name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    return cls(name, value, type_params=parameters)


def _is_lazy(obj: Any) -> bool:
    """Whether it is an alias that can be made before its value, as a recursive one must be."""
    return (
        type(obj).__name__ == "TypeAliasType"
        and type(obj).__module__ == "typing"
        and not obj.__type_params__
        and obj.__name__.isidentifier()
    )


_values: dict[int, list[Any]] = {}  # by id: the lists that take the values of unfinished aliases


def _lazy_alias(name: str) -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__", "value of the alias": []}
    exec(f"type {name} = globals()['value of the alias'][0]", namespace)
    _values[id(namespace[name])] = namespace["value of the alias"]
    return namespace[name]


def _instance(cls: Any, base: Any, value: Any) -> Any:
    """An instance without its state. A class with a single instance gives that one."""
    if base is not object:
        return base.__new__(cls, value)  # type: ignore[call-overload, unused-ignore]
    try:
        return cls.__new__(cls)
    except TypeError:  # its __new__ requires arguments
        return object.__new__(cls)


def _state(obj: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """An object's ``__dict__`` and its slots."""
    if isinstance(obj, enum.Enum):
        return {}, {}
    if _is_lazy(obj):
        return {}, {"__value__": obj.__value__}
    names = [name for cls in type(obj).__mro__ for name in _slots(cls)]
    return dict(getattr(obj, "__dict__", {})), {
        name: getattr(obj, name) for name in names if hasattr(obj, name)
    }


def _slots(cls: type) -> list[str]:
    if cls.__module__ in ("typing", "typing_extensions"):
        return []
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    private = f"_{cls.__name__.lstrip('_')}"
    return [
        f"{private}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def _define(name: str | None, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    made = make(*args)
    if name is not None:
        vars(sys.modules["__main__"]).setdefault(name, made)
    return made


def _restore(made: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attributes, slots = state
    if id(made) in _values:
        _values.pop(id(made)).append(slots.pop("__value__"))
    if attributes:
        made.__dict__.update(attributes)
    for name, value in slots.items():
        object.__setattr__(made, name, value)


# Enumerations. cloudpickle makes their members again from their values alone.


def with_members(cls: Any, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
    """Makes the members of an enumeration keep what its ``__init__`` or ``__new__`` gave them.

    Args:
        cls: The enumeration.
        reduced: What cloudpickle reduces it to.
    """
    make, args, state, *_, fill = reduced
    attributes = {
        name: {
            key: value
            for key, value in vars(member).items()
            if key not in ("_value_", "_name_", "_sort_order_", "__objclass__")
        }
        for name, member in cls.__members__.items()
    }
    # A dataclass is a heap type, too.
    if "__new_member__" in vars(cls) or cls._member_type_.__flags__ & _HEAP_TYPE:
        kind = next(kind for kind in cls._member_type_.__mro__ if not kind.__flags__ & _HEAP_TYPE)
        args = (
            kind,
            [
                (member.value, None if kind is object else _base_value(member, kind))
                for member in cls
            ],
            *args,
        )
        make = _enumeration
    if make is not _enumeration and not any(attributes.values()):
        return reduced
    return make, args, (state, attributes, fill), None, None, _fill_enumeration


def _enumeration(kind: type, values: list[tuple[Any, Any]], *args: Any) -> Any:
    """Makes an enumeration whose members have the values that its own ``__new__`` chose."""
    bases, name, qualname, members, module, tracker_id, _ = args
    from cloudpickle import cloudpickle as _cp

    coming = iter(values)

    def __new__(cls: Any, *ignored: Any) -> Any:
        value, plain = next(coming)
        member: Any = object.__new__(cls) if kind is object else kind.__new__(cls, plain)
        member._value_ = value
        return member

    metaclass: Any = type(bases[-1])
    namespace = metaclass.__prepare__(name, bases)
    namespace["__new__"] = __new__
    # A base's would make attributes of the value. The members come with their attributes.
    namespace["__init__"] = _no_init
    for key, value in members.items():
        namespace[key] = value
    made = metaclass.__new__(metaclass, name, bases, namespace)
    made.__module__, made.__qualname__ = module, qualname
    del made.__init__
    return _cp._lookup_class_or_track(tracker_id, made)


def _no_init(*_: object) -> None:
    """An ``__init__`` that does nothing."""


def _fill_enumeration(
    cls: Any, state: tuple[Any, dict[str, dict[str, Any]], Callable[[Any, Any], Any]]
) -> None:
    own, attributes, fill = state
    fill(cls, own)
    for name, member in cls.__members__.items():
        member.__dict__.update(attributes.get(name, {}))
