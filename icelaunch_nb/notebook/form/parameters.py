"""A function's parameters as fields of a form: their kinds, defaults and values."""

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

from icelaunch_nb.notebook.form.expressions import as_argument

# Characters of a default that a field shows.
_MAX_DEFAULT_LENGTH = 60
_PASSED = {
    inspect.Parameter.POSITIONAL_ONLY: "position",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "either",
    inspect.Parameter.KEYWORD_ONLY: "name",
    inspect.Parameter.VAR_POSITIONAL: "rest",
    inspect.Parameter.VAR_KEYWORD: "names",
}
_NUMBER_ERRORS: dict[type, str] = {int: "must be a whole number", float: "must be a number"}


class MissingValue(ValueError):
    """A field that needs a value is empty."""


class NoSource(Exception):
    """A value has no source code."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function.

    Attributes:
        name: The parameter's name.
        kind: The field's kind: ``checkbox``, ``select``, ``number``, ``text`` or ``expression``.
        default: What the field shows at first: a bool for a checkbox, otherwise text. While the
            field shows that, the argument isn't passed.
        required: Whether the function has no default for the parameter.
        default_value: The function's default.
        hint: The parameter's type, or what an empty field means.
        values: The choices of a select: values by label, in order. None for other kinds.
        number: The type of a number: `int` or `float`.
        nullable: Whether an empty field means None.
        passed: How the argument is passed: by ``position``, by ``name``, ``either`` way, or as the
            ``rest`` (``*args``) or the ``names`` (``**kwargs``).
    """

    name: str
    kind: str
    default: str | bool
    required: bool
    default_value: Any = None
    hint: str = ""
    values: Mapping[str, Any] | None = None
    number: type = int
    nullable: bool = False
    passed: str = "either"

    def read(self, given: str | bool, evaluate: Callable[[str], Any]) -> Any:
        """The argument that a field's content means.

        Args:
            given: A checkbox's state, or the text of any other field.
            evaluate: Evaluates a Python expression.

        Raises:
            MissingValue: The field is empty and must not be.
            ValueError: The content is wrong for this parameter. The message says what would be
                right.
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
            raise MissingValue(
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
            raise MissingValue("choose one")
        raise ValueError(f"must be one of {', '.join(self.values)}")

    def _number(self, text: str) -> Any:
        try:
            return self.number(text.strip())
        except ValueError:
            raise ValueError(_NUMBER_ERRORS[self.number]) from None

    def source(self, given: str | bool, value: Any, name_of: Callable[[type], str]) -> str:
        """The argument's source, as one would write it in a cell.

        Args:
            given: The field's content.
            value: The value that `read` returned for it.
            name_of: Returns the notebook's name for a class. It may raise `NoSource`.

        Raises:
            NoSource: The argument has no source.
        """
        if self.kind != "expression":
            return literal(value, name_of)
        if not str(given).strip():
            raise NoSource(f"the default of {self.name} can't be written")
        return as_argument(str(given))


def parameters(fn: Any) -> list[Parameter]:
    """The parameters of a function, in order.

    Raises:
        ValueError: Python can't determine the function's signature.
    """
    try:
        signature = _signature(fn)
    except TypeError as error:
        raise ValueError(str(error)) from None
    inner = inspect.unwrap(unwrap(fn))
    namespace = getattr(inner, "__globals__", {})
    return [
        _make_parameter(one, _resolve(one.annotation, namespace))
        for one in signature.parameters.values()
    ]


def unwrap(fn: Any) -> Any:
    """The function that a partial, a cache or a method calls."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, functools._lru_cache_wrapper):
            fn = fn.__wrapped__
        else:
            return getattr(fn, "__func__", fn)


def literal(value: Any, name_of: Callable[[type], str] = lambda cls: cls.__qualname__) -> str:
    """A value's source: its ``repr``, but ``Color.RED`` for a member of an enumeration."""
    if isinstance(value, enum.Enum):
        member = f".{value.name}" if value.name.isidentifier() else f"[{value.name!r}]"
        return name_of(type(value)) + member
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    text = repr(value)
    double_quotes = isinstance(value, str) and text[0] == "'" and '"' not in text
    return f'"{text[1:-1]}"' if double_quotes else text


