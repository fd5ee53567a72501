"""The events board, seen by two processes."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cloudpickle
import pytest

from icelaunch_nb import Events
from icelaunch_nb.rundir import step_board
from icelaunch_nb.rundir.events_board import (
    BARS_WORD,
    CHECKPOINT_TIME_WORD,
    COUNTERS,
    DEPTH_WORD,
    FLAGS,
)
from icelaunch_nb.rundir.paths import RunDir

NAMES = (
    "pause",
    "paused",
    "resume",
    "stop_all_tasks",
    "trigger_save_checkpoint",
    "finished_save_checkpoint",
    "debugger_start",
    "debugger_end",
)

# Evaluates each line of its stdin, a Python expression about the board, and prints its repr.
OTHER_PROCESS = """
import sys
from icelaunch_nb import Events
events = Events(sys.argv[1])
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


@pytest.fixture
def board(tmp_path) -> Events:
    events = Events()
    events._board.move_to(tmp_path / "events.board")
    return events


class OtherProcess:
    """A second process that evaluates expressions about the same board."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, expression: str) -> None:
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def value(self):
        return eval(self.process.stdout.readline())

    def evaluate(self, expression: str):
        self.start(expression)
        return self.value()


@pytest.fixture
def other(board):
    other = OtherProcess(board._board.path)
    yield other
    other.process.stdin.close()
    other.process.wait(20)
    other.process.stdout.close()


def test_the_names_are_those_of_ice_learns_events():
    assert FLAGS == NAMES
    assert COUNTERS == ("progress_bar_iter", "progress_bar_total")


def test_a_fresh_board_has_nothing_set():
    events = Events()
    assert not any(getattr(events, name).is_set() for name in NAMES)
    assert events.progress_bar_iter.value == events.progress_bar_total.value == 0
    assert repr(events) == "<Events nothing set, progress 0/0>"


def test_flags_and_counters_do_not_touch_each_other():
    events = Events()
    for name in NAMES:
        getattr(events, name).set()
        assert [n for n in NAMES if getattr(events, n).is_set()] == [name]
        getattr(events, name).clear()
    events.progress_bar_iter.value = -1
    assert events.progress_bar_total.value == 0 and not any(
        getattr(events, n).is_set() for n in NAMES
    )


def test_two_processes_see_each_others_flags_and_counters(board, other):
    for name in NAMES:
        getattr(board, name).set()
        assert other.evaluate(f"events.{name}.is_set()") is True
        other.evaluate(f"events.{name}.clear()")
        assert not getattr(board, name).is_set()
    other.evaluate("setattr(events.progress_bar_total, 'value', 2**62)")
    board.progress_bar_iter.value = 41
    assert board.progress_bar_total.value == 2**62
    assert other.evaluate("events.progress_bar_iter.value") == 41


def test_waiting_ends_when_the_other_process_sets_the_flag(board, other):
    other.start("events.pause.wait(30)")
    board.pause.set()
    assert other.value() is True
    other.start("events.paused.set()")
    assert board.paused.wait(30) is True


def test_waiting_ends_with_the_timeout():
    started = time.monotonic()
    assert Events().pause.wait(0.05) is False
    assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_of_zero_or_less_does_not_wait(timeout):
    events = Events()
    assert events.pause.wait(timeout) is False
    events.pause.set()
    assert events.pause.wait(timeout) is True


def test_waiting_without_timeout_in_a_thread_ends_with_the_flag():
    events = Events()
    waiter = threading.Thread(target=events.resume.wait, daemon=True)
    waiter.start()
    events.resume.set()
    waiter.join(10)
    assert not waiter.is_alive()


def test_a_board_that_moves_to_a_run_keeps_what_was_set(tmp_path):
    events = Events()
    events.pause.set()
    events.progress_bar_total.value = 7
    flag = events.pause
    events._board.move_to(tmp_path / "b")
    seen = Events(tmp_path / "b")
    assert seen.pause.is_set() and seen.progress_bar_total.value == 7
    flag.clear()  # a flag from before the move still belongs to the board
    assert not seen.pause.is_set()


def test_a_thread_that_waits_sees_a_flag_set_after_the_move(tmp_path):
    events = Events()
    waiter = threading.Thread(target=events.resume.wait, daemon=True)
    waiter.start()
    events._board.move_to(tmp_path / "b")
    Events(tmp_path / "b").resume.set()
    waiter.join(10)
    assert not waiter.is_alive()


def test_a_resume_from_before_the_run_resumes_none_of_its_pauses(tmp_path):
    events = Events()
    for number in range(2):
        events.resume.set()
        events._board.move_to(tmp_path / f"{number}")
        assert not events.resume.is_set()
    events.pause.set()
    events.resume.set()
    events._board.move_to(tmp_path / "2")
    assert (
        events.pause.is_set() and events.resume.is_set()
    )  # a pause that was resumed before the run began


def test_moving_to_where_it_is_changes_nothing(board):
    board.pause.set()
    board._board.move_to(board._board.path)
    assert board.pause.is_set()


def test_moving_never_overwrites_what_is_there(tmp_path):
    (tmp_path / "b").write_text("somebody's")
    with pytest.raises(FileExistsError):
        Events()._board.move_to(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "somebody's"


def test_only_its_owner_may_read_the_file(tmp_path):
    before = os.umask(0)
    try:
        Events()._board.move_to(tmp_path / "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600


# A second run with the same board.


def test_a_second_run_shares_the_board(board, tmp_path):
    board._board.move_to(tmp_path / "second")
    Events(tmp_path / "second").pause.set()
    assert board.pause.is_set()


def test_a_second_run_shares_the_board_after_the_first_ones_directory_was_removed(board, tmp_path):
    board.pause.set()
    board._board.path.unlink()
    board._board.move_to(tmp_path / "second")
    second = Events(tmp_path / "second")
    assert second.pause.is_set()
    second.resume.set()
    assert board.resume.is_set()


def test_a_second_run_may_be_on_another_file_system(board):
    if (
        not os.path.isdir("/dev/shm")
        or os.stat("/dev/shm").st_dev == os.stat(board._board.path).st_dev
    ):
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        board.pause.set()
        board._board.move_to(Path(folder) / "second")
        assert Events(Path(folder) / "second").pause.is_set()


# Pickles.


def test_a_pickled_or_copied_board_is_the_same_board(board):
    for again in (
        pickle.loads(pickle.dumps(board)),
        cloudpickle.loads(cloudpickle.dumps(board)),
        copy.copy(board),
    ):
        board.pause.set()
        assert again.pause.is_set()
        again.pause.clear()
        assert not board.pause.is_set()


def test_a_board_without_a_run_cant_be_pickled_and_the_error_says_what_to_do():
    with pytest.raises(TypeError, match=r"give them to launch\(events=…\)"):
        pickle.dumps(Events())


def test_the_board_of_a_run_is_found_by_its_directory(board):
    board.pause.set()
    assert Events.of_run(board._board.path.parent).pause.is_set()


# Hostile files.


def test_a_missing_board_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Events(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"iceboard", b"x" * 4096, b"\0" * 8192],
    ids=["empty", "torn", "another file", "too long"],
)
def test_a_file_that_is_no_board_is_refused_and_left_as_it_was(content, tmp_path):
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(ValueError, match="is no events board"):
        Events(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_a_counter_holds_whole_numbers_only():
    events = Events()
    events.progress_bar_iter.value = 3.9
    assert events.progress_bar_iter.value == 3
    with pytest.raises((ValueError, TypeError)):
        events.progress_bar_iter.value = "many"
    assert events.progress_bar_iter.value == 3


def test_boards_leave_no_descriptors_behind(tmp_path):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        events = Events()
        events._board.move_to(tmp_path / str(number))
        del events
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# What `steps` adds to the board.


def test_the_first_bar_is_the_pair_of_public_counters():
    events = Events()
    assert events._board.bars == [(0, 0)]
    events.progress_bar_iter.value, events.progress_bar_total.value = 3, 9
    assert events._board.bars == [(3, 9)]


def test_a_board_shows_as_many_bars_as_there_are_nested_loops(board):
    (
        board._board.words[BARS_WORD + 2],
        board._board.words[BARS_WORD + 3],
        board._board.words[DEPTH_WORD],
    ) = 4, 5, 2
    assert Events(board._board.path)._board.bars == [(0, 0), (4, 5)]
    board._board.words[DEPTH_WORD] = 10**6
    assert len(board._board.bars) == 8


def test_a_stop_and_a_pause_of_one_run_do_not_reach_the_next(board, tmp_path):
    board.stop_all_tasks.set()
    board.paused.set()
    board.progress_bar_iter.value = 3
    board._board.move_to(tmp_path / "second")
    assert not board.stop_all_tasks.is_set() and not board.paused.is_set()
    assert board.progress_bar_iter.value == 3


def test_a_stop_that_was_set_before_the_first_launch_stays(tmp_path):
    events = Events()
    events.stop_all_tasks.set()
    events._board.move_to(tmp_path / "b")
    assert Events(tmp_path / "b").stop_all_tasks.is_set()


def test_a_rank_that_checks_for_a_stop_registers_on_the_step_board(board, monkeypatch):
    run_dir = RunDir(board._board.path.parent)
    run_dir.attempt(1).mkdir()
    for name, value in (
        ("ICELAUNCH_RUN_DIR", str(run_dir.path)),
        ("ICELAUNCH_ATTEMPT", "1"),
        ("LOCAL_RANK", "3"),
    ):
        monkeypatch.setenv(name, value)
    board.pause.is_set()
    Events().stop_all_tasks.is_set()
    assert step_board.listening_ranks(run_dir.steps(1)) == set(), (
        "neither another flag nor another run's"
    )
    assert board.stop_all_tasks.wait(0) is False
    assert step_board.listening_ranks(run_dir.steps(1)) == {3}


def test_a_lock_that_is_never_released_blocks_nobody_for_ever(board):
    with board._board.locked():
        started = time.monotonic()
        with Events(board._board.path)._board.locked(timeout=0.05):
            assert time.monotonic() - started >= 0.05
    with board._board.locked(timeout=60):
        pass


def test_the_time_of_a_checkpoint_is_read_from_the_board():
    events = Events()
    assert events._board.checkpoint_finished is None
    events._board.words[CHECKPOINT_TIME_WORD] = 1_700_000_000_250_000
    assert events._board.checkpoint_finished == 1_700_000_000.25


def test_a_counter_is_never_seen_half_written(board, other):
    """struct.pack_into clears the bytes before it fills them, so another process may read zero."""
    board.progress_bar_iter.value = -1
    other.start(
        "[setattr(events.progress_bar_iter, 'value', n)"
        " for _ in range(100_000) for n in (2**62 - 1, -1)] and 1"
    )
    while board.progress_bar_iter.value == -1:
        pass
    assert {board.progress_bar_iter.value for _ in range(200_000)} <= {-1, 2**62 - 1}
    assert other.value() == 1
