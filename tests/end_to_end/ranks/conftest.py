"""Real ranks, launched from the test's own process."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from icelaunch_nb.system.processes import Process

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    # The ranks import `jobs` by it, as they would a helper next to a notebook.
    sys.path.insert(0, str(HERE))


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory for the test's runs. At the end none of their processes may live."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    deadline = time.monotonic() + 30
    while (left := living(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"processes left behind: {left}"


def living(root: Path) -> list[Process]:
    """The agents and ranks of all runs below `root` that are alive."""
    return [
        process
        for journal in root.rglob("journal.jsonl")
        for process in named_in(journal)
        if process.alive()
    ]


def named_in(journal: Path) -> list[Process]:
    """Every process that a journal names."""
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    agents = [
        Process(event["pid"], event["started"]) for event in events if event["event"] == "agent"
    ]
    ranks = [
        Process(rank["pid"], rank["started"])
        for event in events
        if event["event"] == "attempt"
        for rank in event["ranks"]
    ]
    return agents + ranks


@pytest.fixture
def free_port() -> int:
    """A port that was free just now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
