"""Where ranks stand: places in code, stacks as text, and what the journal's moments add up to."""

from __future__ import annotations

import linecache
import os
import threading

import pytest
import torch

import icelaunch_nb
from icelaunch_nb import moments, places, stacks
from icelaunch_nb.rundir import RunDir
from icelaunch_nb.story import State, Story

CELL = "/tmp/ipykernel_7/123.py"
NAMES = {CELL: "Cell In[5]"}
MAIN = os.path.join(os.path.dirname(icelaunch_nb.__file__), "worker", "main.py")
TEXT = f"""\
Thread 0x00007f01 (most recent call first):
  File "{threading.__file__}", line 324 in wait
  File "{CELL}", line 3 in feed

Current thread 0x00007f02 (most recent call first):
  File "{torch.__path__[0]}/nn/functional.py", line 9 in linear
  File "{CELL}", line 7 in train
  File "{MAIN}", line 51 in main
  File "<string>", line 1 in <module>
"""


def test_places_are_named_as_their_user_names_them():
    assert places.place(CELL, 7, NAMES) == "cell 5, line 7"
    assert places.place("/home/me/train.py", 3, NAMES) == "train.py, line 3"
    assert places.place("x", 3, {"x": "<ipython-input-9-abc>"}) == "<ipython-input-9-abc>, line 3"


def test_libraries_are_no_places_of_the_users():
    for path in (
        torch.__file__,
        os.__file__,
        MAIN,
        "<frozen runpy>",
        "<string>",
        "/x/lib/python3.12/site-packages/y.py",
    ):
        assert places.is_library(path), path
    for path in (CELL, "/home/me/train.py", "<ipython-input-9-abc>"):
        assert not places.is_library(path), path


def test_the_cells_of_a_run_are_known_to_linecache(tmp_path):
    run_dir = RunDir(tmp_path)
    assert places.know_cells(run_dir) == {}
    run_dir.write_json(run_dir.sources, {"a cell": {"name": "Cell In[5]", "source": "one\ntwo\n"}})
    assert places.know_cells(run_dir) == {"a cell": "Cell In[5]"}
    linecache.checkcache()
    assert linecache.getline("a cell", 2) == "two\n"


def test_a_rank_stands_where_its_main_thread_is_in_the_users_code():
    assert stacks.stands(TEXT, NAMES) == "cell 5, line 7"
    assert stacks.stands("", NAMES) == ""
    library = (
        f'Current thread 0x1 (most recent call first):\n  File "{os.__file__}", line 8 in fork\n'
    )
    assert stacks.stands(library, NAMES) == "os.py, line 8"


def test_stacks_are_readable():
    text = stacks.readable(TEXT, NAMES)
    assert "  Cell In[5], line 7 in train\n" in text and text.endswith("in train\n")
    assert (
        '  File "torch/nn/functional.py", line 9 in linear\n' in text
        or "site-packages" not in torch.__file__
    )
    assert "Cell In[5], line 3 in feed\n\nCurrent" in text
    assert stacks.readable("", NAMES) == ""


def test_of_two_answers_the_newest_counts():
    assert stacks._newest(TEXT + "\n" + TEXT.replace("line 7", "line 8")) == TEXT.replace(
        "line 7", "line 8"
    )
    assert stacks._newest(TEXT) == TEXT
    assert stacks._newest("") == ""


def test_equal_stacks_are_folded_whatever_their_addresses_and_the_odd_one_comes_first():
    found = stacks.Stacks(
        {rank: TEXT.replace("7f02", f"7f{rank:02}") for rank in range(4)}
        | {2: "elsewhere <b>\n", 5: ""}
    )
    assert [ranks for ranks, _ in found.folded] == [[2], [5], [0, 1, 3]]
    assert repr(found).startswith("rank 2:\nelsewhere <b>\n\nrank 5:\nno answer")
    assert (
        "elsewhere &lt;b&gt;" in found._repr_html_()
        and "<summary>ranks 0, 1, 3</summary>" in found._repr_html_()
    )
    assert found[1].startswith("Thread")


