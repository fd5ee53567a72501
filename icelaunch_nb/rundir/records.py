"""Records: the JSON objects of the run directory and of the messages between processes, each a class with its fields' types.

A run's directory may come from somebody else, be damaged, or be written by another version. So a record is checked when it is read,
field by field, and whatever stands behind it can rely on its values. Fields that this version doesn't know are kept in `Record.unknown`
and not looked at.

    @dataclass(eq=False, repr=False)
    class AgentStarted(Record):
        pid: Pid
        started: Seconds = 0.0
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, TypeVar, Union

_RANKS = 100_000  # on one machine, as `LaunchConfig` has it
_LONGEST_TEXT = 4 << 20  # characters

R = TypeVar("R", bound="Record")
_Parser = Callable[[Any, str], Any]


class InvalidValueError(ValueError):
    """A value in a file of a run can't be. The message names it and says what would be right."""


@dataclass(frozen=True)
class Check:
    """What a value must be.

    Attributes:
        accepts: Whether a value is right.
        remedy: What would be right, as a clause.
    """

    accepts: Callable[[Any], bool]
    remedy: str

    def parse(self, value: Any, name: str) -> Any:
        """The value, if it is right.

        Raises:
            InvalidValueError: It isn't.
        """
        if not self.accepts(value):
            raise InvalidValueError(f"{name}={_short(value)}: must be {self.remedy}")
        return value


def whole(least: int, most: int) -> Check:
    """A whole number in a range."""
    return Check(
        lambda value: type(value) is int and least <= value <= most,
        f"a whole number from {least} to {most}",
    )


def number(least: float, most: float) -> Check:
    """A number in a range; neither NaN nor infinite."""
    return Check(
        lambda value: type(value) in (int, float) and least <= value <= most,
        f"a number from {least:g} to {most:g}",
    )


def text(most: int = _LONGEST_TEXT) -> Check:
    """A text of at most so many characters."""
    return Check(
        lambda value: type(value) is str and len(value) <= most,
        f"a text of at most {most} characters",
    )


def items(least: int, most: int) -> Check:
    """A list with so many items, whose own type says what each must be."""
    return Check(
        lambda value: type(value) is list and least <= len(value) <= most,
        f"a list of {least} to {most} items",
    )


Bool = Annotated[bool, Check(lambda value: type(value) is bool, "true or false")]
Text = Annotated[str, text()]
Word = Annotated[str, text(100)]
Rank = Annotated[int, whole(0, (1 << 31) - 1)]
LocalRank = Annotated[int, whole(0, _RANKS - 1)]
Node = Annotated[int, whole(0, _RANKS - 1)]
Attempt = Annotated[int, whole(0, (1 << 31) - 1)]
Pid = Annotated[
    int, whole(1, (1 << 31) - 1)
]  # 0 and less would mean groups of processes to kill(2)
Time = Annotated[float, number(0, 1e11)]  # seconds since the epoch, or since the machine started
Started = Annotated[
    float, number(-1, 1e11)
]  # seconds since the machine started; -1: it had ended before anybody could look it up
Grace = Annotated[float, number(0, 1e9)]  # seconds
Step = Annotated[int, Check(lambda step: type(step) is int, "a whole number")]
ExitCode = Annotated[int, whole(-(1 << 31), (1 << 31) - 1)]
Ranks = Annotated[list[Rank], items(0, _RANKS)]
UpToRanks = items(0, _RANKS)


