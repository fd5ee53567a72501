"""A function's parameters as fields of a form: what each takes, what it holds by itself, and how what is typed becomes a value."""

from __future__ import annotations

import ast
import enum
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from icelaunch_nb.notebook.form.expressions import written

_SHOWN = 60  # characters of a default that stands in a field
_PLACES = {
    inspect.Parameter.POSITIONAL_ONLY: "position",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "either",
    inspect.Parameter.KEYWORD_ONLY: "name",
    inspect.Parameter.VAR_POSITIONAL: "rest",
    inspect.Parameter.VAR_KEYWORD: "names",
}
_NUMBERS: dict[type, str] = {int: "must be a whole number", float: "must be a number"}


class Missing(ValueError):
    """Nothing was typed yet where something is needed."""


class Unwritten(Exception):
    """There is no code for a value."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function.

    Attributes:
        name: Its name.
        kind: ``checkbox``, ``select``, ``number``, ``text`` or ``expression``.
        default: What the field shows at first: a bool for a checkbox, else text. Left as it is, the argument isn't passed.
        required: Whether the function has no default of its own.
        own: That default itself.
        hint: Its type, or what an empty field stands for.
        values: Of a select: the value by the label, in order.
        number: Of a number: `int` or `float`.
        nullable: Whether an empty field means None.
        place: How it is passed: by ``position``, ``either`` way, by ``name``, or as the ``rest`` (``*args``) or the ``names`` (``**kwargs``).
    """

    name: str
    kind: str
    default: str | bool
    required: bool
    own: Any = None
    hint: str = ""
    values: Mapping[str, Any] | None = None
    number: type = int
    nullable: bool = False
    place: str = "either"

    def read(self, given: str | bool, evaluate: Callable[[str], Any]) -> Any:
        """The value of what a field holds.

        Args:
            given: A checkbox's state, or the text of any other field.
            evaluate: From a Python expression to its value.

        Raises:
            Missing: It is empty, and must not be.
            ValueError: It can't be a value of this parameter; says what would be right.
        """
        if self.kind == "checkbox":
            return bool(given)
        text = str(given)
        if self.kind == "select":
            return self._choose(text)
        if self.kind == "text" and (text or not (self.nullable or self.required)):
            return text
        if not text.strip():
            if self.nullable:
                return None
            raise Missing(
                "needs a value"
                if self.required
                else f"must not be empty; the default is {self.default}"
            )
        return self._number(text) if self.kind == "number" else evaluate(text)

    def _choose(self, label: str) -> Any:
        assert self.values is not None
        if label in self.values:
            return self.values[label]
        if not label:
            raise Missing("choose one")
        raise ValueError(f"must be one of {', '.join(self.values)}")

    def _number(self, text: str) -> Any:
        try:
            return self.number(text.strip())
        except ValueError:
            raise ValueError(_NUMBERS[self.number]) from None

    def source(self, given: str | bool, value: Any, name_of: Callable[[type], str]) -> str:
        """The argument as one would write it in a cell.

        Args:
            given: What the field holds.
            value: What that means.
            name_of: How the notebook names a class; may raise `Unwritten`.

        Raises:
            Unwritten: There is no code for it.
        """
        if self.kind != "expression":
            return literal(value, name_of)
        if not str(given).strip():
            raise Unwritten(f"the default of {self.name} can't be written")
        return written(str(given))


def parameters(fn: Any) -> list[Parameter]:
    """The parameters of a function, in order.

    Raises:
        ValueError: It has no signature that Python can tell.
    """
    try:
        signature = _signature(fn)
    except TypeError as error:
        raise ValueError(str(error)) from None
    inner = inspect.unwrap(behind(fn))
    namespace = getattr(inner, "__globals__", {})
    return [
        _parameter(one, _resolved(one.annotation, namespace))
        for one in signature.parameters.values()
    ]


def behind(fn: Any) -> Any:
    """The function that a partial, a cache or a method calls."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, functools._lru_cache_wrapper):
            fn = fn.__wrapped__
        else:
            return getattr(fn, "__func__", fn)


def literal(value: Any, name_of: Callable[[type], str] = lambda cls: cls.__qualname__) -> str:
    """A value as one would write it: ``repr``, but ``Color.RED`` for a member of an enumeration."""
    if isinstance(value, enum.Enum):
        member = f".{value.name}" if value.name.isidentifier() else f"[{value.name!r}]"
        return name_of(type(value)) + member
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    text = repr(value)
    return (
        f'"{text[1:-1]}"' if isinstance(value, str) and text[0] == "'" and '"' not in text else text
    )


def _signature(fn: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib  # an annotation of what isn't there would raise

        return inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(fn)


def _resolved(annotation: Any, namespace: dict[str, Any]) -> Any:
    """An annotation that is text as what it means; as it is, where it names what isn't there. Each by itself: one may be wrong."""
    try:
        return typing.get_type_hints(
            types.SimpleNamespace(__annotations__={"it": annotation}), namespace
        )["it"]
    except Exception:
        return annotation


