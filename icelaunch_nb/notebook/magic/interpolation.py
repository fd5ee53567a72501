"""Replaces ``{expr}`` and ``$name`` on an option line by the notebook's values.

IPython's rules apply, but each value keeps its spaces and quotes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.errors import ConfigError
from icelaunch_nb.notebook.magic import options as opt


def interpolate(line: str, namespace: Mapping[str, Any]) -> str:
    """Replaces the expressions of an option line by their values.

    A value stays within its word. A value that begins with ``-`` is split into options if it is a
    whole word and stands where an option may begin: ``%%icelaunch {usual} --out results``.

    Args:
        line: What follows ``%%icelaunch``.
        namespace: The notebook's names.

    Returns:
        The line, quoted for `options.split_words`.

    Raises:
        ConfigError: A value can't be evaluated, or a quotation mark is open.
    """
    mark = next(char for char in map(chr, range(0xE000, 0xF8FF)) if char not in line)
    text, values = _with_marks(line, mark, namespace)
    try:
        before = opt.split_words(text)
    except ConfigError as error:
        raise ConfigError("options", line, error.remedy) from None
    words: list[str] = []
    for word in before:
        alone = re.fullmatch(f"{mark}([0-9]+){mark}", word)
        if (
            alone
            and values[int(alone[1])].startswith("-")
            and not (words and opt.needs_value(words[-1]))
        ):
            words += opt.split_words(values[int(alone[1])])
        else:
            words.append(re.sub(f"{mark}([0-9]+){mark}", lambda found: values[int(found[1])], word))
    return shlex.join(words)


def _with_marks(line: str, mark: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Replaces each expression by its number between two marks.

    Returns:
        The line with the numbers, and the expressions' values.
    """
    from IPython.utils.text import DollarFormatter

    values: list[str] = []

    class Marking(DollarFormatter):
        def format_field(self, value: Any, format_spec: str) -> str:
            values.append(str(super().format_field(value, format_spec)))
            return f"{mark}{len(values) - 1}{mark}"

    try:
        return Marking().vformat(line, args=[], kwargs=dict(namespace)), values
    except Exception as error:
        reason = (
            f"{type(error).__name__}: {error}; "
            "{expr} and $name are the notebook's, {{, }} and $$ stand for themselves"
        )
        raise ConfigError("options", line, reason) from None