class Record:
    """One JSON object. A subclass is a dataclass, whose annotations say what each field must be."""

    unknown: Mapping[str, Any] = types.MappingProxyType({})
    _parsers: ClassVar[tuple[tuple[str, _Parser, bool], ...] | None] = None

    @classmethod
    def parse(cls: type[R], data: Any, where: str = "") -> R:
        """The record that an object holds, checked.

        Args:
            data: What was read.
            where: What stands before a field's name in a message.

        Raises:
            InvalidValueError: A field is wrong or missing, or it is no object.
        """
        if type(data) is not dict:
            raise InvalidValueError(
                f"{where.rstrip('.') or 'it'}={_short(data)}: must be a JSON object"
            )
        values: dict[str, Any] = {}
        for name, parse, required in cls._fields():
            if name in data:
                values[name] = parse(data[name], where + name)
            elif required:
                raise InvalidValueError(f"{where}{name} is missing: must be {_remedy(parse)}")
        record = cls(**values)
        if len(data) > len(values):
            record.unknown = {name: value for name, value in data.items() if name not in values}
        return record

    @classmethod
    def _fields(cls) -> tuple[tuple[str, _Parser, bool], ...]:
        found = cls.__dict__.get("_parsers")
        if found is None:
            # At the first look and not when the class is made: a kernel that only imports the package needs none of them.
            hints = typing.get_type_hints(cls, include_extras=True)
            found = tuple(
                (
                    field.name,
                    _parser(hints[field.name]),
                    field.default is MISSING and field.default_factory is MISSING,
                )
                for field in fields(cls)  # type: ignore[arg-type]
            )
            cls._parsers = found
        return found

    def to_json(self) -> dict[str, Any]:
        """The way back: what `json.dumps` takes."""
        names = [one.name for one in fields(self)]  # type: ignore[arg-type]
        return {name: _plain(getattr(self, name)) for name in names} | dict(self.unknown)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.to_json() == self.to_json()  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.to_json().items())})"


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.to_json() if hasattr(value, "to_json") else value


def _parser(hint: Any) -> _Parser:
    """What reads a value of an annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        check: Check = hint.__metadata__[0]
        if typing.get_origin(arguments[0]) is list:
            item = _parser(typing.get_args(arguments[0])[0])
            return _Items(check, item)
        return check.parse
    if origin in (Union, types.UnionType):
        (one,) = (argument for argument in arguments if argument is not type(None))
        return _Optional(_parser(one))
    if isinstance(hint, type) and hasattr(hint, "parse"):
        return _Nested(hint.parse)
    return _as_it_is


@dataclass(frozen=True)
class _Items:
    check: Check
    item: _Parser

    def __call__(self, value: Any, name: str) -> list[Any]:
        return [
            self.item(item, f"{name}[{number}]")
            for number, item in enumerate(self.check.parse(value, name))
        ]


@dataclass(frozen=True)
class _Optional:
    one: _Parser

    def __call__(self, value: Any, name: str) -> Any:
        if value is None:
            return None
        try:
            return self.one(value, name)
        except InvalidValueError as error:
            raise InvalidValueError(f"{error}, or null") from None


@dataclass(frozen=True)
class _Nested:
    one: _Parser

    def __call__(self, value: Any, name: str) -> Any:
        return self.one(value, f"{name}.")


def _as_it_is(value: Any, name: str) -> Any:
    return value


def _remedy(parser: _Parser) -> str:
    owner = parser.check if isinstance(parser, _Items) else getattr(parser, "__self__", None)
    return owner.remedy if isinstance(owner, Check) else "there"


def parse_json(data: str | bytes) -> Any:
    """The value that a JSON text holds.

    Raises:
        ValueError: It is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(data if isinstance(data, str) else data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_line(data: str | bytes) -> dict[str, Any]:
    """The object that a line of JSON holds.

    Raises:
        ValueError: It is none.
    """
    found = parse_json(data)
    if type(found) is not dict:
        raise InvalidValueError(f"{_short(found)}: must be a JSON object")
    return found


def parse_each(kind: type[R], data: Any) -> Iterator[tuple[str, R]]:
    """The records of an object of records, by name; those that can't be are passed over."""
    for name, value in data.items() if type(data) is dict else ():
        try:
            yield name, kind.parse(value)
        except InvalidValueError:
            continue


def _short(value: Any, limit: int = 100) -> str:
    try:
        shown = ascii(value)
    except (RecursionError, ValueError):  # an int with more digits than Python turns into text
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
