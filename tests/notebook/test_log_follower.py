"""The follower: its chunks reassemble to the files, shares are fair, a large backlog is skipped."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelaunch_nb.notebook.panel import log_follower as module
from icelaunch_nb.notebook.panel.log_follower import KEPT_BACKLOG, MAX_BACKLOG, LogFollower
from icelaunch_nb.rundir.journal_events import AttemptStarted, RankEntry
from icelaunch_nb.rundir.paths import RunDir


def _attempt(run_dir, number=0, ranks=1):
    for rank in range(ranks):
        run_dir.rank(number, rank).path.mkdir(parents=True, exist_ok=True)
    return AttemptStarted(
        attempt=number,
        world_size=ranks,
        ranks=[RankEntry(rank=rank, local_rank=rank, pid=1, started=1.0) for rank in range(ranks)],
    )


def _append(path, data):
    with open(path, "ab") as file:
        file.write(data)


def _reassemble(chunks):
    """Reassembles the files as a page does: by offset, so that bytes may come twice."""
    files = {}
    for chunk in chunks:
        whole = files.setdefault((chunk.attempt, chunk.rank, chunk.stream), bytearray())
        assert chunk.start <= len(whole), "a gap"
        whole[chunk.start : chunk.start + len(chunk.data)] = chunk.data
    return {key: bytes(value) for key, value in files.items()}


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["stdout", "stderr"]), st.binary(max_size=40)),
        max_size=30,
    ),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
    st.integers(0, 30),
)
@settings(deadline=None, max_examples=150)
def test_chunks_reassemble_to_the_files_for_any_writes_and_polls(
    tmp_path_factory, writes, lengths, rewound
):
    run_dir = RunDir(tmp_path_factory.mktemp("run"))
    follower, chunks, truth = LogFollower(run_dir), [], {}
    follower.follow(_attempt(run_dir, ranks=3))
    for number, (rank, stream, data) in enumerate(writes):
        _append(getattr(run_dir.rank(0, rank), stream), data)
        truth[0, rank, stream] = truth.get((0, rank, stream), b"") + data
        follower.poll()
        chunks += follower.read_new(lengths[number % len(lengths)])
        if number == rewound:
            follower.rewind(0, 1 << 20)
    while follower.backlog:
        chunks += follower.read_new(1000)
    assert _reassemble(chunks) == {key: data for key, data in truth.items() if data}


def test_each_rank_gets_a_share_and_the_length_is_kept(run_dir):
    follower = LogFollower(run_dir)
    follower.follow(_attempt(run_dir, ranks=4))
    for rank in range(4):
        _append(run_dir.rank(0, rank).stdout, b"x" * (10 if rank == 0 else 1000))
    follower.poll()
    chunks = follower.read_new(310)
    assert {chunk.rank: len(chunk.data) for chunk in chunks} == {0: 10, 1: 100, 2: 100, 3: 100}


def test_above_the_backlog_the_newest_lines_are_sent_and_the_gap_shows(run_dir):
    follower = LogFollower(run_dir)
    follower.follow(_attempt(run_dir, ranks=2))
    line = b"0123456789\n"
    _append(run_dir.rank(0, 0).stdout, line * (MAX_BACKLOG // len(line) + 1))
    _append(run_dir.rank(0, 1).stdout, b"quiet\n")
    follower.poll()
    chunks = []
    while follower.backlog:
        chunks += follower.read_new(100_000)
    long = [chunk for chunk in chunks if chunk.rank == 0]
    assert long[0].start > MAX_BACKLOG - KEPT_BACKLOG
    assert long[0].start % len(line) == 0, "it goes on at the beginning of a line"
    assert sum(len(chunk.data) for chunk in long) <= KEPT_BACKLOG
    assert [chunk.data for chunk in chunks if chunk.rank == 1] == [b"quiet\n"], (
        "a quiet rank loses nothing"
    )
    assert long[-1].start + len(long[-1].data) == run_dir.rank(0, 0).stdout.stat().st_size


def test_an_attempts_last_lines_are_sent_after_the_next_one_began(run_dir):
    follower = LogFollower(run_dir)
    follower.follow(_attempt(run_dir, 0))
    _append(run_dir.rank(0, 0).stdout, b"last words\n")
    follower.follow(_attempt(run_dir, 1))
    _append(run_dir.rank(1, 0).stdout, b"first words\n")
    follower.poll()
    assert {(chunk.attempt, chunk.data) for chunk in follower.read_new(1000)} == {
        (0, b"last words\n"),
        (1, b"first words\n"),
    }


def test_rewind_returns_the_last_lines_of_any_attempt(run_dir):
    follower = LogFollower(run_dir)
    follower.follow(_attempt(run_dir, 0))
    _append(run_dir.rank(0, 0).stdout, b"one\ntwo\nthree\n")
    follower.poll()
    follower.read_new(1000)
    follower.follow(_attempt(run_dir, 1))
    follower.rewind(0, len(b"wo\nthree\n"))
    assert [(chunk.start, chunk.data) for chunk in follower.read_new(1000)] == [(8, b"three\n")]
    follower.rewind(7, 1000)
    assert follower.read_new(1000) == []


def test_the_unused_shares_of_short_logs_go_to_the_others(run_dir):
    follower = LogFollower(run_dir)
    follower.follow(_attempt(run_dir, ranks=2))
    _append(run_dir.rank(0, 0).stdout, b"0123456789abcde\n" * 100)
    _append(run_dir.rank(0, 1).stdout, b"short\n")
    follower.rewind(0, 1000)
    assert {chunk.rank: len(chunk.data) for chunk in follower.read_new(2000)} == {0: 992, 1: 6}


def test_older_lines_end_where_the_pages_lines_begin(run_dir):
    follower = LogFollower(run_dir)
    follower.follow(_attempt(run_dir, ranks=2))
    _append(run_dir.rank(0, 1).stdout, b"one\ntwo\nthree\nfour\n")
    _append(run_dir.rank(0, 1).stderr, b"a\nb\n")
    follower.poll()
    everything = follower.read_new(1000)
    older = [
        (chunk.rank, chunk.stream, chunk.start, chunk.data)
        for chunk in follower.read_before(0, 1, [14, 2], 14)
    ]
    assert older == [(1, "stdout", 4, b"two\nthree\n"), (1, "stderr", 0, b"a\n")]
    assert (
        follower.read_before(0, 1, [0, 0], 1000)
        == follower.read_before(0, 7, [5, 5], 1000)
        == follower.read_before(3, 0, [5, 5], 1000)
        == []
    )
    assert [chunk.data for chunk in follower.read_before(0, 1, [10**12, -1], 1000)] == [
        b"one\ntwo\nthree\nfour\n"
    ], "a page may say anything"
    assert follower.backlog == 0
    assert len(everything) == 2, "nothing is sent again by this"


def test_the_time_of_each_ranks_last_write(run_dir):
    follower = LogFollower(run_dir)
    follower.follow(_attempt(run_dir, ranks=2))
    _append(run_dir.rank(0, 0).stdout, b"a")
    _append(run_dir.rank(0, 0).stderr, b"b")
    os.utime(run_dir.rank(0, 0).stdout, (0, 1000.0))
    os.utime(run_dir.rank(0, 0).stderr, (0, 2000.0))
    run_dir.rank(0, 1).stdout.touch()
    follower.poll()
    assert follower.last_writes(0) == {0: 2000.0, 1: 0.0}


def test_a_removed_or_truncated_log_stops_nothing(run_dir):
    follower = LogFollower(run_dir)
    follower.follow(_attempt(run_dir, ranks=2))
    _append(run_dir.rank(0, 0).stdout, b"gone\n")
    _append(run_dir.rank(0, 1).stdout, b"here\n")
    follower.poll()
    run_dir.rank(0, 0).stdout.unlink()
    assert [chunk.data for chunk in follower.read_new(1000)] == [b"here\n"]
    assert follower.backlog == 0


def test_the_front_end_numbers_the_streams_as_the_follower_does():
    assert module.STREAMS == ("stdout", "stderr")
    assert json.dumps(module.STREAMS.index("stderr")) == "1"
