"""Locations in code, stacks as text, and the state that the journal's events make."""

from __future__ import annotations

import linecache
import os
import threading

import pytest
import torch

import icelaunch_nb
from icelaunch_nb.rundir import source_locations, stacks, timeline
from icelaunch_nb.rundir.journal_events import (
    AgentStarted,
    AttemptStarted,
    Ended,
    Event,
    RankEntry,
    RankUnkillable,
    Restarted,
    Stopping,
    TimelineEvent,
    parse_event,
)
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import RunState, State

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


def test_locations_are_formatted_as_users_name_them():
    assert source_locations.format_location(CELL, 7, NAMES) == "cell 5, line 7"
    assert source_locations.format_location("/home/me/train.py", 3, NAMES) == "train.py, line 3"
    assert (
        source_locations.format_location("x", 3, {"x": "<ipython-input-9-abc>"})
        == "<ipython-input-9-abc>, line 3"
    )


def test_files_of_libraries_arent_the_users():
    for path in (
        torch.__file__,
        os.__file__,
        MAIN,
        "<frozen runpy>",
        "<string>",
        "/x/lib/python3.12/site-packages/y.py",
    ):
        assert source_locations.is_library(path), path
    for path in (CELL, "/home/me/train.py", "<ipython-input-9-abc>"):
        assert not source_locations.is_library(path), path


def test_registered_cells_are_in_linecache(tmp_path):
    run_dir = RunDir(tmp_path)
    assert source_locations.register_cells(run_dir) == {}
    run_dir.write_json(run_dir.sources, {"a cell": {"name": "Cell In[5]", "source": "one\ntwo\n"}})
    assert source_locations.register_cells(run_dir) == {"a cell": "Cell In[5]"}
    linecache.checkcache()
    assert linecache.getline("a cell", 2) == "two\n"


def test_a_ranks_location_is_that_of_its_main_thread_in_the_users_code():
    assert stacks.user_location(TEXT, NAMES) == "cell 5, line 7"
    assert stacks.user_location("", NAMES) == ""
    library = (
        f'Current thread 0x1 (most recent call first):\n  File "{os.__file__}", line 8 in fork\n'
    )
    assert stacks.user_location(library, NAMES) == "os.py, line 8"


def test_readable_stacks_have_cell_names_and_short_paths():
    text = stacks.readable(TEXT, NAMES)
    assert "  Cell In[5], line 7 in train\n" in text and text.endswith("in train\n")
    assert (
        '  File "torch/nn/functional.py", line 9 in linear\n' in text
        or "site-packages" not in torch.__file__
    )
    assert "Cell In[5], line 3 in feed\n\nCurrent" in text
    assert stacks.readable("", NAMES) == ""


def test_the_newest_of_two_dumps_counts():
    assert stacks._newest(TEXT + "\n" + TEXT.replace("line 7", "line 8")) == TEXT.replace(
        "line 7", "line 8"
    )
    assert stacks._newest(TEXT) == TEXT
    assert stacks._newest("") == ""


def test_stacks_equal_but_for_addresses_are_grouped_and_the_smallest_group_is_first():
    found = stacks.Stacks(
        {rank: TEXT.replace("7f02", f"7f{rank:02}") for rank in range(4)}
        | {2: "elsewhere <b>\n", 5: ""}
    )
    assert [ranks for ranks, _ in found.groups] == [[2], [5], [0, 1, 3]]
    assert repr(found).startswith("rank 2:\nelsewhere <b>\n\nrank 5:\nno answer")
    assert (
        "elsewhere &lt;b&gt;" in found._repr_html_()
        and '<summary data-lm-suppress-shortcuts="true">ranks 0, 1, 3</summary>'
        in found._repr_html_()
    )
    assert found[1].startswith("Thread")


def test_ranks_without_stacks_are_all_representatives_and_grouped_by_py_spys():
    found = stacks.Stacks(
        dict.fromkeys((0, 3, 4), TEXT) | dict.fromkeys((1, 2, 5), ""), program=True
    )
    assert found.representatives == [0, 1, 2, 5]
    spied = found.with_native(
        {
            0: "Thread 1 (idle)\n    clock_nanosleep\n",
            1: 'Thread 2 (idle): "MainThread"\n    a (x.py:1)\n    0x7f01 (libc)\n',
            2: 'Thread 3 (active): "MainThread"\n    a (x.py:1)\n    0x7f02 (libc)\n',
        }
    )
    assert [ranks for ranks, _ in spied.groups] == [[5], [1, 2], [0, 3, 4]]
    assert "clock_nanosleep" in spied.groups[2][1] and "a (x.py:1)" in spied.groups[1][1]
    assert "a program's ranks" in spied.groups[0][1] and "py-spy" in spied.groups[0][1]
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
def test_ranks_are_formatted_as_ranges(ranks, words):
    assert timeline.format_ranks(ranks) == words


