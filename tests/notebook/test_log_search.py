"""The search on disk finds each line once, with its number, for any size of pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelaunch_nb.notebook.panel import log_search as module
from icelaunch_nb.notebook.panel.log_search import MAX_LINES, search
from icelaunch_nb.rundir.journal_events import AttemptStarted, RankEntry
from icelaunch_nb.rundir.paths import RunDir


def _attempt(run_dir, ranks=1):
    for rank in range(ranks):
        run_dir.rank(0, rank).path.mkdir(parents=True, exist_ok=True)
    return _of(ranks)


def _of(ranks):
    entries = [RankEntry(rank=rank, local_rank=rank, pid=1, started=1.0) for rank in range(ranks)]
    return AttemptStarted(attempt=0, world_size=ranks, ranks=entries)


@given(
    st.lists(st.text(alphabet="abA \r", max_size=8), max_size=30), st.integers(1, 12), st.booleans()
)
@settings(deadline=None, max_examples=150)
def test_it_finds_what_a_line_by_line_search_finds(tmp_path_factory, lines, piece, ended):
    run_dir = RunDir(tmp_path_factory.mktemp("run"))
    attempt = _attempt(run_dir)
    run_dir.rank(0, 0).stdout.write_bytes(("\n".join(lines) + ("\n" if ended else "")).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_SIZE", max(piece, 10))  # no line is longer
        patch.setattr(module, "_PAUSE", 0)
        found = search(run_dir, attempt, "ab")
    expected = [number for number, line in enumerate(lines, 1) if "ab" in line.lower()]
    assert [number for _, _, number, _ in found.lines] == expected
    assert found.counts == ({0: len(expected)} if expected else {})


def test_all_ranks_and_both_streams_are_searched_and_their_first_lines_returned(tmp_path):
    run_dir = RunDir(tmp_path)
    attempt = _attempt(run_dir, 4)
    for rank in range(4):
        run_dir.rank(0, rank).stdout.write_text(
            "".join(f"line {number}\n" for number in range(1000))
        )
    run_dir.rank(0, 2).stderr.write_text("\nWarning: Line 7 is odd\n")
    found = search(run_dir, attempt, "line 7")
    assert found.counts == {0: 111, 1: 111, 2: 112, 3: 111}
    assert found.complete
    assert len(found.lines) <= MAX_LINES
    assert found.lines[:2] == [(0, 0, 8, "line 7"), (0, 0, 71, "line 70")]
    assert {rank for rank, *_ in found.lines} == {0, 1, 2, 3}


def test_a_search_that_times_out_is_reported_as_incomplete(tmp_path, monkeypatch):
    run_dir = RunDir(tmp_path)
    attempt = _attempt(run_dir)
    run_dir.rank(0, 0).stdout.write_text("a line\n" * 100)
    monkeypatch.setattr(module, "_TIME_LIMIT", -1)
    assert not search(run_dir, attempt, "line").complete


def test_removed_logs_are_skipped(tmp_path):
    found = search(RunDir(tmp_path), _of(1), "x")
    assert (found.lines, found.counts, found.complete) == ([], {}, True)
