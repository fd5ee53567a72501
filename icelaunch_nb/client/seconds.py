"""Checks time spans that the methods of a run take."""

from __future__ import annotations

import math


def check_seconds(name: str, value: object, *, most: float = math.inf) -> None:
    """Refuses a value that is no time span.

    Args:
        name: The argument's name, for the message.
        value: The argument.
        most: The longest span, in seconds.

    Raises:
        ValueError: `value` isn't a number of seconds from 0 to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(
            f"{name}={value!r}: must be seconds, 0 or more"
            f"{'' if most == math.inf else f' and at most {most:,}'}"
        )
