"""What the session and a contender's kernel say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One launch to be measured.

    Attributes:
        function: Name of a function in `ranks`. Its first argument is the folder for marks.
        args: Its further arguments.
        ranks: How many ranks run it.
        restarts: How often they may be restarted.
        shown: Whether what they print has to reach the caller's stdout.
    """

    function: str
    args: tuple[Any, ...] = ()
    ranks: int = 2
    restarts: int = 0
    shown: bool = False


@dataclass(frozen=True)
class Answer:
    """What the kernel saw of a launch.

    Attributes:
        called: When the launch was asked for.
        returned: When its results, or its exception, were in hand.
        error: Type and first line of the exception; empty where it returned.
        knows_torch: Whether torch is imported in the kernel afterwards.
    """

    called: float
    returned: float
    error: str
    knows_torch: bool
