"""What a saved notebook keeps of the ranks' lines: the first, the last, and a count of the rest."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelaunch_nb import LaunchConfig
from icelaunch_nb.client import log_printer
from icelaunch_nb.client.log_excerpt import Excerpt
from icelaunch_nb.client.log_printer import Printer
from icelaunch_nb.rundir.journal_events import AttemptStarted, RankEntry
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.spec import SAVED_OUTPUT


class SavedRun:
    """A run whose logs the test writes, and a notebook's cell that keeps what is printed."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        ranks: int,
        limit: int = SAVED_OUTPUT,
    ) -> None:
        self.dir, self.ranks = RunDir(folder), ranks
        self.printer = Printer(self.dir, LaunchConfig(1, 1, ranks), Excerpt(limit, folder))
        self.attempts: list[AttemptStarted] = []
        self.pieces: list[tuple[str, str]] = []
        for name in ("stdout", "stderr"):
            console = type(
                "Console",
                (),
                {
                    "write": lambda _, text, name=name: self.pieces.append((name, text)),
                    "flush": lambda _: None,
                },
            )
            monkeypatch.setattr(log_printer.sys, name, console())
        self.begin_attempt()

    def begin_attempt(self) -> None:
        number = len(self.attempts)
        for rank in range(self.ranks):
            self.dir.rank(number, rank).path.mkdir(parents=True)
        self.attempts.append(
            AttemptStarted(
                attempt=number,
                world_size=self.ranks,
                ranks=[
                    RankEntry(rank=r, local_rank=r, pid=1, started=1.0) for r in range(self.ranks)
                ],
            )
        )

    def write(self, rank: int, text: str, stream: str = "stdout") -> None:
        with open(getattr(self.dir.rank(len(self.attempts) - 1, rank), stream), "ab") as file:
            file.write(text.encode())

    def show(self, *, final: bool = False) -> None:
        self.printer.show(self.attempts, final=final)

    def lines(self, rank: int, stream: str = "stdout") -> list[str]:
        """Returns the notebook's lines of a stream, without the prefix."""
        text = "".join(text for name, text in self.pieces if name == stream)
        prefix = f"[default_role{rank}]:"
        return [line.removeprefix(prefix) for line in text.split("\n") if line.startswith(prefix)]

    def size(self) -> int:
        outputs = [
            nbformat.v4.new_output("stream", name=name, text=text) for name, text in self.pieces
        ]
        with_them, without = (
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=some)])
            for some in (outputs, [])
        )
        return len(nbformat.writes(with_them).encode()) - len(nbformat.writes(without).encode())


def left_out(lines: list[str]) -> int:
    return sum(
        int(match[1].replace(",", ""))
        for match in map(re.compile("… ([0-9,]+) lines? left out").match, lines)
        if match
    )


def own(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("…")]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    return lambda **options: SavedRun(tmp_path / "run", monkeypatch, **options)


def test_a_run_that_prints_little_is_shown_whole(saved):
    run = saved(ranks=2)
    for number in range(3):
        for rank in range(2):
            run.write(rank, f"line {number}\n")
            run.write(rank, f"warning {number}\n", "stderr")
        run.show()
        assert run.lines(1)[-1] == f"line {number}", "while the run goes on"
    run.show(final=True)
    for rank in range(2):
        assert run.lines(rank) == ["line 0", "line 1", "line 2"]
        assert run.lines(rank, "stderr") == ["warning 0", "warning 1", "warning 2"]


@pytest.mark.parametrize(
    ("ranks", "line"), [(1, "x"), (2, "é" * 40), (8, '\x1b[31m\\"\t'), (3, "漢字" * 20)]
)
def test_every_stream_keeps_its_first_and_last_lines_and_counts_the_rest(saved, ranks, line):
    run, count = saved(ranks=ranks), 6_000
    for start in range(0, count, 1000):
        for rank in range(ranks):
            for stream in ("stdout", "stderr"):
                run.write(
                    rank,
                    "".join(f"{number} {line}\n" for number in range(start, start + 1000)),
                    stream,
                )
        run.show()
    run.show(final=True)
    for rank in range(ranks):
        for stream in ("stdout", "stderr"):
            lines = run.lines(rank, stream)
            shown = own(lines)
            assert (shown[0], shown[-1]) == (f"0 {line}", f"{count - 1} {line}")
            assert len(shown) + left_out(lines) == count
            gap = next(i for i, one in enumerate(lines) if "left out" in one)
            assert (
                0 < gap < len(lines) - 1
                and str(getattr(run.dir.rank(0, rank), stream)) in lines[gap]
            )
    assert run.size() <= 100_000


