"""What a panel can be asked for, and what is done about it: a line each.

A wish is a message from the front end, ``{"do": "stop", "id": …}``; what its deed returns goes back as the answer, beside ``ok``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from icelaunch_nb.moments import in_words
from icelaunch_nb.notebook import debugging
from icelaunch_nb.notebook.panel import searching

_STACK = 20_000  # characters of a rank's stacks
_QUERY = 500  # characters of what is looked for


@dataclass(frozen=True)
class Deed:
    """What is done about one kind of wish.

    Attributes:
        do: Does it, given the panel's `Service` and the wish; returns what the answer holds, ``says`` in words. An exception
            is an answer too.
        slow: What is said meanwhile, where it may take longer than a moment: it gets a thread of its own then.
    """

    do: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]
    slow: str = ""


def _acts(method: str, says: str) -> Deed:
    """A method of the run that returns at once."""

    def do(service: Any, _wish: Mapping[str, Any]) -> Mapping[str, Any]:
        getattr(service.panel.run, method)()
        return {"says": says}

    return Deed(do)


def _checkpoint(service: Any, _wish: Mapping[str, Any]) -> Mapping[str, Any]:
    run = service.panel.run
    run.save_checkpoint()
    return {
        "says": "asked; ranks save after Resume"
        if run.state == "PAUSED"
        else "asked; ranks save where they look at their events"
    }


def _replay(service: Any, wish: Mapping[str, Any]) -> Mapping[str, Any]:
    service.replay(int(wish["attempt"]) if "attempt" in wish else None)
    return {}


def _older(service: Any, wish: Mapping[str, Any]) -> Mapping[str, Any]:
    service.look_back(
        int(wish["attempt"]), int(wish["rank"]), [int(place) for place in wish["before"]]
    )
    return {}


def _stacks(service: Any, _wish: Mapping[str, Any]) -> Mapping[str, Any]:
    stacks = service.panel.run.stacks()
    silent = [rank for rank, text in stacks.items() if not text]
    says = f"no answer from {in_words(silent)}" if silent else f"{len(stacks)} ranks answered"
    return {
        "says": says,
        "stacks": [
            {"ranks": in_words(ranks), "text": text[-_STACK:]} for ranks, text in stacks.folded
        ],
    }


def _debug(service: Any, wish: Mapping[str, Any]) -> Mapping[str, Any]:
    debugging.tell(service.panel.run, int(wish["rank"]), str(wish["command"]))
    return {"says": "said"}


def _complete(service: Any, wish: Mapping[str, Any]) -> Mapping[str, Any]:
    found, start = debugging.complete(service.panel.run, int(wish["rank"]), str(wish["line"]))
    return {"says": f"{len(found)} found", "completions": found, "start": start}


def _code(service: Any, _wish: Mapping[str, Any]) -> Mapping[str, Any]:
    service.panel.send_code()
    return {}


def _search(service: Any, wish: Mapping[str, Any]) -> Mapping[str, Any]:
    attempts = service.panel.run.story.attempts
    found = searching.search(
        service.run_dir, attempts[int(wish["attempt"])], str(wish["text"])[:_QUERY] or " "
    )
    return {
        "lines": found.lines,
        "counts": {str(rank): count for rank, count in found.counts.items()},
        "whole": found.whole,
    }


DEEDS = {
    "code": Deed(_code),
    "hello": Deed(_replay),
    "attempt": Deed(_replay),
    "older": Deed(_older),
    "stop": _acts(
        "stop",
        "asked; loops over ctx.steps end together, other code gets SIGTERM; who is left after 30 s is killed",
    ),
    "kill": _acts("kill", "SIGKILL is on its way to the ranks"),
    "pause": _acts("pause", "asked; ranks pause where they look at their events"),
    "resume": _acts("resume", "asked; ranks go on"),
    "checkpoint": Deed(_checkpoint),
    "search": Deed(_search, slow="looking …"),
    "debug": Deed(_debug),
    "complete": Deed(
        _complete, slow="asking the rank …"
    ),  # a rank that makes a step doesn't answer
    "stacks": Deed(
        _stacks, slow="asking the ranks …"
    ),  # it waits up to 3 s for ranks that are slow to answer
}
