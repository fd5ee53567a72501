"""The printer, on run directories whose logs the test writes."""

from __future__ import annotations

import io
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icelaunch_nb import LaunchConfig
from icelaunch_nb.client import log_printer
from icelaunch_nb.client.log_printer import Printer
from icelaunch_nb.rundir.journal_events import AttemptStarted, RankEntry
from icelaunch_nb.rundir.paths import RunDir


class RunWithLogs:
    """A run whose logs the test writes, and its printer."""

    def __init__(self, folder: Path, ranks: int = 2, **config) -> None:
        self.dir = RunDir(folder)
        self.config = LaunchConfig(1, 1, ranks, **config)
        self.printer = Printer(self.dir, self.config)
        self.attempts: list[AttemptStarted] = []
        self.begin_attempt()

    def begin_attempt(self) -> None:
        number = len(self.attempts)
        ranks = range(self.config.nproc_per_node)
        for rank in ranks:
            self.dir.rank(number, rank).path.mkdir(parents=True)
        self.attempts.append(
            AttemptStarted(
                attempt=number,
                world_size=len(ranks),
                ranks=[RankEntry(rank=r, local_rank=r, pid=1, started=1.0) for r in ranks],
            )
        )

    def write(
        self, rank: int, data: str | bytes, stream: str = "stdout", attempt: int = -1
    ) -> None:
        number = self.attempts[attempt].attempt
        with open(getattr(self.dir.rank(number, rank), stream), "ab") as file:
            file.write(data.encode() if isinstance(data, str) else data)

    def show(self, final: bool = False) -> None:
        self.printer.show(self.attempts, final=final)


@pytest.fixture
def show_unfinished(monkeypatch):
    """The printer shows an unfinished line at once, so that no test has to wait for it."""
    monkeypatch.setattr(log_printer, "_UNFINISHED_DELAY", 0)
    monkeypatch.setattr(log_printer, "_BAR_INTERVAL", 0)


@pytest.fixture
def hold_unfinished(monkeypatch):
    """The printer never shows an unfinished line, however slow the machine is."""
    monkeypatch.setattr(log_printer, "_UNFINISHED_DELAY", float("inf"))
    monkeypatch.setattr(log_printer, "_BAR_INTERVAL", float("inf"))


# Whole lines.


def test_lines_have_torchs_prefix_and_come_at_once(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path)
    run.write(0, "hello\n")
    run.write(1, "there\n")
    run.show()
    assert capsys.readouterr().out == "[default_role0]:hello\n[default_role1]:there\n"


def test_the_prefix_is_the_configs_role(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1, role="trainer")
    run.write(0, "x\n")
    run.show()
    assert capsys.readouterr().out == "[trainer0]:x\n"


def test_stderr_goes_to_stderr(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path)
    run.write(1, "oops\n", "stderr")
    run.show()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "[default_role1]:oops\n")


def test_nothing_is_shown_twice(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path)
    run.write(0, "a\n")
    run.show()
    run.write(0, "b\n")
    run.show()
    run.show()
    run.show(final=True)
    run.show(final=True)
    assert capsys.readouterr().out == "[default_role0]:a\n[default_role0]:b\n"


def test_empty_lines_and_leading_spaces_are_kept(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "\n   indented\t\n\n")
    run.show()
    assert (
        capsys.readouterr().out
        == "[default_role0]:\n[default_role0]:   indented\t\n[default_role0]:\n"
    )


def test_only_a_newline_ends_a_line(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "a\u2028b\x0bc\x0cd\x85e\n")
    run.show()
    assert capsys.readouterr().out == "[default_role0]:a\u2028b\x0bc\x0cd\x85e\n"


def test_missing_files_are_waited_for(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path)
    run.show()
    run.write(0, "late\n")
    run.show()
    assert capsys.readouterr().out == "[default_role0]:late\n"