def timeline_event(kind: str, **facts: object) -> TimelineEvent:
    return TimelineEvent(t=1.0, kind=kind, text="…", **facts)


def entry(rank: int, **facts: object) -> RankEntry:
    return RankEntry(
        **{"rank": rank, "local_rank": rank, "pid": 10 + rank, "started": 1.0, **facts}
    )


def attempt(number: int, *ranks: RankEntry, node: int = 0) -> AttemptStarted:
    return AttemptStarted(t=1.0, attempt=number, world_size=4, ranks=list(ranks), node=node)


def after(*events: Event) -> RunState:
    state = RunState()
    for one in events:
        state = state.after(one)
    return state


def test_the_state_has_the_ranks_in_the_debugger():
    # The first ranks of an attempt may stop in the debugger before the last one is forked.
    state = after(
        timeline_event("debugger_start", rank=2, where="cell 5, line 7"), attempt(0, entry(0))
    )
    assert {rank: at.where for rank, at in state.debugged.items()} == {2: "cell 5, line 7"}
    state = state.after(timeline_event("debugger_step", rank=2, where="cell 5, line 8")).after(
        timeline_event("debugger_start", rank=0, where="x")
    )
    assert {rank: at.where for rank, at in state.debugged.items()} == {2: "cell 5, line 8", 0: "x"}
    # Steps of a debugger aren't in the timeline.
    assert [one.kind for one in state.timeline] == ["debugger_start", "debugger_start"]
    assert sorted(state.after(timeline_event("debugger_end", rank=2)).debugged) == [0]
    for one in (Restarted(attempt=1, cause="x"), Ended(state="STOPPED", t=2)):
        assert state.after(one).debugged == {}


def test_the_state_has_the_silent_ranks_and_the_newest_grace():
    state = after(
        timeline_event("silent", ranks=[0, 1, 3], where="cell 5, line 12"),
        timeline_event("silent", ranks=[2], where="cell 5, line 7"),
    )
    assert state.hangs() == [([2], "cell 5, line 7"), ([0, 1, 3], "cell 5, line 12")]
    assert state.after(timeline_event("recovered", ranks=[0, 2])).silent == {
        1: "cell 5, line 12",
        3: "cell 5, line 12",
    }
    assert state.after(Restarted(attempt=1, cause="x")).silent == {}
    stopping = state.after(Stopping(t=5.0, grace=30)).after(Stopping(t=6.0, grace=1))
    assert stopping.state == State.STOPPING and stopping.stopping.grace == 1


def test_a_rank_that_outlives_sigkill_is_in_the_timeline():
    state = after(attempt(0, entry(0), entry(1)), RankUnkillable(t=2.0, pid=11))
    (unkillable,) = state.timeline
    assert (unkillable.kind, unkillable.rank, unkillable.t) == (
        "unkillable",
        1,
        2.0,
    ) and "pid 11" in unkillable.text
    assert state.after(Ended(t=3.0, state="STOPPED")).state == State.STOPPED


def test_each_node_of_an_attempt_adds_its_ranks():
    home, other = (
        attempt(0, entry(0), entry(1)),
        attempt(0, entry(2, local_rank=0), entry(3, local_rank=1), node=1),
    )
    for first, second in ((home, other), (other, home)):
        state = after(
            AgentStarted(pid=1, started=1.0),
            AgentStarted(pid=1, started=2.0, node=1),
            first,
            second,
        )
        assert len(state.attempts) == 1
        assert [(one.rank, one.node, one.local_rank) for one in state.ranks] == [
            (0, 0, 0),
            (1, 0, 1),
            (2, 1, 0),
            (3, 1, 1),
        ]
        assert sorted(state.agents) == [0, 1] and state.agent.started == 1.0
    again = state.after(attempt(1, entry(0))).after(attempt(1, entry(1, local_rank=0), node=1))
    assert [len(one.ranks) for one in again.attempts] == [4, 2]
    killed = after(home, other, RankUnkillable(t=2.0, pid=12, node=1))
    assert [one.rank for one in killed.timeline] == [2], "a pid means a process of its own node"


def test_an_event_of_a_newer_version_changes_nothing():
    state = after(attempt(0, entry(0)))
    unknown = parse_event({"t": 1.0, "event": "flight", "height": {"m": 3}})
    assert unknown.unknown["height"] == {"m": 3}
    assert state.after(unknown) is state
