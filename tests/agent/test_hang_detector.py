"""The hang detector, with real processes for the ranks."""

from __future__ import annotations

import fcntl
import subprocess
import time

import pytest

from icelaunch_nb.agent.event_recorder import EventRecorder
from icelaunch_nb.agent.hang_detector import HangDetector
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal import JournalWriter, read_events
from icelaunch_nb.rundir.journal_events import AttemptStarted, RankEntry, TimelineEvent
from icelaunch_nb.rundir.paths import make_run_dir
from icelaunch_nb.system.processes import Process


class Run:
    """A run of two ranks that sleep, and its detector."""

    def __init__(self, folder) -> None:
        self.dir = make_run_dir(str(folder), "r")
        self.board = Board()
        self.board.move_to(self.dir.board)
        self.recorder = EventRecorder(self.dir, self.board, JournalWriter(self.dir.journal))
        self.processes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
        self.attempt = AttemptStarted(
            attempt=0,
            world_size=2,
            ranks=[
                RankEntry(
                    rank=rank,
                    local_rank=rank,
                    pid=process.pid,
                    started=Process.of(process.pid).started,
                )
                for rank, process in enumerate(self.processes)
            ],
        )
        for rank in range(2):
            self.dir.rank(0, rank).path.mkdir(parents=True)
        self.detector = None

    def watch(self, after: float | None) -> None:
        self.detector = HangDetector(self.dir, self.board, self.recorder, after)
        self.detector.watch(self.attempt)

    def enter_debugger(self, rank: int) -> None:
        self.board.set("debugger_start")
        self.detector.handle_event(TimelineEvent(kind="debugger_start", text="x", rank=rank))

    def events(self, kind: str) -> list[TimelineEvent]:
        events, _ = read_events(self.dir.journal, 0)
        return [event for event in events if event.kind == kind]

    def wait_for(self, kind: str, number: int = 1) -> TimelineEvent:
        """The event of this kind and number, counted from 1, once it is recorded."""
        deadline = time.monotonic() + 60
        while len(found := self.events(kind)) < number:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return found[number - 1]

    def end(self) -> None:
        if self.detector is not None:
            self.detector.stop()
        self.recorder.stop()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    yield run
    run.end()


def test_silent_ranks_are_reported_once_until_one_of_them_prints(run):
    run.watch(0.2)
    silent = run.wait_for("silent")
    assert silent.ranks == [0, 1] and silent.text.startswith("ranks 0, 1 silent for ")
    assert run.events("recovered") == []
    run.dir.rank(0, 1).stdout.write_text("epoch 1\n")
    recovered = run.wait_for("recovered")
    assert (recovered.ranks, recovered.text) == ([1], "rank 1 no longer silent")
    assert run.wait_for("silent", 2).ranks == [1], "rank 0 was reported already"


def test_a_rank_that_is_gone_is_not_reported(run):
    run.processes[0].kill()
    run.processes[0].wait()
    run.watch(0.2)
    assert run.wait_for("silent").ranks == [1]


def test_nobody_is_silent_while_the_run_is_paused(run):
    run.board.set("paused")
    run.watch(0.001)
    for number in (1, 2, 3):  # each takes two polls
        run.enter_debugger(0)
        run.wait_for("debugger_end", number)
    assert run.events("silent") == []
    run.board.clear("paused")
    assert run.wait_for("silent").ranks == [0, 1]


def test_who_vanishes_from_the_debugger_is_out_of_it_and_who_holds_its_lock_is_not(run):
    with open(run.dir.rank(0, 0).debugger_lock, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run.watch(0.02)
        run.enter_debugger(0)
        run.enter_debugger(1)
        ended = run.wait_for("debugger_end")
        assert (ended.rank, ended.text) == (1, "left the debugger without a word")
        assert run.board.is_set("debugger_start"), "rank 0 is still there"
        assert run.events("silent") == []
    assert run.wait_for("debugger_end", 2).rank == 0
    assert not run.board.is_set("debugger_start") and run.board.is_set("debugger_end")


def test_without_a_limit_nobody_is_silent_but_the_debugger_is_watched(run):
    run.watch(None)
    run.enter_debugger(1)
    run.detector.handle_event(TimelineEvent(kind="debugger_end", text="x", rank=1))
    run.enter_debugger(0)
    assert run.wait_for("debugger_end").rank == 0
    run.detector.stop()
    assert len(run.events("debugger_end")) == 1 and run.events("silent") == []
