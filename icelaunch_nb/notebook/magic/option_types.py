"""How the values of options are read: each from its text, or a ValueError that says what would be right."""

from __future__ import annotations

import keyword
import re
from typing import Any


def count(text: str) -> int:
    """An int; ``1_000`` and other spellings of Python's are not torchrun's."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
        raise ValueError("must be an int")
    return int(text)


def ranks(text: str) -> int | str:
    """A number of ranks, or ``auto``."""
    if text == "auto":
        return text
    try:
        return count(text)
    except ValueError:
        raise ValueError('must be an int, or "auto"') from None


def seconds(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def patience(text: str) -> float | None:
    """A number of seconds, or ``none``."""
    return None if text.lower() == "none" else seconds(text)


def pairs(text: str) -> dict[str, str]:
    """``a=b,c=d`` as a dict of texts."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise ValueError("must be NAME=VALUE,NAME=VALUE…")
    return {name.strip(): value.strip() for name, _, value in pairs}


def literals(text: str) -> dict[str, Any]:
    """``a=1,b=true,c=x`` as a dict of what the texts look like."""
    return {name: _literal(value) for name, value in pairs(text).items()}


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (count, seconds):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def nodes(text: str) -> dict[str, int]:
    """``2`` or ``1:4`` as the two fields that it sets."""
    least, colon, greatest = text.partition(":")
    try:
        return {"min_nodes": count(least), "max_nodes": count(greatest if colon else least)}
    except ValueError:
        raise ValueError("must be NODES or MIN:MAX, such as 1 or 1:4") from None


def variable(text: str) -> dict[str, str]:
    """``NAME=VALUE`` as a dict of one."""
    name, equals, value = text.partition("=")
    if not equals or not name or "\0" in text:
        raise ValueError("must be NAME=VALUE")
    return {name: value}


def stream(text: str) -> str:
    """The name of a stream."""
    if text not in ("stdout", "stderr"):
        raise ValueError("must be stdout or stderr")
    return text


def identifier(text: str) -> str:
    """A name that the notebook can bind."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ValueError("must be a name that can be assigned to")
    return text
