"""The figures of a warm launch: what is launched, which times count, and their bounds."""

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
        limit: Seconds, or a factor of another median.
        relative_to: The contender whose median the factor applies to. If empty, `limit` is in
            seconds.
    """

    limit: float
    relative_to: str = ""


@dataclass(frozen=True)
class Timing:
    """A time that is computed from the measurement of a launch.

    Attributes:
        title: What the table calls it.
        seconds: Computes the time, in seconds.
        bound: What has to be kept. None if the time is shown only for comparison.
    """

    title: str
    seconds: Callable[[Measurement], float]
    bound: Bound | None = None


@dataclass(frozen=True)
class Figure:
    """A launch that is measured for several contenders in turn.

    Attributes:
        call: The launch.
        timings: The times that are computed from each measurement.
        contenders: The names of the contenders that can do it.
        fails: Whether the launch has to end in an exception.
    """

    call: Call
    timings: tuple[Timing, ...]
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
            Timing(
                "warm launch → first line on all of 2 ranks",
                _to_first_line,
                Bound(1.5, "accelerate"),
            ),
            Timing(
                "warm launch → results of 2 ranks in hand", _to_return, Bound(0.6, "accelerate")
            ),
        ),
        ALL,
    ),
    Figure(
        Call("first_line", ranks=8),
        (
            Timing(
                "warm launch → first line on all of 8 ranks",
                _to_first_line,
                Bound(1.0, "accelerate"),
            ),
            Timing(
                "warm launch → results of 8 ranks in hand", _to_return, Bound(0.6, "accelerate")
            ),
        ),
        ALL,
    ),
    Figure(
        Call("first_line", ranks=64),
        (
            Timing(
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
            Timing(
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
            Timing(
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
            Timing(
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
            Timing(
                f"2 ranks print {LINES:,} lines in all → the call returns, all of them shown",
                _to_return_with_all_lines,
            ),
        ),
        WITH_RESTARTS,
    ),
    # The last figure, because unpickling a tensor imports torch in icelaunch_nb's kernel.
    Figure(
        Call("big_tensor", (256,), ranks=1),
        (
            Timing(
                "a 256 MB tensor: the rank returns it → in hand", _return_to_in_hand, Bound(0.5)
            ),
            Timing("a 256 MB tensor: launch → made, returned, in hand", _to_return),
        ),
        WITH_RESULTS,
    ),
)
