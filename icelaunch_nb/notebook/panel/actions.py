"""The actions that a page can request from a panel.

A request is a message from the page: ``{"action": "stop", "id": …}``. The reply contains ``ok`` and
the fields that the action's handler returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from icelaunch_nb.client import debug_client
from icelaunch_nb.notebook.panel import log_search
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.timeline import format_ranks

# Characters of a rank's stacks that a reply contains. The last ones stay.
_MAX_STACK_LENGTH = 20_000
# Characters of a search query that are used.
_MAX_QUERY_LENGTH = 500

Request = Mapping[str, Any]
Reply = Mapping[str, Any]


class Session(Protocol):
    """The part of a `PanelSession` that actions use."""

    panel: Any
    run_dir: RunDir

    def replay(self, attempt: int | None = None) -> None:
        """Sends the last lines of an attempt once more, and its metrics."""

    def load_older(self, attempt: int, rank: int, before: list[int]) -> None:
        """Sends what a rank printed before the lines that a page holds."""

    def send_summary(self, data: Mapping[str, Any] | None) -> None:
        """Makes each page update the summary that its notebook holds."""


@dataclass(frozen=True)
class Action:
    """One kind of request.

    Attributes:
        handle: Carries out the request of a panel's session, and returns the reply's fields. The
            page shows ``text``. The message of an exception becomes the ``text``.
        pending: What the page shows until the reply comes. An action that has this text may be
            slow, so it runs in its own thread.
    """

    handle: Callable[[Session, Request], Reply]
    pending: str = ""


def _call_run(method: str, text: str) -> Action:
    """An action that calls a method of the run, which must return at once."""

    def handle(session: Session, _request: Request) -> Reply:
        getattr(session.panel.run, method)()
        return {"text": text}

    return Action(handle)


def _checkpoint(session: Session, _request: Request) -> Reply:
    run = session.panel.run
    run.save_checkpoint()
    paused = run.state == "PAUSED"
    when = "save after Resume" if paused else "save where they check their events"
    return {"text": f"asked; ranks {when}"}


def _show_attempt(session: Session, request: Request) -> Reply:
    session.replay(int(request["attempt"]))
    return {}


def _open_panel(session: Session, _request: Request) -> Reply:
    """Replays the run for a page that opens the panel.

    The page may have loaded a notebook that was saved before the run ended, so the summaries in it
    are updated as well.
    """
    session.send_summary(session.panel.update_live_outputs())
    session.replay()
    return {}


def _load_older(session: Session, request: Request) -> Reply:
    before = [int(offset) for offset in request["before"]]
    session.load_older(int(request["attempt"]), int(request["rank"]), before)
    return {}


def _load_code(session: Session, _request: Request) -> Reply:
    session.panel.send_code()
    return {}


def _stacks(session: Session, _request: Request) -> Reply:
    stacks = session.panel.run.stacks()
    silent = [rank for rank, text in stacks.items() if not text]
    answer = f"no answer from {format_ranks(silent)}" if silent else f"{len(stacks)} ranks answered"
    groups = [
        {"ranks": format_ranks(ranks), "text": text[-_MAX_STACK_LENGTH:]}
        for ranks, text in stacks.groups
    ]
    return {"text": answer, "stacks": groups}


def _debug(session: Session, request: Request) -> Reply:
    debug_client.send_command(session.panel.run, int(request["rank"]), str(request["command"]))
    return {"text": "sent"}


def _complete(session: Session, request: Request) -> Reply:
    rank, line = int(request["rank"]), str(request["line"])
    completions, start = debug_client.complete(session.panel.run, rank, line)
    return {"text": f"{len(completions)} found", "completions": completions, "start": start}


def _search(session: Session, request: Request) -> Reply:
    attempts = session.panel.run._run_state.attempts
    query = str(request["text"])[:_MAX_QUERY_LENGTH] or " "
    found = log_search.search(session.run_dir, attempts[int(request["attempt"])], query)
    counts = {str(rank): count for rank, count in found.counts.items()}
    return {"lines": found.lines, "counts": counts, "complete": found.complete}


_STOP_REPLY = (
    "asked; loops over ctx.steps end together, other code gets SIGTERM; "
    "who is left after 30 s is killed"
)

ACTIONS = {
    "load_code": Action(_load_code),
    "open": Action(_open_panel),
    "show_attempt": Action(_show_attempt),
    "load_older": Action(_load_older),
    "stop": _call_run("stop", _STOP_REPLY),
    "kill": _call_run("kill", "SIGKILL is on its way to the ranks"),
    "pause": _call_run("pause", "asked; ranks pause where they check their events"),
    "resume": _call_run("resume", "asked; ranks go on"),
    "checkpoint": Action(_checkpoint),
    "debug": Action(_debug),
    "search": Action(_search, pending="searching …"),
    # A rank that is executing a debugger command answers only after it.
    "complete": Action(_complete, pending="asking the rank …"),
    # `Run.stacks` waits up to 3 s for slow ranks.
    "stacks": Action(_stacks, pending="asking the ranks …"),
}