def test_the_path_of_the_log_is_shown_before_the_run_is_over(saved):
    run = saved(ranks=1)
    run.write(0, "".join(f"{number}\n" for number in range(10_000)))
    run.show()
    assert str(run.dir.rank(0, 0).stdout) in run.lines(0)[-1]
    run.write(0, "the end")
    run.show(final=True)
    assert run.lines(0)[-1] == "the end"


def test_all_attempts_share_one_limit(saved):
    run = saved(ranks=2)
    for attempt in range(5):
        for rank in range(2):
            run.write(rank, "".join(f"{attempt}: {number}\n" for number in range(5_000)))
        run.show()
        run.begin_attempt()
    run.show(final=True)
    for rank in range(2):
        lines = run.lines(rank)
        shown = own(lines)
        assert (shown[0], shown[-1], len(shown) + left_out(lines)) == ("0: 0", "4: 4999", 25_000)
        assert "/attempt_*/" in next(line for line in lines if "left out" in line)
    assert run.size() <= 100_000


def test_more_streams_than_there_is_room_for_are_counted(saved):
    run = saved(ranks=512)
    for rank in range(512):
        run.write(rank, "".join(f"{number}\n" for number in range(100)))
    run.show(final=True)
    text = "".join(text for _, text in run.pieces)
    shown = [rank for rank in range(512) if run.lines(rank)]
    assert 0 < len(shown) < 512
    lost = re.search(
        r"… ([0-9,]+) lines of ([0-9]+) more streams left out; all are in (\S+) …", text
    )
    assert (int(lost[1].replace(",", "")), int(lost[2]), lost[3]) == (
        100 * (512 - len(shown)),
        512 - len(shown),
        str(run.dir.path),
    )
    assert all(run.lines(rank)[0] == "0" and run.lines(rank)[-1] == "99" for rank in shown)
    assert run.size() <= 100_000


def test_a_long_line_is_cut_and_shows_how_much_is_missing(saved):
    run = saved(ranks=1)
    run.write(0, "a" * 3_000_000)
    run.show()
    run.write(0, "a" * 2_000_000 + "\nbetween\n" + "b" * 3_000_000 + "\n")
    run.show(final=True)
    first, last = run.lines(0)[0], run.lines(0)[-1]
    for line, size in ((first, 5_000_000), (last, 3_000_000)):
        shown, missing = re.fullmatch(r"([ab]+)… \(([0-9,]+) characters more\)", line).groups()
        assert len(shown) + int(missing.replace(",", "")) == size
    assert run.size() <= 100_000


@pytest.mark.parametrize("character", ["\x1b", "漢", "\\"])
def test_a_long_line_is_cut_by_its_size_in_the_notebook(saved, character):
    run = saved(ranks=1)
    for _ in range(2):
        run.write(0, character * 100_000 + "\n")
    run.show(final=True)
    assert len(run.lines(0)) == 3 and run.lines(0)[-1].startswith(character * 1000)
    assert run.size() <= 100_000


def test_only_the_last_state_of_a_progress_bar_is_kept(saved):
    run = saved(ranks=1)
    for step in range(100):
        run.write(0, f"\r{step}%", "stderr")
        run.show()
    run.write(0, "\n", "stderr")
    run.show(final=True)
    assert run.lines(0, "stderr") == ["99%"]


def test_a_log_that_is_too_big_to_be_read_is_left_out_too(saved, monkeypatch):
    monkeypatch.setattr(log_printer, "_MAX_FINAL_BYTES", 10_000)
    monkeypatch.setattr(log_printer, "_FINAL_TAIL_BYTES", 100)
    run = saved(ranks=1)
    run.write(0, "first\n")
    run.show()
    run.write(0, "x" * 3_000_000 + "\nlast\n")
    run.show(final=True)
    assert (run.lines(0)[0], run.lines(0)[-1]) == ("first", "last")
    assert "3 MB left out" in "".join(run.lines(0))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=300),
        ),
        max_size=400,
    ),
    st.sampled_from([0, 1_000, 5_000, 20_000]),
)
def test_every_line_is_shown_or_counted(printed, limit):
    excerpt = Excerpt(limit, Path("/run"))
    excerpt.begin_attempt(3)
    shown = []
    for rank, line in printed:
        shown.append(
            excerpt.add_line(
                rank, "stdout", "", Path(f"/run/attempt_0/{rank}/stdout.log"), f":{line}"
            )
        )
    shown += [text for _, text in excerpt.finish()]
    lines = "".join(shown).split("\n")
    counted = sum(
        int(match[1].replace(",", ""))
        for line in lines
        if (match := re.match("… ([0-9,]+) lines? ", line))
    )
    assert sum(line.startswith(":") for line in lines) + counted == len(printed)