def test_ranks_that_did_not_answer_speak_each_for_itself_and_are_folded_by_what_py_spy_sees():
    found = stacks.Stacks(
        dict.fromkeys((0, 3, 4), TEXT) | dict.fromkeys((1, 2, 5), ""), program=True
    )
    assert found.speakers == [0, 1, 2, 5]
    spied = found.with_native(
        {
            0: "Thread 1 (idle)\n    clock_nanosleep\n",
            1: 'Thread 2 (idle): "MainThread"\n    a (x.py:1)\n    0x7f01 (libc)\n',
            2: 'Thread 3 (active): "MainThread"\n    a (x.py:1)\n    0x7f02 (libc)\n',
        }
    )
    assert [ranks for ranks, _ in spied.folded] == [[5], [1, 2], [0, 3, 4]]
    assert "clock_nanosleep" in spied.folded[2][1] and "a (x.py:1)" in spied.folded[1][1]
    assert "a program's ranks" in spied.folded[0][1] and "py-spy" in spied.folded[0][1]
    assert "a program" not in repr(stacks.Stacks({0: ""}))


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([3], "rank 3"),
        ([1, 0], "ranks 0, 1"),
        ([0, 1, 2], "ranks 0-2"),
        ([0, 2, 3, 4, 7], "ranks 0, 2-4, 7"),
        ([*range(512)], "ranks 0-511"),
    ],
)
def test_ranks_in_words(ranks, words):
    assert moments.in_words(ranks) == words


def moment(kind: str, **facts) -> dict:
    return {"t": 1.0, "event": "moment", "kind": kind, "text": "…", **facts}


def test_the_story_knows_who_is_in_the_debugger():
    story = Story().after(moment("debugger_start", rank=2, where="cell 5, line 7"))
    story = story.after(
        {"event": "attempt", "attempt": 0, "ranks": []}
    )  # its first ranks may stop before the last is forked
    assert {rank: at["where"] for rank, at in story.debugged.items()} == {2: "cell 5, line 7"}
    story = story.after(moment("debugger_step", rank=2, where="cell 5, line 8")).after(
        moment("debugger_start", rank=0, where="x")
    )
    assert {rank: at["where"] for rank, at in story.debugged.items()} == {
        2: "cell 5, line 8",
        0: "x",
    }
    assert [one["kind"] for one in story.moments] == [
        "debugger_start",
        "debugger_start",
    ]  # steps are no news for the timeline
    assert sorted(story.after(moment("debugger_end", rank=2)).debugged) == [0]
    for event in ({"event": "restart", "attempt": 1}, {"event": "end", "state": "STOPPED", "t": 2}):
        assert story.after(event).debugged == {}


def test_the_story_knows_who_is_silent_and_until_when_a_stop_is_patient():
    story = (
        Story()
        .after(moment("silent", ranks=[0, 1, 3], where="cell 5, line 12"))
        .after(moment("silent", ranks=[2], where="cell 5, line 7"))
    )
    assert story.hangs() == [([2], "cell 5, line 7"), ([0, 1, 3], "cell 5, line 12")]
    assert story.after(moment("heard", ranks=[0, 2])).silent == {
        1: "cell 5, line 12",
        3: "cell 5, line 12",
    }
    assert story.after({"event": "restart", "attempt": 1}).silent == {}
    stopping = story.after({"event": "stopping", "t": 5.0, "grace": 30}).after(
        {"event": "stopping", "t": 6.0, "grace": 1}
    )
    assert stopping.state == State.STOPPING and stopping.stopping["grace"] == 1


def test_a_rank_that_outlives_sigkill_is_a_moment_of_its_own():
    ranks = [
        {"rank": rank, "local_rank": rank, "pid": 10 + rank, "started": 1.0} for rank in range(2)
    ]
    story = (
        Story()
        .after({"t": 1.0, "event": "attempt", "attempt": 0, "ranks": ranks})
        .after({"t": 2.0, "event": "unkillable", "pid": 11})
    )
    (moment,) = story.moments
    assert (moment["kind"], moment["rank"], moment["t"]) == (
        "unkillable",
        1,
        2.0,
    ) and "pid 11" in moment["text"]
    assert story.after({"t": 3.0, "event": "end", "state": "STOPPED"}).state == State.STOPPED