def test_megabytes_are_shown_whole_at_once(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    lines = [f"line {i} " + "ü漢🙂" * 10 for i in range(40_000)]
    run.write(0, "\n".join(lines) + "\n")
    run.show(final=True)
    assert capsys.readouterr().out.splitlines() == [f"[default_role0]:{line}" for line in lines]


def test_a_line_of_megabytes_comes_whole(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "x" * 3_000_000 + "\n")
    run.show(final=True)
    assert capsys.readouterr().out == "[default_role0]:" + "x" * 3_000_000 + "\n"


# Which streams.


@pytest.mark.parametrize(
    ("streams", "shown"),
    [
        ({}, {"out0", "err0", "out1", "err1"}),
        ({"redirects": 3}, set()),
        ({"redirects": "1"}, {"err0", "err1"}),
        ({"redirects": 3, "tee": 1}, {"out0", "out1"}),
        ({"redirects": {0: 3}}, {"out1", "err1"}),
        ({"redirects": 3, "tee": {1: 2}}, {"err1"}),
    ],
)
def test_redirected_streams_are_not_shown_and_teed_ones_are(
    streams, shown, tmp_path, capsys, hold_unfinished
):
    run = RunWithLogs(tmp_path, **streams)
    for rank in (0, 1):
        run.write(rank, f"out{rank}\n")
        run.write(rank, f"err{rank}\n", "stderr")
    run.show(final=True)
    captured = capsys.readouterr()
    assert {line.partition(":")[2] for line in (captured.out + captured.err).splitlines()} == shown


# Unfinished lines.


def test_an_unfinished_line_is_held_back_while_it_is_fresh(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path)
    run.write(0, "half")
    run.show()
    assert capsys.readouterr().out == ""
    run.write(1, "whole\n")
    run.write(0, " and half\n")
    run.show()
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "[default_role0]:half and half",
        "[default_role1]:whole",
    ]


def test_an_unfinished_line_is_shown_when_it_is_quiet_and_goes_on_where_it_was(
    tmp_path, capsys, show_unfinished
):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "Name? ")
    run.show()
    assert capsys.readouterr().out == "[default_role0]:Name? "
    run.show()
    assert capsys.readouterr().out == ""
    run.write(0, "Ada\nnext\n")
    run.show()
    assert capsys.readouterr().out == "Ada\n[default_role0]:next\n"


def test_an_unfinished_line_is_over_at_the_end(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path)
    run.write(0, "no newline")
    run.write(1, "nor here", "stderr")
    run.show()
    run.show(final=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (
        "[default_role0]:no newline\n",
        "[default_role1]:nor here\n",
    )


def test_an_unfinished_line_that_was_shown_ends_with_a_newline(tmp_path, capsys, show_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "no newline")
    run.show()
    run.show(final=True)
    assert capsys.readouterr().out == "[default_role0]:no newline\n"


def test_another_ranks_line_does_not_break_an_unfinished_one(tmp_path, capsys, show_unfinished):
    run = RunWithLogs(tmp_path)
    run.write(0, "one")
    run.show()
    run.write(1, "other\n")
    run.show()
    run.write(0, " two\n")
    run.show(final=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("[default_role1]:other") == 1
    assert lines[-1] == "[default_role0]:one two"
    assert set(lines) <= {"[default_role0]:one", "[default_role1]:other", "[default_role0]:one two"}


# Bars.


def as_a_terminal(text: str) -> list[str]:
    """Returns the lines as a terminal shows them: text after a carriage return overwrites."""
    lines = []
    for line in text.split("\n"):
        seen = ""
        for part in line.split("\r"):
            seen = part + seen[len(part) :]
        lines.append(seen)
    return lines


def test_a_single_ranks_bar_moves_in_its_line(tmp_path, capsys, show_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    seen = []
    text = ""
    for percent in (0, 50, 100):
        run.write(0, f"\r{percent:3}%|bar", "stderr")
        run.show()
        text += capsys.readouterr().err
        seen.append(as_a_terminal(text))
    assert seen == [[f"[default_role0]:{percent:3}%|bar"] for percent in (0, 50, 100)]
    run.write(0, "\n", "stderr")
    run.show(final=True)
    text += capsys.readouterr().err
    assert as_a_terminal(text) == ["[default_role0]:100%|bar", ""]


def test_a_finished_bar_that_was_never_shown_is_one_line_with_its_last_state(
    tmp_path, capsys, hold_unfinished
):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "".join(f"\r{percent:3}%" for percent in range(101)) + "\n")
    run.show(final=True)
    assert as_a_terminal(capsys.readouterr().out) == ["[default_role0]:100%", ""]


def test_bars_of_several_ranks_end_up_whole_one_line_each(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path)
    for percent in range(0, 101, 10):
        for rank in (0, 1):
            run.write(rank, f"\r{percent:3}% of rank {rank}", "stderr")
        run.show()
    for rank in (0, 1):
        run.write(rank, "\n", "stderr")
    run.show(final=True)
    assert sorted(as_a_terminal(capsys.readouterr().err)) == [
        "",
        "[default_role0]:100% of rank 0",
        "[default_role1]:100% of rank 1",
    ]


def test_bars_of_several_ranks_that_are_watched_do_not_mix(tmp_path, capsys, show_unfinished):
    run = RunWithLogs(tmp_path)
    for percent in range(0, 101, 10):
        for rank in (0, 1):
            run.write(rank, f"\r{percent:3}% of rank {rank}", "stderr")
            run.show()
    for rank in (0, 1):
        run.write(rank, "\n", "stderr")
    run.show(final=True)
    lines = as_a_terminal(capsys.readouterr().err)
    assert "[default_role0]:100% of rank 0" in lines and "[default_role1]:100% of rank 1" in lines
    assert all(line == "" or line.startswith(f"[default_role{line[-1]}]:") for line in lines)


def test_a_line_above_a_running_bar_leaves_the_bar_whole(tmp_path, capsys, show_unfinished):
    run = RunWithLogs(tmp_path)
    run.write(0, "\r 10%")
    run.show()
    run.write(1, "a line\n")
    run.show()
    run.write(0, "\r 20%\n")
    run.show(final=True)
    lines = as_a_terminal(capsys.readouterr().out)
    assert "[default_role1]:a line" in lines and lines[-2] == "[default_role0]: 20%"


@pytest.mark.parametrize("fixture", ["hold_unfinished", "show_unfinished"])
def test_windows_line_ends_lose_no_text(fixture, tmp_path, capsys, request):
    request.getfixturevalue(fixture)
    run = RunWithLogs(tmp_path, ranks=1)
    for part in ("first\r", "\nsecond", "\r\n"):
        run.write(0, part)
        run.show()
    run.show(final=True)
    assert as_a_terminal(capsys.readouterr().out) == [
        "[default_role0]:first",
        "[default_role0]:second",
        "",
    ]


# Characters.


@pytest.mark.parametrize("fixture", ["hold_unfinished", "show_unfinished"])
@pytest.mark.parametrize("cut", range(len("aü漢🙂z\n".encode()) + 1))
def test_a_character_cut_at_any_byte_arrives_whole(cut, fixture, tmp_path, capsys, request):
    request.getfixturevalue(fixture)
    data = "aü漢🙂z\n".encode()
    run = RunWithLogs(tmp_path, ranks=1)
    for part in (data[:cut], data[cut:]):
        run.write(0, part)
        run.show()
    assert capsys.readouterr().out == "[default_role0]:aü漢🙂z\n"


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"ok \xe2\x82", b"\xf0\x9f\x99", b"\x80\x80\x80\x80\x80", b"\xc3"]
)
def test_bytes_that_are_no_text_are_shown_as_such_and_nothing_waits_for_ever(
    data, tmp_path, capsys, hold_unfinished
):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, data)
    run.show()
    run.show(final=True)
    assert capsys.readouterr().out == f"[default_role0]:{data.decode(errors='replace')}\n"


