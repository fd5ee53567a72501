"""The notebook's values on an option line: ``{expr}`` and ``$name``, by IPython's own rules, but each value as it is, spaces and quotes too."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.errors import ConfigError
from icelaunch_nb.notebook.magic import options as opt


def expand(line: str, namespace: Mapping[str, Any]) -> str:
    """The line with the values in it, quoted as `options.split` reads it.

    A value stays in the word that it stands in. Only one that is a word by itself where an option may begin, and looks like options,
    is read as those: ``%%icelaunch {usual} --out results``.

    Raises:
        ConfigError: A value can't be had, or a quotation mark is open.
    """
    mark = next(char for char in map(chr, range(0xE000, 0xF8FF)) if char not in line)
    text, values = _with_marks(line, mark, namespace)
    try:
        before = opt.split(text)
    except ConfigError as error:
        raise ConfigError("options", line, error.remedy) from None
    words: list[str] = []
    for word in before:
        alone = re.fullmatch(f"{mark}([0-9]+){mark}", word)
        if (
            alone
            and values[int(alone[1])].startswith("-")
            and not (words and opt.needs_a_value(words[-1]))
        ):
            words += opt.split(values[int(alone[1])])
        else:
            words.append(re.sub(f"{mark}([0-9]+){mark}", lambda found: values[int(found[1])], word))
    return shlex.join(words)


def _with_marks(line: str, mark: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The line with each value's number between marks in its place, and the values."""
    from IPython.utils.text import DollarFormatter

    values: list[str] = []

    class Marking(DollarFormatter):
        def format_field(self, value: Any, format_spec: str) -> str:
            values.append(str(super().format_field(value, format_spec)))
            return f"{mark}{len(values) - 1}{mark}"

    try:
        return Marking().vformat(line, args=[], kwargs=dict(namespace)), values
    except Exception as error:
        said = f"{type(error).__name__}: {error}; {{expr}} and $name are the notebook's, {{{{, }}}} and $$ stand for themselves"
        raise ConfigError("options", line, said) from None
