"""The messages of a panel's session for a run that is over, without kernel and browser."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from icelaunch_nb import LaunchConfig, Run
from icelaunch_nb.notebook.panel.session import Clicked, PanelSession
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.paths import RunDir


class _Panel:
    """A panel that records its messages."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sent: list[dict[str, Any]] = []

    def send(self, message, buffers=None):
        self.sent.append(message)

    def update_displays(self, **_):
        pass


@pytest.fixture
def panel(tmp_path):
    """The panel of a run with three attempts of one rank."""
    run_dir = RunDir(tmp_path)
    config = LaunchConfig(1, 1, 1, run_id="r1", max_restarts=2)
    run_dir.spec.write_text(
        json.dumps(
            {
                "run_id": "r1",
                "name": "train",
                "time": 1000.0,
                "config": config.to_json(),
                "program": [],
                "devices": ["cpu"],
            }
        )
    )
    ranks = [{"rank": 0, "local_rank": 0, "pid": 10, "started": 1.0, "device": "cpu"}]
    run_dir.journal.write_text(
        "".join(
            json.dumps(
                {
                    "t": 1001.0,
                    "event": "attempt",
                    "attempt": number,
                    "restart_count": number,
                    "world_size": 1,
                    "ranks": ranks,
                }
            )
            + "\n"
            for number in range(3)
        )
    )
    Board().move_to(run_dir.board)
    for number in range(3):
        run_dir.rank(number, 0).path.mkdir(parents=True)
    return _Panel(Run(tmp_path))


def _report(panel, attempt, step):
    with open(RunDir(Path(panel.run.log_dir)).rank(attempt, 0).metrics, "a") as file:
        file.write(json.dumps({"rank": 0, "step": step, "time": 1002.0, "loss": 1.0}) + "\n")


def _serve(session, *requests):
    """Serves until all requests are answered and everything is sent."""
    for request in requests:
        session.post(Clicked(request))
    while session.serve():
        time.sleep(0.01)


def _attempts_of_metrics(panel):
    sent, panel.sent = panel.sent, []
    return {
        update["attempt"]
        for message in sent
        if message["kind"] == "metrics"
        for update in message["metrics"]
    }


def test_the_newest_attempts_metrics_continue_while_an_older_attempt_is_shown(panel):
    for attempt in range(3):
        _report(panel, attempt, 0)
    session = PanelSession(panel)
    _serve(session)
    for attempt in (0, 1, 0):
        _serve(session, {"action": "show_attempt", "attempt": attempt})
    _attempts_of_metrics(panel)
    _report(panel, 2, 1)
    _serve(session)
    assert 2 in _attempts_of_metrics(panel)


def _replies(panel):
    sent, panel.sent = panel.sent, []
    return [message for message in sent if message["kind"] == "reply"]


def test_a_malformed_message_is_ignored_and_a_bad_request_gets_an_error(panel):
    session = PanelSession(panel)
    shapes = [
        None,
        1,
        True,
        "stop",
        [],
        ["stop"],
        [{"action": "stop"}],
        {},
        {"action": None},
        {"action": ["stop"]},
        {"action": {"action": "stop"}},
        {"action": "no such thing"},
    ]
    _serve(session, *shapes)
    assert _replies(panel) == [] and not panel.run.events.stop_all_tasks.is_set()
    bad = [
        {"action": "show_attempt", "attempt": "x"},
        {"action": "show_attempt", "attempt": None},
        {"action": "show_attempt", "attempt": float("inf")},
        {"action": "load_older"},
        {"action": "load_older", "attempt": 0, "rank": 0, "before": 7},
        {"action": "load_older", "attempt": 0, "rank": 0, "before": [[]]},
        {"action": "search", "attempt": 10**30, "text": "x"},
        {"action": "search"},
        {"action": "debug", "rank": [], "command": 1},
        {"action": "complete", "rank": {}},
    ]
    _serve(session, *bad)
    assert [reply["ok"] for reply in _replies(panel)] == [False] * len(bad)
    odd = [
        {"action": "show_attempt", "attempt": -5},
        {"action": "show_attempt", "attempt": 10**30},
        {"action": "load_older", "attempt": 7, "rank": -1, "before": []},
        {"action": "load_older", "attempt": 0, "rank": 0, "before": [10**30, -4, 1]},
        {"action": "search", "attempt": 0, "text": ["\ud800"]},
    ]
    marks = ["one", 2, {"a": 1}, float("nan"), "\ud800"]
    _serve(session, *({**request, "id": mark} for request, mark in zip(odd, marks, strict=True)))
    assert sorted((reply["id"] for reply in _replies(panel)), key=str) == [
        2,
        None,
        None,
        "\\ud800",
        "one",
    ]
    json.dumps(panel.sent, allow_nan=False, ensure_ascii=False).encode()


def test_saved_outputs_are_updated_before_the_end_is_shown(panel, monkeypatch):
    """A page that saves as soon as it shows the end then saves the end."""
    done: list[str] = []
    monkeypatch.setattr(
        panel, "update_displays", lambda **_: done.append("renewed") or {"text/html": "the end"}
    )
    type(panel).run_state = property(
        lambda self: None, lambda self, state: done.append(state["state"])
    )
    try:
        _serve(PanelSession(panel))
    finally:
        del type(panel).run_state
    assert done == ["renewed", "LOST"]
    assert {"kind": "summary", "data": {"text/html": "the end"}} in panel.sent
