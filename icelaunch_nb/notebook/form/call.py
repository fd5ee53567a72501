"""The call that a form's fields describe: its arguments, and its source code."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from icelaunch_nb.notebook.form.expressions import Deferred
from icelaunch_nb.notebook.form.parameters import MissingValue, NoSource, Parameter, literal

# A longer call has a line for each argument.
_MAX_LINE_LENGTH = 88

FieldValue = str | bool


@dataclass
class Call:
    """The arguments of a call.

    Attributes:
        args: The values of the positional arguments. They are valid only where `problems` and
            `deferred` are empty.
        kwargs: The values of the keyword arguments. The same holds for them.
        positional: The sources of the positional arguments, ``*rest`` included.
        named: The sources of the keyword arguments by name. ``**rest`` has an empty name.
        problems: The error messages, by parameter.
        missing: The parameters that need a value and have none yet.
        deferred: The parameters whose value is evaluated at launch.
        no_source: Why the call has no source; empty where it has one.
    """

    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    deferred: set[str] = field(default_factory=set)
    no_source: str = ""

    def source(self, function: str) -> str:
        """The source of the plain call: ``train(64, lr=0.1)``."""
        named = [
            f"{name}={source}" if name else f"**{source}" for name, source in self.named.items()
        ]
        return _call(function, [*self.positional, *named])

    def launch_source(self, launch: str, function: str, keywords: Mapping[str, Any]) -> str:
        """The source of the call of `launch` that runs this call on every rank.

        Args:
            launch: The source that names `launch`, with an assignment where one is wanted.
            function: The source that names the function.
            keywords: Further keywords of `launch`.
        """
        parts = [function]
        if self.positional:
            parts.append(f"args=({', '.join(self.positional)}{',' * (len(self.positional) == 1)})")
        if self.named:
            named = [
                f"{literal(name)}: {source}" if name else f"**{source}"
                for name, source in self.named.items()
            ]
            parts.append(f"kwargs={{{', '.join(named)}}}")
        return _call(
            launch, [*parts, *(f"{name}={literal(value)}" for name, value in keywords.items())]
        )


def read_call(
    parameters: Sequence[Parameter],
    given: Mapping[str, FieldValue],
    evaluate: Callable[[str], Any],
    name_of: Callable[[type], str],
) -> Call:
    """Reads the fields of a function's parameters.

    An invalid field doesn't raise: its error is in `Call.problems`.

    Args:
        parameters: The function's parameters.
        given: The fields' values by parameter. A field that isn't there has its default.
        evaluate: Evaluates a Python expression. It may raise `Deferred`.
        name_of: Returns the notebook's name for a class. It may raise `NoSource`.

    Returns:
        The call.
    """
    call = Call()
    rest = next((one for one in parameters if one.passed == "rest"), None)
    # Where ``*rest`` has arguments, all arguments before it are passed by position too.
    by_position = rest is not None and str(given.get(rest.name, "")).strip() != ""
    last = max(
        (
            n
            for n, one in enumerate(parameters)
            if one.passed == "position" and _changed(one, given)
        ),
        default=-1,
    )
    for number, one in enumerate(parameters):
        positional = number <= last or (by_position and one.passed in ("position", "either"))
        changed = _changed(one, given)
        if not changed and not (positional and one.passed != "rest"):
            continue
        held = given.get(one.name, one.default) if changed else one.default
        value = _value(one, held, evaluate, call) if changed else one.default_value
        source = _source(one, held, value, name_of, call)
        if one.passed == "rest":
            call.positional.append(f"*{_starrable(source)}")
            call.args += value or ()
        elif one.passed == "names":
            call.named[""] = _starrable(source)
            _add_names(one, value, parameters, call)
        elif positional or one.passed == "position":
            call.positional.append(source)
            call.args.append(value)
        else:
            call.named[one.name] = source
            call.kwargs[one.name] = value
    return call


def _changed(one: Parameter, given: Mapping[str, FieldValue]) -> bool:
    """Whether an argument is passed: it is required, or differs from its default."""
    held = given.get(one.name, one.default)
    return one.required or (
        held != one.default
        and not (one.default == "" and one.kind == "expression" and not str(held).strip())
    )


def _value(one: Parameter, given: FieldValue, evaluate: Callable[[str], Any], call: Call) -> Any:
    try:
        value = one.read(given, evaluate)
    except Deferred:
        call.deferred.add(one.name)
        return None
    except MissingValue as error:
        call.problems[one.name] = str(error)
        call.missing.add(one.name)
        return None
    except ValueError as error:
        call.problems[one.name] = str(error)
        return None
    if one.passed == "rest" and not isinstance(value, list | tuple):
        call.problems[one.name] = f"must be a list or a tuple, not {type(value).__name__}"
        return None
    if one.passed == "names" and not (
        isinstance(value, dict) and all(isinstance(name, str) for name in value)
    ):
        call.problems[one.name] = "must be a dict with names for keys"
        return None
    return value


def _source(
    one: Parameter, held: FieldValue, value: Any, name_of: Callable[[type], str], call: Call
) -> str:
    if one.name not in call.problems:
        try:
            return one.source(held, value, name_of)
        except NoSource as error:
            call.no_source = call.no_source or str(error)
    return str(held).strip() or "..."


def _add_names(
    one: Parameter, value: dict[str, Any] | None, parameters: Sequence[Parameter], call: Call
) -> None:
    """Adds the arguments of ``**kwargs``. A name that is a parameter too is an error."""
    by_name = {other.name for other in parameters if other.passed in ("either", "name")}
    twice = sorted(by_name & set(value or ()))
    if twice:
        call.problems[one.name] = f"{twice[0]!r} has a field of its own"
    else:
        call.kwargs.update(value or {})


def _starrable(source: str) -> str:
    """The source in parentheses where ``*`` or ``**`` can't precede it otherwise."""
    try:
        node = ast.parse(source, mode="eval").body
    except SyntaxError:
        # The field shows the error.
        return f"({source})"
    plain = isinstance(node, ast.Name | ast.List | ast.Tuple | ast.Dict | ast.Set)
    return source if plain else f"({source})"


def _call(function: str, parts: Sequence[str]) -> str:
    one_line = f"{function}({', '.join(parts)})"
    if len(one_line) <= _MAX_LINE_LENGTH:
        return one_line
    return "\n".join([f"{function}(", *(f"    {part}," for part in parts), ")"])
