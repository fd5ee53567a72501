"""Makes text from other sources safe to show.

Characters that would control a terminal or reorder a line are shown as Python's escapes.
"""

from __future__ import annotations

import re
import time
from typing import Any

# Control characters (C0, DEL, C1), line separators, direction marks, and lone surrogates, which no
# encoding accepts. These are strings, so that importing this module compiles no pattern. `re`
# caches the compiled ones.
_UNSEEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_COLOR = r"\x1b\[[0-9;:]*m"


def one_line(text: object) -> str:
    r"""The text in one line: ``\x1b`` stands for an escape character, ``\n`` for a newline."""
    return re.sub(f"[{_UNSEEN}\t\n]", _escaped, str(text))


def in_lines(text: object) -> str:
    """The text with control characters escaped; newlines and tabs stay."""
    return re.sub(f"[{_UNSEEN}]", _escaped, str(text))


def in_colors(text: object) -> str:
    """As `in_lines`, but colours stay, since programs use them in their error messages."""
    return re.sub(
        f"({_COLOR})|[{_UNSEEN}]",
        lambda found: found[0] if found[1] else _escaped(found),
        str(text),
    )


def sendable(value: Any) -> Any:
    """The same JSON value with lone surrogates escaped, so that UTF-8 can encode it."""
    if isinstance(value, str):
        return value if value.isascii() else re.sub("[\ud800-\udfff]", _escaped, value)
    if isinstance(value, dict):
        return {sendable(key): sendable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [sendable(one) for one in value]
    return value


def as_of() -> str:
    """``as of 10:42:03``, the time of now.

    It goes with the state of something that goes on, since a saved text isn't updated.
    """
    return time.strftime("as of %H:%M:%S")


def exception_message(error: BaseException) -> str:
    """``str(error)``; where that raises, a note that says so."""
    try:
        return str(error)
    except Exception as worse:
        return f"<its __str__ raised {type(worse).__name__}>"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
