"""The figures of a warm launch: what is launched, what is read off it, and the bound it has to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.contender import Measurement, Unmeasured
from benchmarks.messages import Call

ALL = ("icelaunch_nb", "accelerate", "torch elastic", "torchrunx")
WITH_RESTARTS = ("icelaunch_nb", "accelerate", "torch elastic")
WITH_RESULTS = ("icelaunch_nb", "torch elastic", "torchrunx")
LINES = 20_000


@dataclass(frozen=True)
class Bound:
    """What icelaunch_nb's median must not exceed.

    Attributes:
        limit: Seconds, or a factor.
        of: Whose median the factor is of; empty: the limit is in seconds.
    """

    limit: float
    of: str = ""


@dataclass(frozen=True)
class Reading:
    """A figure that is read off a launch.

    Attributes:
        title: What the table calls it.
        of: The seconds.
        bound: What has to be kept; None: shown for comparison.
    """

    title: str
    of: Callable[[Measurement], float]
    bound: Bound | None = None


@dataclass(frozen=True)
class Figure:
    """A launch that is measured, side by side.

    Attributes:
        call: The launch.
        readings: What is read off it.
        contenders: Who can do it.
        fails: Whether it has to end in an exception.
    """

    call: Call
    readings: tuple[Reading, ...]
    contenders: tuple[str, ...]
    fails: bool = False


def _to_first_line(m: Measurement) -> float:
    return m.marks["first"][-1] - m.called


def _to_return(m: Measurement) -> float:
    return m.returned - m.called


def _to_return_per_rank(m: Measurement) -> float:
    return _to_return(m) / len(m.marks["first"])


def _crash_to_next_attempt(m: Measurement) -> float:
    return m.marks["attempt_1"][-1] - m.marks["crash"][0]


def _raise_to_exception(m: Measurement) -> float:
    return m.returned - m.marks["raised"][0]


def _return_to_in_hand(m: Measurement) -> float:
    return m.returned - m.marks["returned"][0]


def _to_return_with_all_lines(m: Measurement) -> float:
    if m.lines < LINES:
        raise Unmeasured(f"only {m.lines} of {LINES} lines were shown when the call returned")
    return _to_return(m)


FIGURES = (
    Figure(
        Call("first_line", ranks=2),
        (
            Reading(
                "warm launch → first line on all of 2 ranks",
                _to_first_line,
                Bound(1.5, "accelerate"),
            ),
            Reading(
                "warm launch → results of 2 ranks in hand", _to_return, Bound(0.6, "accelerate")
            ),
        ),
        ALL,
    ),
    Figure(
        Call("first_line", ranks=8),
        (
            Reading(
                "warm launch → first line on all of 8 ranks",
                _to_first_line,
                Bound(1.0, "accelerate"),
            ),
            Reading(
                "warm launch → results of 8 ranks in hand", _to_return, Bound(0.6, "accelerate")
            ),
        ),
        ALL,
    ),
    Figure(
        Call("first_line", ranks=64),
        (
            Reading(
                "warm launch → results of 64 ranks in hand, per rank",
                _to_return_per_rank,
                Bound(0.015),
            ),
        ),
        ("icelaunch_nb",),
    ),
    Figure(
        Call("crash_once", ("raise",), restarts=1),
        (
            Reading(
                "a rank of 2 raises → first line on all ranks of the next attempt",
                _crash_to_next_attempt,
                Bound(0.15),
            ),
        ),
        WITH_RESTARTS,
    ),
    Figure(
        Call("crash_once", ("SIGKILL",), restarts=1),
        (
            Reading(
                "a rank of 2 is killed → first line on all ranks of the next attempt",
                _crash_to_next_attempt,
                Bound(0.15),
            ),
        ),
        WITH_RESTARTS,
    ),
    Figure(
        Call("raise_beside_barrier"),
        (
            Reading(
                "a rank raises, the other waits in a gloo barrier → the caller has the exception",
                _raise_to_exception,
                Bound(1.0),
            ),
        ),
        ALL,
        fails=True,
    ),
    Figure(
        Call("many_lines", (LINES // 2,), shown=True),
        (
            Reading(
                f"2 ranks print {LINES:,} lines in all → the call returns, all of them shown",
                _to_return_with_all_lines,
            ),
        ),
        WITH_RESTARTS,
    ),
    Figure(  # the last: unpickling a tensor is what first brings torch into icelaunch_nb's kernel
        Call("big_tensor", (256,), ranks=1),
        (
            Reading(
                "a 256 MB tensor: the rank returns it → in hand", _return_to_in_hand, Bound(0.5)
            ),
            Reading("a 256 MB tensor: launch → made, returned, in hand", _to_return),
        ),
        WITH_RESULTS,
    ),
)
