"""The timeline: each change of a flag is recorded once, and so is what ranks send."""

from __future__ import annotations

import time

import pytest

from icelaunch_nb.agent import event_recorder as module
from icelaunch_nb.agent.event_recorder import EventRecorder
from icelaunch_nb.rundir import timeline
from icelaunch_nb.rundir.events_board import CHECKPOINT_TIME_WORD, Board
from icelaunch_nb.rundir.journal import JournalWriter, read_events
from icelaunch_nb.rundir.paths import make_run_dir


@pytest.fixture
def run_dir(tmp_path):
    return make_run_dir(str(tmp_path), "r")


@pytest.fixture
def board(run_dir):
    board = Board()
    board.move_to(run_dir.board)
    return board


@pytest.fixture
def recorder(run_dir, board):
    recorder = EventRecorder(run_dir, board, JournalWriter(run_dir.journal))
    yield recorder
    recorder.stop()


def _recorded(run_dir):
    return [(event.kind, event.text) for event in read_events(run_dir.journal, 0)[0]]


def set(name):
    return lambda board: board.set(name)


def clear(name):
    return lambda board: board.clear(name)


def _changes(run_dir, board, *actions):
    changes = module._changes(board, run_dir)
    assert next(changes) == []
    found = []
    for action in actions:
        action(board)
        found.append([kind for kind, _ in next(changes)])
    return found


def test_a_pause_is_recorded_from_its_request_to_its_end(run_dir, board):
    def resume(board):
        board.clear("pause")
        board.set("resume")

    actions = set("pause"), set("paused"), resume, clear("paused"), lambda board: None
    assert _changes(run_dir, board, *actions) == [["pause"], ["paused"], ["resume"], [], []]


def test_a_pause_by_code_that_only_sets_flags_is_recorded_too(run_dir, board):
    """The seed's ranks clear their flags in another order."""
    actions = set("pause"), set("paused"), set("resume"), clear("pause"), clear("paused")
    assert _changes(run_dir, board, *actions) == [["pause"], ["paused"], ["resume"], [], []]


def test_a_checkpoint_is_recorded_once_whether_its_time_or_its_flag_is_seen_first(run_dir, board):
    def finished(board):
        board.words[CHECKPOINT_TIME_WORD] = int(time.time() * 1e6)

    actions = (
        set("trigger_save_checkpoint"),
        clear("trigger_save_checkpoint"),
        finished,
        set("finished_save_checkpoint"),
        finished,
    )
    assert _changes(run_dir, board, *actions) == [["checkpoint"], [], ["saved"], [], ["saved"]]


def test_a_checkpoint_of_user_code_that_sets_only_the_flag_is_recorded(run_dir, board):
    actions = (
        set("finished_save_checkpoint"),
        clear("finished_save_checkpoint"),
        set("finished_save_checkpoint"),
    )
    assert _changes(run_dir, board, *actions) == [["saved"], [], ["saved"]]


def test_a_checkpoint_that_a_rank_reported_is_named_and_an_older_one_isnt(run_dir, board):
    run_dir.write_json(
        run_dir.checkpoint, {"path": "/data/step_7.pt", "time": 1000.0, "rank": 0, "step": 7}
    )
    changes = module._changes(board, run_dir)
    next(changes)
    board.words[CHECKPOINT_TIME_WORD] = int(1001e6)
    assert next(changes) == [("saved", "checkpoint saved: /data/step_7.pt, step 7")]
    board.words[CHECKPOINT_TIME_WORD] = int(1002e6)
    assert next(changes) == [("saved", "checkpoint saved")]


def test_a_flag_that_is_set_just_before_the_end_is_recorded(run_dir, board, recorder):
    board.set("stop_all_tasks")
    recorder.stop()
    assert _recorded(run_dir) == [("stop", "asked to stop")]


def test_flags_are_recorded_while_the_run_goes_on(run_dir, board, recorder):
    expected = []
    for flag, event in (("pause", ("pause", "asked to pause")), ("paused", ("paused", "paused"))):
        board.set(flag)
        expected.append(event)
        deadline = time.monotonic() + 20
        while _recorded(run_dir) != expected:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_ten_thousand_events_dont_fill_the_disk(run_dir, recorder):
    for number in range(10_000):
        recorder.record("debugger", f"number {number}")
    assert len(_recorded(run_dir)) <= module._BURST + 1
    recorder._allowance = 1.0
    recorder.record("debugger", "the last")
    last = read_events(run_dir.journal, 0)[0][-1]
    assert last.text == "the last"
    assert last.left_out + len(_recorded(run_dir)) - 1 == 10_000


def test_sending_never_waits_and_never_fails(run_dir):
    assert timeline.send(run_dir, "debugger", "nobody reads") is False
    run_dir.control.unlink()
    assert timeline.send(run_dir, "debugger", "nobody is there") is False
    with pytest.raises(ValueError, match="at most 4096"):
        timeline.send(run_dir, "debugger", "x", where="x" * 5000)