def _signature(fn: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib

        # In the default format, an undefined name in an annotation raises.
        return inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(fn)


def _resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    """The type that a textual annotation names; the text itself where a name in it is undefined.

    Each annotation is resolved separately, because another one may be wrong.
    """
    try:
        return typing.get_type_hints(
            types.SimpleNamespace(__annotations__={"it": annotation}), namespace
        )["it"]
    except Exception:
        return annotation


def _make_parameter(one: inspect.Parameter, annotation: Any) -> Parameter:
    passed = _PASSED[one.kind]
    if passed in ("rest", "names"):
        hint = "a list of further arguments" if passed == "rest" else "a dict of further arguments"
        return Parameter(one.name, "expression", "", False, hint=hint, passed=passed)
    required = one.default is one.empty
    annotation, nullable = _without_none(annotation)
    if annotation is one.empty and not required and one.default is not None:
        annotation = type(one.default)
    made = _make_typed(one, annotation, nullable, passed)
    # The default may have another type than the annotation.
    fits = required or (one.default is None and nullable) or _can_hold(made, one.default)
    return made if fits else _make_expression(one, annotation, passed)


def _make_typed(one: inspect.Parameter, annotation: Any, nullable: bool, passed: str) -> Parameter:
    required, default = one.default is one.empty, one.default
    choices = _choices(annotation, nullable)
    if annotation is bool and not choices:
        return Parameter(one.name, "checkbox", default is True, required, default, passed=passed)
    if choices:
        matches = [label for label, value in choices.items() if _equal(value, default)]
        label = matches[0] if matches and not required else ""
        return Parameter(
            one.name,
            "select",
            label,
            required,
            default,
            values=choices,
            nullable=nullable,
            passed=passed,
        )
    text = str(default) if isinstance(default, int | float | str) else ""
    empty = ", empty: None" if nullable else ""
    if annotation in (int, float):
        return Parameter(
            one.name,
            "number",
            text,
            required,
            default,
            f"{annotation.__name__}{empty}",
            number=annotation,
            nullable=nullable,
            passed=passed,
        )
    if annotation is str:
        return Parameter(
            one.name,
            "text",
            text,
            required,
            default,
            f"text{empty}",
            nullable=nullable,
            passed=passed,
        )
    return _make_expression(one, annotation, passed)


def _make_expression(one: inspect.Parameter, annotation: Any, passed: str) -> Parameter:
    hint = "a Python expression" if annotation is one.empty else _annotation_source(annotation)
    if one.default is one.empty:
        return Parameter(one.name, "expression", "", True, hint=hint, passed=passed)
    try:
        text = literal(one.default)
    except Exception:
        # The repr of a class that is still being written may fail.
        text = f"a {type(one.default).__name__}"
    if _reads_back(text, one.default):
        return Parameter(one.name, "expression", text, False, one.default, hint, passed=passed)
    if len(text) > _MAX_DEFAULT_LENGTH:
        text = text[: _MAX_DEFAULT_LENGTH - 1] + "…"
    hint = f"empty: {text}"
    return Parameter(one.name, "expression", "", False, one.default, hint, passed=passed)


def _annotation_source(annotation: Any) -> str:
    """An annotation's source. Since Python 3.14, one with an undefined name is a ForwardRef."""
    return str(
        annotation
        if isinstance(annotation, str)
        else getattr(annotation, "__forward_arg__", "") or inspect.formatannotation(annotation)
    )


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """An annotation without ``None`` and ``Annotated``, and whether ``None`` was in it."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(annotation) if one is not type(None)]
        if len(inner) == 1 and len(inner) < len(typing.get_args(annotation)):
            return _without_none(inner[0])[0], True
    return annotation, False


def _choices(annotation: Any, nullable: bool) -> dict[str, Any]:
    """The values that an annotation allows, by label."""
    if typing.get_origin(annotation) is typing.Literal:
        values = list(typing.get_args(annotation))
        # Without quotes, "1" and 1 would have the same label.
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


def _can_hold(made: Parameter, default: Any) -> bool:
    """Whether a field can show a default so that typing what it shows gives that default again."""
    if made.kind == "checkbox":
        return isinstance(default, bool)
    if made.kind == "select":
        return made.default != ""
    if made.kind == "number":
        return type(default) in (int, made.number)
    if made.kind == "text":
        return isinstance(default, str) and "\n" not in default
    return True


def _equal(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and one == other)


def _reads_back(text: str, value: Any) -> bool:
    """Whether a text is a literal of the value. The repr of most objects is none."""
    try:
        return len(text) <= _MAX_DEFAULT_LENGTH and _equal(ast.literal_eval(text), value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
