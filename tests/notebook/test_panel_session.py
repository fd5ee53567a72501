"""What is sent to a panel, from the directory of a run that is over: no kernel, no browser."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from icelaunch_nb import Events, LaunchConfig, Run
from icelaunch_nb.notebook.panel.service import Service
from icelaunch_nb.rundir import RunDir


class _Panel:
    """A panel that keeps what it is to send."""

    def __init__(self, run: Run) -> None:
        self.run, self.wishes, self.shown_again_at, self.seen = (
            run,
            deque[dict[str, Any]](),
            [],
            True,
        )
        self.sent: list[dict[str, Any]] = []

    def send(self, message, buffers=None):
        self.sent.append(message)

    def join_cell(self):
        pass

    def renew_displays(self, **_):
        pass


@pytest.fixture
def panel(tmp_path):
    """That of a run with three attempts of a rank each."""
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
    Events().move_to(run_dir.board)
    for number in range(3):
        run_dir.rank(number, 0).path.mkdir(parents=True)
    return _Panel(Run(tmp_path))


def _report(panel, attempt, step):
    with open(RunDir(Path(panel.run.log_dir)).rank(attempt, 0).metrics, "a") as file:
        file.write(json.dumps({"rank": 0, "step": step, "time": 1002.0, "loss": 1.0}) + "\n")


def _serve(service):
    """Until all is sent that there is."""
    while service.turn():
        time.sleep(0.01)


def _curves_of(panel):
    sent, panel.sent = panel.sent, []
    return {
        about["attempt"]
        for message in sent
        if message["kind"] == "curves"
        for about in message["curves"]
    }


def test_the_newest_attempts_metrics_go_on_while_older_ones_are_looked_at(panel):
    for attempt in range(3):
        _report(panel, attempt, 0)
    service = Service(panel)
    _serve(service)
    for attempt in (0, 1, 0):
        panel.wishes.append({"do": "attempt", "attempt": attempt})
        _serve(service)
    _curves_of(panel)
    _report(panel, 2, 1)
    _serve(service)
    assert 2 in _curves_of(panel)
