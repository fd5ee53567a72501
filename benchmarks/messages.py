"""The messages between the session and a contender's kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One launch to be measured.

    Attributes:
        function: Name of a function in `ranks`. Its first argument is the folder for marks.
        args: The function's further arguments.
        ranks: How many ranks run the function.
        restarts: How often the ranks may be restarted.
        shown: Whether what the ranks print has to reach the caller's stdout.
    """

    function: str
    args: tuple[Any, ...] = ()
    ranks: int = 2
    restarts: int = 0
    shown: bool = False


@dataclass(frozen=True)
class Answer:
    """What the kernel measured of a launch.

    Attributes:
        called: When the launch was called, in seconds since the epoch.
        returned: When it returned its results or raised its exception, in seconds since the epoch.
        error: Type and first line of the exception. Empty if the launch returned.
        torch_imported: Whether torch is imported in the kernel afterwards.
    """

    called: float
    returned: float
    error: str
    torch_imported: bool
