"""From what a form's fields hold to the arguments of a call, and to the same call as one would write it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from icelaunch_nb.notebook.form.expressions import Waits
from icelaunch_nb.notebook.form.parameters import Missing, Parameter, Unwritten, literal

_WIDE = 88  # characters of a line of code before it is broken

Given = str | bool


@dataclass
class Call:
    """The arguments of a call.

    Attributes:
        args: Their values, as far as nothing is wrong and nothing waits for the launch.
        kwargs: Likewise.
        positional: The arguments that are passed by position, as source; ``*rest`` among them.
        named: Those passed by name, as source by name; ``**rest`` under an empty name.
        problems: What is wrong, by parameter.
        missing: Parameters that need a value and have none yet.
        waiting: Parameters whose value shows when the function is launched.
        unwritten: Why there is no code for it; empty where there is.
    """

    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    unwritten: str = ""

    def written(self, function: str) -> str:
        """The plain call: ``train(64, lr=0.1)``."""
        named = [
            f"{name}={source}" if name else f"**{source}" for name, source in self.named.items()
        ]
        return _call(function, [*self.positional, *named])

    def launched(self, launch: str, function: str, keywords: Mapping[str, Any]) -> str:
        """The call of `launch` that makes it on every rank."""
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
    given: Mapping[str, Given],
    evaluate: Callable[[str], Any],
    name_of: Callable[[type], str],
) -> Call:
    """Reads the fields of a function's parameters; never raises for what stands in one of them.

    Args:
        parameters: The function's.
        given: What their fields hold; where one isn't there, its default.
        evaluate: From a Python expression to its value; may raise `Waits`.
        name_of: How the notebook names a class; may raise `Unwritten`.
    """
    call = Call()
    rest = next((one for one in parameters if one.place == "rest"), None)
    by_position = (
        rest is not None and str(given.get(rest.name, "")).strip() != ""
    )  # then whatever stands before it must be, too
    last = max(
        (n for n, one in enumerate(parameters) if one.place == "position" and _changed(one, given)),
        default=-1,
    )
    for number, one in enumerate(parameters):
        positional = number <= last or (by_position and one.place in ("position", "either"))
        changed = _changed(one, given)
        if not changed and not (positional and one.place != "rest"):
            continue
        held = given.get(one.name, one.default) if changed else one.default
        value = _value(one, held, evaluate, call) if changed else one.own
        source = _source(one, held, value, name_of, call)
        if one.place == "rest":
            call.positional.append(f"*{_bracketed(source)}")
            call.args += value or ()
        elif one.place == "names":
            call.named[""] = _bracketed(source)
            _take_names(one, value, parameters, call)
        elif positional or one.place == "position":
            call.positional.append(source)
            call.args.append(value)
        else:
            call.named[one.name] = source
            call.kwargs[one.name] = value
    return call


def _changed(one: Parameter, given: Mapping[str, Given]) -> bool:
    """Whether an argument is to be passed: a required one always, another where its field holds something else than the default."""
    held = given.get(one.name, one.default)
    return one.required or (
        held != one.default
        and not (one.default == "" and one.kind == "expression" and not str(held).strip())
    )


def _value(one: Parameter, given: Given, evaluate: Callable[[str], Any], call: Call) -> Any:
    try:
        value = one.read(given, evaluate)
    except Waits:
        call.waiting.add(one.name)
        return None
    except Missing as error:
        call.problems[one.name] = str(error)
        call.missing.add(one.name)
        return None
    except ValueError as error:
        call.problems[one.name] = str(error)
        return None
    if one.place == "rest" and not isinstance(value, list | tuple):
        call.problems[one.name] = f"must be a list or a tuple, not {type(value).__name__}"
        return None
    if one.place == "names" and not (
        isinstance(value, dict) and all(isinstance(name, str) for name in value)
    ):
        call.problems[one.name] = "must be a dict with names for keys"
        return None
    return value


def _source(
    one: Parameter, held: Given, value: Any, name_of: Callable[[type], str], call: Call
) -> str:
    if one.name not in call.problems:
        try:
            return one.source(held, value, name_of)
        except Unwritten as error:
            call.unwritten = call.unwritten or str(error)
    return str(held).strip() or "..."


def _take_names(
    one: Parameter, value: dict[str, Any] | None, parameters: Sequence[Parameter], call: Call
) -> None:
    own = {other.name for other in parameters if other.place in ("either", "name")}
    twice = sorted(own & set(value or ()))
    if twice:
        call.problems[one.name] = f"{twice[0]!r} has a field of its own"
    else:
        call.kwargs.update(value or {})


def _bracketed(source: str) -> str:
    """What can follow a star, or two."""
    try:
        node = ast.parse(source, mode="eval").body
    except SyntaxError:  # the field's error is told
        return f"({source})"
    return (
        source
        if isinstance(node, ast.Name | ast.List | ast.Tuple | ast.Dict | ast.Set)
        else f"({source})"
    )


def _call(function: str, parts: Sequence[str]) -> str:
    one_line = f"{function}({', '.join(parts)})"
    if len(one_line) <= _WIDE:
        return one_line
    return "\n".join([f"{function}(", *(f"    {part}," for part in parts), ")"])