def test_broken_bytes_do_not_hold_the_following_line_back(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, b"\xf0\nnext\n")
    run.show()
    assert capsys.readouterr().out == "[default_role0]:\ufffd\n[default_role0]:next\n"


def test_a_console_that_cant_encode_a_character_still_gets_the_line(
    tmp_path, monkeypatch, hold_unfinished
):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "größer\nplain\n")
    run.show(final=True)
    assert raw.getvalue().endswith(b"[default_role0]:plain\n")


def test_without_a_console_nothing_breaks(tmp_path, monkeypatch, hold_unfinished):
    monkeypatch.setattr(sys, "stdout", None)
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "into the void\n")
    run.show(final=True)


# Attempts.


def test_the_next_attempts_output_follows(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "first\n")
    run.show()
    run.begin_attempt()
    run.write(0, "second\n")
    run.show(final=True)
    assert capsys.readouterr().out == "[default_role0]:first\n[default_role0]:second\n"


def test_the_last_words_before_a_restart_are_shown(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "begun\n")
    run.show()
    run.write(0, "last words\nand half a line")
    run.begin_attempt()
    run.write(0, "again\n")
    run.show(final=True)
    assert capsys.readouterr().out.splitlines() == [
        f"[default_role0]:{line}" for line in ("begun", "last words", "and half a line", "again")
    ]


def test_a_first_reading_after_a_restart_shows_both_attempts(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "first\n")
    run.begin_attempt()
    run.write(0, "second\n")
    run.show(final=True)
    assert capsys.readouterr().out == "[default_role0]:first\n[default_role0]:second\n"


def test_a_line_left_open_by_a_dead_attempt_is_closed(tmp_path, capsys, show_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "half")
    run.show()
    run.begin_attempt()
    run.write(0, "again\n")
    run.show(final=True)
    assert capsys.readouterr().out == "[default_role0]:half\n[default_role0]:again\n"


