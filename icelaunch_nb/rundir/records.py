"""Records: JSON objects of the run directory and of messages, each a class with typed fields.

A run directory may come from another user, be damaged, or be written by another version. So each
field of a record is checked when the record is read, and all later code can rely on its values.
Fields that this version doesn't know are kept in `Record.unknown`, unchecked.

    @dataclass(eq=False, repr=False)
    class AgentStarted(Record):
        pid: Pid
        started: Time = 0.0
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, TypeVar, Union

# On one machine, as in `LaunchConfig`.
_MAX_RANKS = 100_000
# Characters.
_MAX_TEXT = 4 << 20

R = TypeVar("R", bound="Record")
_Parser = Callable[[Any, str], Any]


class InvalidValueError(ValueError):
    """A value in a record is wrong. The message names it and says what would be right."""


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
        """Returns the value if it is right.

        Args:
            value: The value.
            name: The field's name, for the message.

        Raises:
            InvalidValueError: The value is wrong.
        """
        if not self.accepts(value):
            raise InvalidValueError(f"{name}={_short_ascii(value)}: must be {self.remedy}")
        return value


def whole(least: int, most: int) -> Check:
    """The check for a whole number in a range."""
    return Check(
        lambda value: type(value) is int and least <= value <= most,
        f"a whole number from {least} to {most}",
    )


def number(least: float, most: float) -> Check:
    """The check for a number in a range, which is neither NaN nor infinite."""
    return Check(
        lambda value: type(value) in (int, float) and least <= value <= most,
        f"a number from {least:g} to {most:g}",
    )


def text(most: int = _MAX_TEXT) -> Check:
    """The check for a string of at most `most` characters."""
    return Check(
        lambda value: type(value) is str and len(value) <= most,
        f"a text of at most {most} characters",
    )


def items(least: int, most: int) -> Check:
    """The check for a list of some length. The type of its items says what each must be."""
    return Check(
        lambda value: type(value) is list and least <= len(value) <= most,
        f"a list of {least} to {most} items",
    )


Bool = Annotated[bool, Check(lambda value: type(value) is bool, "true or false")]
Text = Annotated[str, text()]
Word = Annotated[str, text(100)]
Rank = Annotated[int, whole(0, (1 << 31) - 1)]
LocalRank = Annotated[int, whole(0, _MAX_RANKS - 1)]
Node = Annotated[int, whole(0, _MAX_RANKS - 1)]
Attempt = Annotated[int, whole(0, (1 << 31) - 1)]
# 0 and less would mean groups of processes to kill(2).
Pid = Annotated[int, whole(1, (1 << 31) - 1)]
# Seconds since the epoch, or since the machine's boot.
Time = Annotated[float, number(0, 1e11)]
# Seconds since the machine's boot. -1: the process had ended before its start could be looked up.
Started = Annotated[float, number(-1, 1e11)]
# Seconds.
Grace = Annotated[float, number(0, 1e9)]
Step = Annotated[int, Check(lambda step: type(step) is int, "a whole number")]
ExitCode = Annotated[int, whole(-(1 << 31), (1 << 31) - 1)]
Ranks = Annotated[list[Rank], items(0, _MAX_RANKS)]
UpToRanks = items(0, _MAX_RANKS)


class Record:
    """One JSON object. A subclass is a dataclass whose annotations say what each field must be.

    Attributes:
        unknown: Fields of the object that this version doesn't know.
    """

    unknown: Mapping[str, Any] = types.MappingProxyType({})
    _parsers: ClassVar[tuple[tuple[str, _Parser, bool], ...] | None] = None

    @classmethod
    def parse(cls: type[R], data: Any, where: str = "") -> R:
        """Makes a record of a JSON object, and checks each field.

        Args:
            data: The JSON value that was read.
            where: What precedes a field's name in a message.

        Raises:
            InvalidValueError: A field is wrong or missing, or `data` is no JSON object.
        """
        if type(data) is not dict:
            raise InvalidValueError(
                f"{where.rstrip('.') or 'it'}={_short_ascii(data)}: must be a JSON object"
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
            # On the first use, not as the class is made: a kernel that only imports the package
            # needs none of them.
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
        """The JSON object of the record, for `json.dumps`."""
        names = [one.name for one in fields(self)]  # type: ignore[arg-type]
        return {name: _to_json(getattr(self, name)) for name in names} | dict(self.unknown)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return False
        return other.to_json() == self.to_json()  # type: ignore[attr-defined,no-any-return]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.to_json().items())
        return f"{type(self).__name__}({shown})"


def _to_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value.to_json() if hasattr(value, "to_json") else value


def _parser(hint: Any) -> _Parser:
    """The function that checks a value of an annotated type, and converts it."""
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
    return _unchecked


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


def _unchecked(value: Any, name: str) -> Any:
    return value


def _remedy(parser: _Parser) -> str:
    owner = parser.check if isinstance(parser, _Items) else getattr(parser, "__self__", None)
    return owner.remedy if isinstance(owner, Check) else "there"


def parse_json(data: str | bytes) -> Any:
    """Parses a JSON text.

    Raises:
        ValueError: The text is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(data if isinstance(data, str) else data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_line(data: str | bytes) -> dict[str, Any]:
    """Parses a line that holds a JSON object.

    Raises:
        ValueError: The line is no JSON object.
    """
    found = parse_json(data)
    if type(found) is not dict:
        raise InvalidValueError(f"{_short_ascii(found)}: must be a JSON object")
    return found


def parse_each(kind: type[R], data: Any) -> Iterator[tuple[str, R]]:
    """Yields the records in a JSON object of records, with their names. Wrong ones are skipped."""
    for name, value in data.items() if type(data) is dict else ():
        try:
            yield name, kind.parse(value)
        except InvalidValueError:
            continue


def _short_ascii(value: Any, limit: int = 100) -> str:
    try:
        shown = ascii(value)
    # An int may have more digits than Python converts to text.
    except (RecursionError, ValueError):
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
