"""The view of all ranks: whole lines, unfinished lines below them, and no line of two ranks.

Playwright's node runs the front end.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright", reason="its node runs the front end")
NODE = Path(playwright.__file__).parent / "driver" / "node"
SOURCE = Path(__file__).parents[2] / "icelaunch_nb" / "notebook" / "frontend" / "src"
SCRIPT = f"""
import {{ AllRanksRenderer }} from "{SOURCE.as_uri()}/log_renderer.js";
import {{ createInterface }} from "node:readline";
let screen;
for await (const line of createInterface({{ input: process.stdin }})) {{
  const {{ fresh, parts, over, now }} = JSON.parse(line);
  if (fresh) screen = new AllRanksRenderer();
  console.log(JSON.stringify([screen.render(parts, over, now), screen.due(now) ?? null]));
}}
"""
TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|[\r\n]|[^\x1b\r\n]+")


class Terminal:
    """A terminal with the control sequences that the view uses."""

    def __init__(self):
        self.rows, self.row, self.column = [""], 0, 0

    def write(self, text):
        assert "".join(match[0] for match in TOKEN.finditer(text)) == text
        for match in TOKEN.finditer(text):
            if match[0] == "\n":
                self.row, self.column = self.row + 1, 0
                self.rows += [""] * (self.row + 1 - len(self.rows))
            elif match[0] == "\r":
                self.column = 0
            elif match[2] == "A":
                self.row -= int(match[1] or 1)
                assert self.row >= 0
            elif match[2] == "J":
                self.rows[self.row :] = [self.rows[self.row][: self.column]]
            elif match[2]:
                assert match[2] == "m" or match[1] == "?7", match[0]
            else:
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = (
                    row[: self.column] + match[0] + row[self.column + len(match[0]) :]
                )
                self.column += len(match[0])


@pytest.fixture(scope="module")
def node():
    with subprocess.Popen(
        [NODE, "--input-type=module", "-e", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def shows(node):
    """A function that renders one message and returns the terminal's rows.

    It takes the time in ms, and ``(rank, text)`` or ``(rank, text, "stderr" or "note")``.
    """
    terminal, rendered = Terminal(), []

    def show(now, *texts, over=False):
        parts = [
            {
                "seq": len(rendered),
                "rank": rank,
                "stream": int("stderr" in kind),
                "text": text,
                "note": "note" in kind,
            }
            for rank, text, *kind in texts
        ]
        node.stdin.write(
            json.dumps({"fresh": not rendered, "parts": parts, "over": over, "now": now}) + "\n"
        )
        node.stdin.flush()
        text, show.due = json.loads(node.stdout.readline())
        rendered.append(text)
        terminal.write(text)
        return [row.rstrip() for row in terminal.rows if row]

    return show


def test_a_last_line_without_a_newline_is_shown_and_stays(shows):
    assert shows(0, (0, "a line\ndying words"), (1, "other\n")) == ["[0]  a line", "[1]  other"]
    assert shows.due == 250
    assert shows(250) == ["[0]  a line", "[1]  other", "[0]  dying words"]
    assert shows.due is None
    assert shows(300, (1, "more\n")) == [
        "[0]  a line",
        "[1]  other",
        "[1]  more",
        "[0]  dying words",
    ], "still below"
    assert shows(400, over=True) == ["[0]  a line", "[1]  other", "[1]  more", "[0]  dying words"]
    assert shows(500, (1, "late\n"), over=True)[-2:] == ["[0]  dying words", "[1]  late"], (
        "a line as any other, now that the run is over"
    )


def test_a_line_that_is_completed_is_shown_once(shows):
    shows(0, (0, "loading ... "))
    assert shows(250) == ["[0]  loading ..."]
    assert shows(3000, (0, "done\n")) == ["[0]  loading ... done"]
    assert shows(9000, over=True) == ["[0]  loading ... done"]


def test_half_lines_of_a_flood_are_not_shown(shows):
    for now in range(0, 2000, 80):
        rows = shows(now, (0, "half\nother "))
    assert rows == ["[0]  half", *["[0]  other half"] * 24]


def test_bars_move_below_the_lines(shows):
    shows(0, (0, "\rbar 0%"), (1, "\rbar 1%"))
    assert shows(300, (0, "\rbar 10%"), (1, "\rbar 10%")) == ["[×2] bar 10%"]
    assert shows(400, (0, "\r\x1b[Kbar 20%\r"), (1, "a line\n")) == [
        "[1]  bar 10%a line",
        "[0]  bar 20%",
    ]
    assert shows(500, (0, "\rbar 100%\n")) == ["[1]  bar 10%a line", "[0]  bar 100%"]


def test_many_unfinished_lines_take_half_a_screen_at_most(shows):
    shows(0, *((rank, f"bar {rank}") for rank in range(64)))
    rows = shows(300)
    assert rows == [
        *(f"[{rank}]  bar {rank}" for rank in range(6)),
        "… and 58 more unfinished lines",
    ]
    assert shows(400, (9, "!\n"))[0] == "[9]  bar 9!"


def test_a_colour_reset_after_the_newline_is_no_line(shows):
    shows(0, (0, "\x1b[31mred\n\x1b[0m"))
    assert shows(300) == shows(400, over=True) == ["[0]  red"]


def test_a_very_long_line_is_not_lost(shows):
    assert shows(0, (0, "x" * 70_000)) == ["[0]  " + "x" * 70_000]
    assert shows(10, (0, "end\n"))[1:] == ["[0]  end"]


def test_a_progress_bar_without_a_newline_stays_one_line(shows):
    for now in range(0, 100_000, 1000):
        rows = shows(now, (0, f"\rbar {now} " + "#" * 900))
    assert [row[:14] for row in rows] == ["[0]  bar 99000"]


def test_a_gap_ends_the_line_before_it(shows):
    rows = shows(0, (0, "half a li"), (0, "… 1 MB skipped\n", "note"), (0, "ne 7\n"))
    assert rows == ["[0]  half a li", "[0]  … 1 MB skipped", "[0]  ne 7"]


@pytest.mark.parametrize(
    "order",
    [
        "\x1b[2A\x1b[J",
        "\x1b[A\x1b[2K",
        "\x1b[1B\x1b[3D\x1b[2C",
        "\x1b[2K\x1b[1G",
        "\b\b\b\b\b\b\b\b\b",
    ],
)
def test_a_rank_that_moves_its_cursor_leaves_the_others_lines_alone(shows, order):
    shows(0, (1, "one\n"), (2, "two\n"))
    assert shows(1, (0, f"{order}\x1b[31mzero\x1b[0m\n"), (1, "three\n")) == [
        "[1]  one",
        "[2]  two",
        "[0]  zero",
        "[1]  three",
    ]
    shows(2, (0, f"bar{order}"))
    assert shows(500)[:4] == ["[1]  one", "[2]  two", "[0]  zero", "[1]  three"]


def test_a_ranks_prefix_is_separated_from_its_text(shows):
    rows = shows(
        0, (18, "loss 80\n"), *((rank, "alike\n") for rank in range(12)), (3, "alike\n", "stderr")
    )
    assert rows == ["[18] loss 80", "[×12] alike", "[3]  alike"]


def test_no_more_lines_are_drawn_than_a_terminal_holds(shows):
    assert shows(0, (0, "".join(f"{number}\n" for number in range(12_000))), (1, "last\n")) == [
        *(f"[0]  {number}" for number in range(2_001, 12_000)),
        "[1]  last",
    ]