# However the bytes come.

steady = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

CHUNKS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["stdout", "stderr"]),
        st.text("ab ü漢🙂\n", max_size=6),
        st.booleans(),
    ),
    max_size=25,
)


def _play(chunks, cuts, quiet: float) -> tuple[str, str, dict[tuple[int, str], list[str]]]:
    """Writes the texts in pieces of bytes, and shows them in between.

    Returns what both consoles show, and the lines of each stream.
    """
    out, err = io.StringIO(), io.StringIO()
    texts: dict[tuple[int, str], str] = {}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for name, value in (("_UNFINISHED_DELAY", quiet), ("_BAR_INTERVAL", quiet)):
            patch.setattr(log_printer, name, value)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        run = RunWithLogs(Path(folder), ranks=3)
        for rank, stream, text, show in chunks:
            texts[rank, stream] = texts.get((rank, stream), "") + text
            data = text.encode()
            cut = min(next(cuts), len(data))
            for part in (data[:cut], data[cut:]):
                run.write(rank, part, stream)
                if show:
                    run.show()
        run.show(final=True)
    return out.getvalue(), err.getvalue(), {key: _lines(text) for key, text in texts.items()}


def _lines(text: str) -> list[str]:
    *whole, rest = text.split("\n")
    return whole + [rest] * bool(rest)


def _of(shown: str, rank: int) -> list[str]:
    prefix = f"[default_role{rank}]:"
    return [line.removeprefix(prefix) for line in shown.split("\n") if line.startswith(prefix)]


@steady
@given(CHUNKS, st.lists(st.integers(0, 24), min_size=25, max_size=25))
def test_however_the_bytes_come_each_stream_is_shown_line_by_line_and_whole(chunks, cuts):
    out, err, lines = _play(chunks, iter(cuts), float("inf"))
    for rank in range(3):
        assert _of(out, rank) == lines.get((rank, "stdout"), [])
        assert _of(err, rank) == lines.get((rank, "stderr"), [])
    assert all(line.startswith("[default_role") for line in (out + err).split("\n") if line)


@steady
@given(CHUNKS, st.lists(st.integers(0, 24), min_size=25, max_size=25))
def test_unfinished_lines_that_were_shown_lose_no_line_and_invent_none(chunks, cuts):
    out, err, lines = _play(chunks, iter(cuts), 0)
    for stream, shown in (("stdout", out), ("stderr", err)):
        for rank in range(3):
            wanted, found = lines.get((rank, stream), []), _of(shown, rank)
            assert not Counter(wanted) - Counter(found)
            assert all(any(line.startswith(part) for line in wanted) for part in found)
        assert all(line.startswith("[default_role") for line in shown.split("\n") if line)


@steady
@given(
    st.lists(
        st.tuples(st.just(0), st.just("stdout"), st.text("ab ü🙂\n", max_size=6), st.booleans()),
        max_size=25,
    ),
    st.lists(st.integers(0, 24), min_size=25, max_size=25),
)
def test_a_single_rank_is_shown_exactly_as_it_wrote(chunks, cuts):
    out, _, lines = _play(chunks, iter(cuts), 0)
    assert out == "".join(f"[default_role0]:{line}\n" for line in lines.get((0, "stdout"), []))


def test_what_a_debuggers_prompt_showed_is_not_shown_again(tmp_path, capsys, hold_unfinished):
    run = RunWithLogs(tmp_path, ranks=1)
    run.write(0, "before\nsession\nmore of it\nafter\nsession\nend\n")
    path = run.dir.rank(0, 0).stdout
    for first, last in ((7, 15), (15, 26), (32, 40)):
        run.printer.skip(path, first, last)
    run.show()
    assert (
        capsys.readouterr().out
        == "[default_role0]:before\n[default_role0]:after\n[default_role0]:end\n"
    )
    run.write(0, "next\nsession\n")
    run.printer.skip(path, 49, 57)
    run.show(final=True)
    assert capsys.readouterr().out == "[default_role0]:next\n"


def test_a_long_rest_can_be_shown_in_pieces(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(log_printer, "_MAX_READ_SECONDS", 0)
    run = RunWithLogs(tmp_path, ranks=1)
    run.show()
    text = "".join(f"{number}\n" for number in range(300_000)) + "the end"
    run.write(0, text)
    pieces = 0
    while not run.printer.show(run.attempts, final=True, at_once=False):
        pieces += 1
    assert pieces > 0
    assert capsys.readouterr().out.replace("[default_role0]:", "") == text + "\n"
