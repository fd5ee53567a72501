"""What is promised when a process of a run is killed at some moment of its life."""

from __future__ import annotations

from dataclasses import dataclass

VICTIMS = ("kernel", "host", "forkserver", "agent", "one rank", "all ranks")
SIGNALS = ("KILL", "TERM", "STOP")  # STOP: for a second, then CONT
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
LIMIT = 5.0  # seconds until nothing is left, or the run goes on
GRACE = 2.5  # that the stop of the moment "stopping" gives
COLD_START = 10.0  # that a forkserver takes to import torch on a busy machine


@dataclass(frozen=True)
class Promise:
    """How a run ends.

    Attributes:
        states: One of these.
        words: What the journal says of the end, as a regular expression.
        seconds: Within this time.
    """

    states: tuple[str, ...]
    words: str
    seconds: float


def promise(victim: str, signum: str, moment: str) -> Promise:
    """For one cell of the matrix."""
    stopping = moment == "stopping"
    seconds = LIMIT + GRACE * stopping
    if signum == "STOP":  # nothing comes of it
        return Promise(("STOPPED",) if stopping else ("SUCCEEDED",), "", seconds)
    name = f"SIG{signum}"
    asked = "|it was asked to" * stopping
    match victim:
        case "kernel":
            return Promise(("STOPPED",), f"its kernel ended{asked}", seconds)
        case "host" if moment == "starting":  # it has no agent yet, who could stop it
            return Promise(("LOST",), f"its host was killed by {name}", seconds)
        case "host":
            return Promise(("STOPPED",), f"its host was killed by {name}{asked}", seconds)
        case "forkserver" if moment == "starting":  # another one imports torch, and the run goes on
            return Promise(("SUCCEEDED",), "", seconds + COLD_START)
        case "forkserver":
            return Promise(
                ("FAILED", "STOPPED") if stopping else ("FAILED",),
                f"forkserver.* was killed by {name}{asked}",
                seconds,
            )
        case "agent" if signum == "KILL":
            return Promise(("LOST",), f"its agent was killed by {name}", seconds)
        case "agent":
            return Promise(("STOPPED",), f"its agent got {name}{asked}", seconds)
        case _ if (
            moment == "restarting"
        ):  # it is about to be ended anyway, and the next attempt comes
            return Promise(("SUCCEEDED",), "", seconds)
        case _ if stopping:
            return Promise(("STOPPED",), "", seconds)
    return Promise(("FAILED",), f"killed by {name}", seconds)
