"""Moments: flags that change are taken down once each, and what ranks tell too, however much of it there is."""

from __future__ import annotations

import json
import time

import pytest

from icelaunch_nb import moments
from icelaunch_nb.agent import timekeeper as module
from icelaunch_nb.agent.timekeeper import Timekeeper
from icelaunch_nb.events import CHECKPOINT_TIME_WORD, Events
from icelaunch_nb.journal import JournalWriter, read_journal
from icelaunch_nb.rundir import make_run_dir


@pytest.fixture
def run_dir(tmp_path):
    return make_run_dir(str(tmp_path), "r")


@pytest.fixture
def events(run_dir):
    events = Events()
    events.move_to(run_dir.board)
    return events


@pytest.fixture
def keeper(run_dir, events):
    keeper = Timekeeper(run_dir, JournalWriter(run_dir.journal))
    yield keeper
    keeper.stop()


def _told(run_dir):
    return [(event["kind"], event["text"]) for event in read_journal(run_dir.journal, 0)[0]]


def _changes(run_dir, events, *deeds):
    changes = module._changes(events, run_dir)
    assert next(changes) == []
    found = []
    for deed in deeds:
        deed()
        found.append([kind for kind, _ in next(changes)])
    return found


def test_a_pause_is_told_from_the_asking_to_the_going_on(run_dir, events):
    def resume():
        events.pause.clear()
        events.resume.set()

    deeds = events.pause.set, events.paused.set, resume, events.paused.clear, lambda: None
    assert _changes(run_dir, events, *deeds) == [["pause"], ["paused"], ["resume"], [], []]


def test_a_pause_by_code_that_only_sets_flags_is_told_as_well(run_dir, events):
    """As the seed's ranks do it: whoever paused clears its flags in an order of its own."""
    assert _changes(
        run_dir,
        events,
        events.pause.set,
        events.paused.set,
        events.resume.set,
        events.pause.clear,
        events.paused.clear,
    ) == [["pause"], ["paused"], ["resume"], [], []]


def test_a_checkpoint_is_told_once_whether_its_time_or_its_flag_is_seen_first(run_dir, events):
    def finished():
        events.words[CHECKPOINT_TIME_WORD] = int(time.time() * 1e6)

    deeds = (
        events.trigger_save_checkpoint.set,
        events.trigger_save_checkpoint.clear,
        finished,
        events.finished_save_checkpoint.set,
        finished,
    )
    assert _changes(run_dir, events, *deeds) == [["checkpoint"], [], ["saved"], [], ["saved"]]


def test_a_checkpoint_of_user_code_that_knows_only_the_flag(run_dir, events):
    deeds = (
        events.finished_save_checkpoint.set,
        events.finished_save_checkpoint.clear,
        events.finished_save_checkpoint.set,
    )
    assert _changes(run_dir, events, *deeds) == [["saved"], [], ["saved"]]


def test_the_checkpoint_that_a_rank_told_of_is_named_and_an_older_one_isnt(run_dir, events):
    run_dir.write_json(
        run_dir.checkpoint, {"path": "/data/step_7.pt", "time": 1000.0, "rank": 0, "step": 7}
    )
    changes = module._changes(events, run_dir)
    next(changes)
    events.words[CHECKPOINT_TIME_WORD] = int(1001e6)
    assert next(changes) == [("saved", "checkpoint saved: /data/step_7.pt, step 7")]
    events.words[CHECKPOINT_TIME_WORD] = int(1002e6)
    assert next(changes) == [("saved", "checkpoint saved")]


def test_what_was_set_last_is_still_told_at_the_end(run_dir, events, keeper):
    events.stop_all_tasks.set()
    keeper.stop()
    assert _told(run_dir) == [("stop", "asked to stop")]


def test_a_loop_that_sets_flags_all_day_doesnt_fill_the_disk(run_dir, keeper):
    for number in range(10_000):
        keeper.note("debugger", f"number {number}")
    assert len(_told(run_dir)) <= module._BURST + 1
    keeper._allowance = 1.0
    keeper.note("debugger", "the last")
    last = read_journal(run_dir.journal, 0)[0][-1]
    assert last["text"] == "the last"
    assert last["left_out"] + len(_told(run_dir)) - 1 == 10_000


def test_a_line_for_the_agent_says_what_was_told_and_nothing_else_passes():
    line = json.dumps(
        {
            "kind": "debugger",
            "text": "waits",
            "rank": 2,
            "cell": 5,
            "t": 1,
            "event": "end",
            "self": 0,
        }
    )
    assert moments.told(line) == {"kind": "debugger", "text": "waits", "rank": 2, "cell": 5}
    for wrong in ("", "{", "[]", "7", '{"kind": "x"}', '{"text": "x"}', '{"kind": 1, "text": "x"}'):
        assert moments.told(wrong) is None


def test_telling_never_waits_and_never_fails(run_dir, tmp_path):
    started = time.monotonic()
    assert moments.tell(run_dir, "debugger", "nobody reads") is False
    run_dir.control.unlink()
    assert moments.tell(run_dir, "debugger", "nobody is there") is False
    assert time.monotonic() - started < 1
    with pytest.raises(ValueError, match="at most 4096"):
        moments.tell(run_dir, "debugger", "x", more="x" * 5000)