def _parameter(one: inspect.Parameter, annotation: Any) -> Parameter:
    place = _PLACES[one.kind]
    if place in ("rest", "names"):
        hint = "a list of further arguments" if place == "rest" else "a dict of further arguments"
        return Parameter(one.name, "expression", "", False, hint=hint, place=place)
    required = one.default is one.empty
    annotation, nullable = _without_none(annotation)
    if annotation is one.empty and not required and one.default is not None:
        annotation = type(one.default)
    made = _typed(one, annotation, nullable, place)
    fits = required or (one.default is None and nullable) or _holds(made, one.default)
    return (
        made if fits else _expression(one, annotation, place)
    )  # a default of another type than it says


def _typed(one: inspect.Parameter, annotation: Any, nullable: bool, place: str) -> Parameter:
    required, own = one.default is one.empty, one.default
    choices = _choices(annotation, nullable)
    if annotation is bool and not choices:
        return Parameter(one.name, "checkbox", one.default is True, required, own, place=place)
    if choices:
        label = next(
            (
                label
                for label, value in choices.items()
                if not required and _same(value, one.default)
            ),
            "",
        )
        return Parameter(
            one.name, "select", label, required, own, values=choices, nullable=nullable, place=place
        )
    text = str(own) if isinstance(own, int | float | str) else ""
    empty = ", empty: None" if nullable else ""
    if annotation in (int, float):
        return Parameter(
            one.name,
            "number",
            text,
            required,
            own,
            f"{annotation.__name__}{empty}",
            number=annotation,
            nullable=nullable,
            place=place,
        )
    if annotation is str:
        return Parameter(
            one.name, "text", text, required, own, f"text{empty}", nullable=nullable, place=place
        )
    return _expression(one, annotation, place)


def _expression(one: inspect.Parameter, annotation: Any, place: str) -> Parameter:
    hint = "a Python expression" if annotation is one.empty else _named(annotation)
    if one.default is one.empty:
        return Parameter(one.name, "expression", "", True, hint=hint, place=place)
    try:
        text = literal(one.default)
    except Exception:  # its class may be half-written yet
        text = f"a {type(one.default).__name__}"
    if _reads_back(text, one.default):
        return Parameter(one.name, "expression", text, False, one.default, hint, place=place)
    return Parameter(
        one.name,
        "expression",
        "",
        False,
        one.default,
        f"empty: {text if len(text) <= _SHOWN else text[: _SHOWN - 1] + '…'}",
        place=place,
    )


def _named(annotation: Any) -> str:
    """An annotation as it stands in the code; of what isn't there, since Python 3.14 that is a ForwardRef."""
    return str(
        annotation
        if isinstance(annotation, str)
        else getattr(annotation, "__forward_arg__", "") or inspect.formatannotation(annotation)
    )


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """``int | None`` is int that may be None; what stands in Annotated is what is annotated."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(annotation) if one is not type(None)]
        if len(inner) == 1 and len(inner) < len(typing.get_args(annotation)):
            return _without_none(inner[0])[0], True
    return annotation, False


def _choices(annotation: Any, nullable: bool) -> dict[str, Any]:
    """The values that an annotation leaves to choose from, by label."""
    if typing.get_origin(annotation) is typing.Literal:
        values = list(typing.get_args(annotation))
        # "1" and 1 look the same without quotes.
        labels = [
            str(value)
            if isinstance(value, str) and str(value) not in map(repr, values)
            else literal(value)
            for value in values
        ]
        found = dict(zip(labels, values, strict=True))
    elif inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        found = {member.name: member for member in annotation}
    elif annotation is bool and nullable:
        found = {"True": True, "False": False}
    else:
        return {}
    return {"None": None, **found} if nullable and None not in found.values() else found


def _holds(made: Parameter, default: Any) -> bool:
    """Whether a field can hold a default, so that leaving it alone and typing it again are the same."""
    if made.kind == "checkbox":
        return isinstance(default, bool)
    if made.kind == "select":
        return made.default != ""
    if made.kind == "number":
        return type(default) in (int, made.number)
    if made.kind == "text":
        return isinstance(default, str) and "\n" not in default
    return True


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and one == other)


def _reads_back(text: str, value: Any) -> bool:
    """Whether a text is a literal of the value; an object's repr isn't."""
    try:
        return len(text) <= _SHOWN and _same(ast.literal_eval(text), value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
