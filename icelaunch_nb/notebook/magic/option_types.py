"""The types of options.

Each function parses a value from its text, or raises a ValueError that says what would be right.
"""

from __future__ import annotations

import keyword
import re
from typing import Any


def integer(text: str) -> int:
    """An int in decimal digits. Python's other spellings, such as ``1_000``, aren't accepted."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
        raise ValueError("must be an int")
    return int(text)


def nproc(text: str) -> int | str:
    """A number of ranks, or ``auto``."""
    if text == "auto":
        return text
    try:
        return integer(text)
    except ValueError:
        raise ValueError('must be an int, or "auto"') from None


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def number_or_none(text: str) -> float | None:
    """A number, or ``none``."""
    return None if text.lower() == "none" else number(text)


def integer_or_none(text: str) -> int | None:
    """An int, or ``none``."""
    return None if text.lower() == "none" else integer(text)


def pairs(text: str) -> dict[str, str]:
    """``a=b,c=d`` as a dict of texts."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise ValueError("must be NAME=VALUE,NAME=VALUE…")
    return {name.strip(): value.strip() for name, _, value in pairs}


def literals(text: str) -> dict[str, Any]:
    """``a=1,b=true,c=x`` as a dict of ints, floats, bools and texts."""
    return {name: _literal(value) for name, value in pairs(text).items()}


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (integer, number):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def nodes(text: str) -> dict[str, int]:
    """``2`` or ``1:4`` as the fields ``min_nodes`` and ``max_nodes``."""
    least, colon, greatest = text.partition(":")
    try:
        return {"min_nodes": integer(least), "max_nodes": integer(greatest if colon else least)}
    except ValueError:
        raise ValueError("must be NODES or MIN:MAX, such as 1 or 1:4") from None


def variable(text: str) -> dict[str, str]:
    """``NAME=VALUE`` as a dict with one item."""
    name, equals, value = text.partition("=")
    if not equals or not name or "\0" in text:
        raise ValueError("must be NAME=VALUE")
    return {name: value}


def stream(text: str) -> str:
    """The name of a stream: ``stdout`` or ``stderr``."""
    if text not in ("stdout", "stderr"):
        raise ValueError("must be stdout or stderr")
    return text


def identifier(text: str) -> str:
    """A name that can be assigned to."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ValueError("must be a name that can be assigned to")
    return text
