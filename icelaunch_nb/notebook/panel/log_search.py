"""Searches all ranks' logs of an attempt on disk, including what no page holds."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from icelaunch_nb.notebook.panel.log_follower import STREAMS
from icelaunch_nb.rundir.journal_events import AttemptStarted
from icelaunch_nb.rundir.paths import RunDir

# Lines that a search returns. The ranks share them.
MAX_LINES = 200
# Characters of each of these lines.
_MAX_LINE_LENGTH = 300
# Seconds after which a search returns what it has found.
_TIME_LIMIT = 5.0
# After so many bytes, a search sleeps, so that the kernel's other threads can run.
_PIECE_SIZE = 1 << 20
# Seconds that it sleeps.
_PAUSE = 0.001


@dataclass
class SearchResult:
    """The lines that match.

    Attributes:
        lines: The first matching lines of each rank: rank, stream (0: stdout, 1: stderr), line
            number in the file from 1, and text.
        counts: The number of matching lines by rank.
        complete: Whether everything was searched.
    """

    lines: list[tuple[int, int, int, str]] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    complete: bool = True


def search(run_dir: RunDir, attempt: AttemptStarted, text: str) -> SearchResult:
    """Searches the stdout and stderr of all ranks of an attempt, ignoring case.

    Args:
        run_dir: The run directory.
        attempt: The attempt.
        text: The text to search, at least one character.

    Returns:
        The matching lines. They are incomplete after 5 s, or where a file can't be read.
    """
    pattern = re.compile(re.escape(text.encode()), re.IGNORECASE)
    deadline = time.monotonic() + _TIME_LIMIT
    share = max(3, MAX_LINES // max(1, len(attempt.ranks)))
    found = SearchResult()
    for entry in attempt.ranks:
        rank, shown = entry.rank, 0
        rank_dir = run_dir.rank(attempt.attempt, entry.local_rank, entry.node)
        for stream, name in enumerate(STREAMS):
            for number, line in _matches(getattr(rank_dir, name), run_dir.open_log, pattern):
                if number < 0 or time.monotonic() > deadline:
                    found.complete = False
                    return found
                found.counts[rank] = found.counts.get(rank, 0) + 1
                if shown < share:
                    shown += 1
                    found.lines.append((rank, stream, number, line[:_MAX_LINE_LENGTH]))
    return found


def _matches(
    path: Path, open_log: Callable[[Path], int], pattern: re.Pattern[bytes]
) -> Iterator[tuple[int, str]]:
    """The number and text of each matching line. The number is -1 where reading failed."""
    number, rest = 1, b""
    try:
        with open(open_log(path), "rb") as file:
            while piece := file.read(_PIECE_SIZE):
                whole, newline, after = (rest + piece).rpartition(b"\n")
                if not newline and len(after) < _PIECE_SIZE:
                    rest = after
                    continue
                data, rest = (whole, after) if newline else (after, b"")
                yield from _matching_lines(data, number, pattern)
                number += data.count(b"\n") + bool(newline)
                time.sleep(_PAUSE)
            yield from _matching_lines(rest, number, pattern)
    except FileNotFoundError:
        return
    except OSError:
        yield -1, ""


def _matching_lines(
    data: bytes, number: int, pattern: re.Pattern[bytes]
) -> Iterator[tuple[int, str]]:
    counted = at = 0
    while match := pattern.search(data, at):
        start = data.rfind(b"\n", 0, match.start()) + 1
        end = data.find(b"\n", match.end())
        end = len(data) if end < 0 else end
        number += data.count(b"\n", counted, start)
        counted = start
        # What follows the last carriage return is what a terminal shows. UTF-8 has up to 4 bytes a
        # character.
        shown = data[start:end].rstrip(b"\r").rpartition(b"\r")[2]
        yield number, shown[: 4 * _MAX_LINE_LENGTH].decode(errors="replace")
        at = end + 1
        if at > len(data):
            return
