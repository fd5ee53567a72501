"""How a run has to end when one of its processes is killed at some moment."""

from __future__ import annotations

from dataclasses import dataclass

VICTIMS = ("kernel", "host", "forkserver", "agent", "one rank", "all ranks")
SIGNALS = ("KILL", "TERM", "STOP")  # CONT follows STOP after a second
MOMENTS = (
    "starting",
    "running",
    "in C",
    "collective",
    "restarting",
    "paused",
    "debugger",
    "stopping",
    "writing",
)
LIMIT = 5.0  # seconds until no process is left, or the run goes on
GRACE = 2.5  # seconds of grace of the stop at the moment "stopping"
COLD_START = 10.0  # seconds in which a forkserver imports torch on a busy machine


@dataclass(frozen=True)
class Promise:
    """How a run has to end.

    Attributes:
        states: The run ends in one of these states.
        words: What the journal says of the end, as a regular expression.
        seconds: The run ends within this time.
    """

    states: tuple[str, ...]
    words: str
    seconds: float


def promise(victim: str, signum: str, moment: str) -> Promise:
    """Returns how the run of one cell of the matrix has to end.

    Args:
        victim: One of `VICTIMS`.
        signum: One of `SIGNALS`.
        moment: One of `MOMENTS`.
    """
    stopping = moment == "stopping"
    seconds = LIMIT + GRACE * stopping
    if signum == "STOP":  # the run goes on as if nothing had happened
        cold = COLD_START * (moment == "starting")
        return Promise(("STOPPED",) if stopping else ("SUCCEEDED",), "", seconds + cold)
    name = f"SIG{signum}"
    or_stopped = "|it was asked to" * stopping
    match victim:
        case "kernel":
            return Promise(("STOPPED",), f"its kernel ended{or_stopped}", seconds)
        case "host" if moment == "starting":  # there is no agent yet that could stop the run
            return Promise(("LOST",), f"its host was killed by {name}", seconds)
        case "host":
            return Promise(("STOPPED",), f"its host was killed by {name}{or_stopped}", seconds)
        case "forkserver" if moment == "starting":  # another one starts, and the run goes on
            return Promise(("SUCCEEDED",), "", seconds + COLD_START)
        case "forkserver":
            return Promise(
                ("FAILED", "STOPPED") if stopping else ("FAILED",),
                f"forkserver.* was killed by {name}{or_stopped}",
                seconds,
            )
        case "agent" if signum == "KILL":
            return Promise(("LOST",), f"its agent was killed by {name}", seconds)
        case "agent":
            return Promise(("STOPPED",), f"its agent got {name}{or_stopped}", seconds)
        case _ if moment == "restarting":  # the agent ends the ranks anyway, and restarts them
            return Promise(("SUCCEEDED",), "", seconds)
        case _ if stopping:
            return Promise(("STOPPED",), "", seconds)
    return Promise(("FAILED",), f"killed by {name}", seconds)
