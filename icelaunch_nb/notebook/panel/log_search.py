"""Searches the logs of an attempt on disk: of all ranks, and what no page holds."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icelaunch_nb.notebook.panel.follower import STREAMS
from icelaunch_nb.rundir import RunDir

SHOWN = 200  # lines that come back, shared by the ranks
_LINE = 300  # characters of each
_SECONDS = 5.0  # after which it says how far it came
_PIECE = (
    1 << 20
)  # bytes that are looked at between two rests, so that the kernel's other threads get their turn
_REST = 0.001


@dataclass
class Found:
    """What was found.

    Attributes:
        lines: The first ones of each rank: rank, stream (0: stdout, 1: stderr), number of the line in its file from 1, text.
        counts: Lines that match, by rank.
        whole: Whether everything was looked at.
    """

    lines: list[tuple[int, int, int, str]] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    whole: bool = True


def search(run_dir: RunDir, attempt: Mapping[str, Any], text: str) -> Found:
    """Looks for a text in the stdout and stderr of all ranks of an attempt, small and large letters alike.

    Args:
        run_dir: The run directory.
        attempt: The journal's ``attempt`` event.
        text: What to look for, at least one character.
    """
    pattern = re.compile(re.escape(text.encode()), re.IGNORECASE)
    deadline = time.monotonic() + _SECONDS
    share = max(3, SHOWN // max(1, len(attempt["ranks"])))
    found = Found()
    for entry in attempt["ranks"]:
        rank, shown = entry["rank"], 0
        rank_dir = run_dir.rank(attempt["attempt"], entry["local_rank"])
        for stream, name in enumerate(STREAMS):
            for number, line in _matches(getattr(rank_dir, name), pattern):
                if number < 0 or time.monotonic() > deadline:
                    found.whole = False
                    return found
                found.counts[rank] = found.counts.get(rank, 0) + 1
                if shown < share:
                    shown += 1
                    found.lines.append((rank, stream, number, line[:_LINE]))
    return found


def _matches(path: Path, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, str]]:
    """Number and text of each line that matches; number -1, where reading it failed."""
    number, rest = 1, b""
    try:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                whole, newline, after = (rest + piece).rpartition(b"\n")
                if not newline and len(after) < _PIECE:
                    rest = after
                    continue
                data, rest = (whole, after) if newline else (after, b"")
                yield from _in_lines(data, number, pattern)
                number += data.count(b"\n") + bool(newline)
                time.sleep(_REST)
            yield from _in_lines(rest, number, pattern)
    except FileNotFoundError:
        return
    except OSError:
        yield -1, ""


def _in_lines(data: bytes, number: int, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, str]]:
    counted = at = 0
    while match := pattern.search(data, at):
        start = data.rfind(b"\n", 0, match.start()) + 1
        end = data.find(b"\n", match.end())
        end = len(data) if end < 0 else end
        number += data.count(b"\n", counted, start)
        counted = start
        yield (
            number,
            data[start:end]
            .rstrip(b"\r")
            .rpartition(b"\r")[2][: 4 * _LINE]
            .decode(errors="replace"),
        )
        at = end + 1
        if at > len(data):
            return
