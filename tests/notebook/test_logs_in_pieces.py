"""The front end's logs, fuzzed: bytes may be cut anywhere, be sent again, and overlap.

The text on the screen and the offsets stay the same. Playwright's node runs the front end.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

playwright = pytest.importorskip("playwright", reason="its node runs the front end")
NODE = Path(playwright.__file__).parent / "driver" / "node"
SOURCE = Path(__file__).parents[2] / "icelaunch_nb" / "notebook" / "frontend" / "src"
SCRIPT = f"""
import {{ Logs }} from "{SOURCE.as_uri()}/logs.js";
import {{ RankRenderer }} from "{SOURCE.as_uri()}/log_renderer.js";
import {{ createInterface }} from "node:readline";
for await (const line of createInterface({{ input: process.stdin }})) {{
  const logs = new Logs();
  const before = [];
  logs.folder = (attempt, rank) => `/runs/attempt_${{attempt}}/${{rank}}`;
  for (const [stream, start, text, older] of JSON.parse(line)) {{
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    if (older) before.push(logs.missingBefore(0, 0) ?? null);
    const chunks = [[0, 0, stream, start, bytes.length]];
    logs[older ? "receiveOlder" : "receive"](chunks, new DataView(bytes.buffer));
  }}
  const log = logs.logs.get("0/0") ?? {{ parts: [], streams: [] }};
  console.log(JSON.stringify({{
    screen: new RankRenderer().render(log.parts), offsets: log.streams.map((s) => s?.next ?? 0),
    texts: [0, 1].map((n) => log.parts.filter((p) => p.stream === n).map((p) => p.text).join("")),
    unfinished: log.streams.map((s) => s?.sanitiser.unfinished ?? ""),
    notes: log.parts.filter((p) => p.note).length, before,
  }}));
}}
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# The contents of logs: words, line ends, progress bars, colours, other control sequences,
# characters of several bytes, random bytes.
PIECES = st.one_of(
    st.sampled_from(
        [
            b"loss=0.25 ",
            b"\n",
            b"\r",
            b"\r\n",
            b"\x1b[31m",
            b"\x1b[0m",
            b"\x1b[2K",
            b"\x1b[1A",
            b"\x1b]0;title\x07",
            b"\x1b[?25l",
            b"\x1b]8;;http://x\x1b\\",
            b"\x1bP1;2|x\x1b\\",
            b"\x1b",
            b"\x1b(B",
            b"\x07",
            "ü→漢🙂".encode(),
            "🙂".encode()[:3],
            b"\xc2\x9b31m",
        ]
    ),
    st.binary(max_size=6),
)
BYTES = st.lists(PIECES, max_size=14).map(b"".join)


@pytest.fixture(scope="module")
def node():
    with subprocess.Popen(
        [NODE, "--input-type=module", "-e", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def show(*chunks):
            message = [
                (stream, start, base64.b64encode(data).decode(), *older)
                for stream, start, data, *older in chunks
            ]
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield show
        process.stdin.close()


def pieces(data: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [(start, data[start:end]) for start, end in itertools.pairwise(at)]


@given(BYTES, st.lists(st.integers(0, 500), max_size=12))
@settings(deadline=None, max_examples=300)
def test_any_split_gives_the_same_text_and_offset(node, data, cuts):
    whole = node((0, 0, data)) if data else node()
    assert node(*((0, start, piece) for start, piece in pieces(data, cuts))) == whole
    assert whole["offsets"] == ([len(data)] if data else [])
    assert node(*((0, start, data[start : start + 1]) for start in range(len(data)))) == whole, (
        "byte by byte"
    )


@given(BYTES, st.lists(st.integers(0, 500), max_size=6), st.lists(st.integers(0, 6), max_size=6))
@settings(deadline=None, max_examples=150)
def test_bytes_that_are_sent_again_change_nothing(node, data, cuts, again):
    """A view that opens later has the kernel send the last megabyte once more, in other pieces."""
    parts, sent = pieces(data, cuts), []
    for number, (start, piece) in enumerate(parts):
        sent.append((0, start, piece))
        for back in again:
            if back <= number:
                first = parts[number - back][0]
                sent.append((0, first, data[first : start + len(piece)]))
    assert node(*sent) == (node((0, 0, data)) if data else node())


@given(
    BYTES,
    BYTES,
    st.lists(st.integers(0, 500), max_size=6),
    st.lists(st.integers(0, 500), max_size=6),
)
@settings(deadline=None, max_examples=150)
def test_two_interleaved_streams_each_keep_their_text(node, out, err, out_cuts, err_cuts):
    turns = [
        *((0, *piece) for piece in pieces(out, out_cuts)),
        *((1, *piece) for piece in pieces(err, err_cuts)),
    ]
    turns.sort(key=lambda turn: (turn[1], turn[0]))
    together, alone = (
        node(*turns),
        [node((stream, 0, data)) if data else node() for stream, data in ((0, out), (1, err))],
    )
    assert together["texts"] == [alone[0]["texts"][0], alone[1]["texts"][1]]
    shown = COLOUR.sub("", together["screen"])
    for text in together["texts"]:
        letters = iter(shown)
        assert all(letter in letters for letter in COLOUR.sub("", text)), (
            "in order, and nothing left out"
        )


@given(BYTES.filter(bool), st.integers(1, 10**9))
@settings(deadline=None, max_examples=50)
def test_a_gap_is_noted_once_and_the_offset_continues_after_it(node, data, gap):
    found = node((0, gap, data))
    assert (found["notes"], found["offsets"]) == (1, [gap + len(data)])


def test_older_lines_come_before_those_that_the_page_holds(node):
    found = node(
        (0, 12, b"three\n"),
        (1, 5, b"error\n"),
        (0, 5, "zwölf\n".encode(), "older"),
        (0, 18, b"four\n"),
    )
    assert found["before"] == [[12, 5]], "the beginnings of both streams are requested"
    assert (
        found["texts"][0]
        == "… 5 B before this, on disk: /runs/attempt_0/0/stdout.log\nzwölf\nthree\nfour\n"
    )
    assert found["notes"] == 2, "and stderr's"
    assert found["offsets"] == [23, 11]


def test_older_lines_are_requested_once_and_only_where_there_are_some(node):
    assert node((0, 0, b"all\n"), (0, 0, b"x", "older"))["before"] == [None]
    again = node((0, 9, b"new\n"), (0, 5, b"old\n", "older"), (0, 5, b"old\n", "older"))
    assert again["before"] == [[9, 0], None]
    assert (
        again["texts"][0] == "… 5 B before this, on disk: /runs/attempt_0/0/stdout.log\nold\nnew\n"
    )
    enough = node((0, 9, b"x" * 300_000), (0, 5, b"old\n", "older"))
    assert enough["before"] == [None]


def test_charsets_show_nothing(node):
    assert (
        node((0, 0, b"\x1b[1mbold\x1b(B\x1b[m \x1b)0\x1b%Gplain"))["texts"][0]
        == "\x1b[1mbold\x1b[m plain"
    )
