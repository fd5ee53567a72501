"""Limits the ranks' output in a notebook that is executed without a browser.

nbclient, papermill and nbconvert save all that a cell prints. The notebook keeps the first and the
last lines of each stream. All lines are on disk.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Bytes that a stream gets at least. If the limit is too small for all streams, some are shown and
# the lines of the others are counted.
_MIN_STREAM_BYTES = 1_000
# Bytes that a line takes beside its text: indentation, quotes, a comma, both newlines.
_LINE_OVERHEAD = 14
# Bytes that each output of a stream takes in a notebook beside its lines.
_OUTPUT_OVERHEAD = 170
# Characters of the line that says what was left out, beside the path.
_NOTICE_LENGTH = 90
# Bytes of the text that replaces the rest of a line.
_CLIP_NOTICE_BYTES = 40


def has_no_front_end() -> bool:
    """Whether this cell is executed without a front end: its request forbids stdin.

    ``allow_stdin`` is true for JupyterLab, VS Code and consoles. It is false for nbclient and the
    tools that use it.
    """
    ipython: Any = sys.modules.get("IPython.core.getipython")
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
    try:
        request: Any = kernel.get_parent("shell")  # type: ignore[union-attr]
        return request["content"]["allow_stdin"] is False
    # There is no kernel, another kernel than ipykernel, or no request of a cell.
    except (AttributeError, LookupError, TypeError):
        return False


@dataclass
class _Stream:
    """One stream of one local rank, through all attempts.

    Attributes:
        console: ``stdout`` or ``stderr``.
        prefix: The prefix of each line.
        path: The log.
        first: Bytes that are left for the first lines.
        room: Bytes for the last lines.
        last: The last lines so far.
        size: Characters of `last`.
        started: Whether a line is shown.
        full: Whether all first lines are shown, so that further lines are kept in `last`.
        lines: Number of lines left out.
        skipped: Number of bytes left out without being read.
    """

    console: str
    prefix: str
    path: str
    first: int
    room: int
    last: deque[str] = field(default_factory=deque)
    size: int = 0
    started: bool = False
    full: bool = False
    lines: int = 0
    skipped: int = 0

    def keep(self, line: str, cut: int) -> None:
        if cut or len(line) > self.room:
            line = _clip(line, self.room, cut)
        self.last.append(line)
        self.size += len(line)
        while self.size > self.room:
            self.size -= len(self.last.popleft())
            self.lines += 1

    def skip(self, size: int) -> None:
        self.lines += len(self.last)
        self.last.clear()
        self.size = 0
        self.skipped += size

    def trim_last(self) -> None:
        """Drops lines of `last` that don't fit: it was measured in characters, not in bytes."""
        left, kept = self.room, 0
        if self.last:
            self.last[-1] = _clip(self.last[-1], self.room)
        for line in reversed(self.last):
            left -= _cost(line)
            if left < 0 and kept:
                break
            kept += 1
        while len(self.last) > kept:
            self.last.popleft()
            self.lines += 1


class Excerpt:
    """Sorts lines into those to show now, those to show at the end, and those to leave out.

    Args:
        limit: Bytes that all streams together may take in a saved notebook.
        log_dir: The run directory.
    """

    def __init__(self, limit: int, log_dir: Path) -> None:
        self._bytes_left, self._limit, self._log_dir = limit, limit, log_dir
        self._share = limit
        # None: the lines of this stream are counted only.
        self._streams: dict[tuple[int, str], _Stream | None] = {}
        self._attempts = 0
        # Lines of the streams that are counted only, by console.
        self._omitted_lines: dict[str, int] = {}
        self._omitted_bytes = 0

    def begin_attempt(self, streams: int) -> None:
        """Shares the limit among the streams of an attempt.

        Args:
            streams: Number of streams of all ranks.
        """
        self._attempts += 1
        self._share = max(_MIN_STREAM_BYTES, self._limit // max(1, streams))

    def add_line(
        self,
        local_rank: int,
        console: str,
        prefix: str,
        path: Path,
        line: str,
        *,
        cut: int = 0,
        new_output: bool = False,
    ) -> str:
        """Adds a line of a stream.

        Args:
            local_rank: The rank.
            console: ``stdout`` or ``stderr``.
            prefix: The prefix of the line.
            path: The log.
            line: The line, with its prefix.
            cut: Number of characters that the line has lost at its end.
            new_output: Whether the line would begin a new output of the notebook.

        Returns:
            The text to show now.
        """
        stream = self._stream(local_rank, console, prefix, path)
        if stream is None:
            text = (
                ""
                if self._omitted_lines
                else f"… further ranks' lines are in {self._log_dir} alone …\n"
            )
            self._omitted_lines[console] = self._omitted_lines.get(console, 0) + 1
            return text
        text = ""
        if not stream.full:
            cost = _cost(line) + _OUTPUT_OVERHEAD * new_output
            if cost <= stream.first and not cut:
                stream.first -= cost
                stream.started = True
                return line + "\n"
            if not stream.started:
                stream.started = stream.full = True
                return _clip(line, stream.first, cut) + "\n" + self._omission_notice(stream)
            text = self._omission_notice(stream)
        stream.keep(line, cut)
        return text

    def skip(self, local_rank: int, console: str, prefix: str, path: Path, size: int) -> str:
        """Adds a part of a log that is too big to be read.

        Args:
            local_rank: The rank.
            console: ``stdout`` or ``stderr``.
            prefix: The prefix of the stream's lines.
            path: The log.
            size: Length of the part, in bytes.

        Returns:
            The text to show now.
        """
        stream = self._stream(local_rank, console, prefix, path)
        if stream is None:
            self._omitted_bytes += size
            return ""
        text = "" if stream.full else self._omission_notice(stream)
        stream.skip(size)
        return text

    def finish(self) -> Iterator[tuple[str, str]]:
        """Yields the console and the text of all that is left to show when the run is over."""
        for stream in filter(None, self._streams.values()):
            stream.trim_last()
            if stream.lines or stream.skipped:
                yield (
                    stream.console,
                    f"{stream.prefix}… {_format_amount(stream.lines, stream.skipped)} left out; "
                    f"all are in {stream.path} …\n",
                )
            if stream.last:
                yield stream.console, "\n".join(stream.last) + "\n"
            stream.last.clear()
            stream.size = stream.lines = stream.skipped = 0
        if self._omitted_lines or self._omitted_bytes:
            count = sum(stream is None for stream in self._streams.values())
            amount = _format_amount(sum(self._omitted_lines.values()), self._omitted_bytes)
            yield (
                next(iter(self._omitted_lines), "stdout"),
                f"… {amount} of {count} more streams left out; all are in {self._log_dir} …\n",
            )
            self._omitted_lines, self._omitted_bytes = {}, 0

    def _stream(self, local_rank: int, console: str, prefix: str, path: Path) -> _Stream | None:
        key = local_rank, console
        if key not in self._streams:
            fits = self._bytes_left >= self._share
            notice = _NOTICE_LENGTH + _LINE_OVERHEAD + len(prefix) + len(str(path))
            room = max(100, (self._share - 2 * notice) // 2)
            self._streams[key] = _Stream(console, prefix, str(path), room, room) if fits else None
            self._bytes_left -= self._share * fits
        stream = self._streams[key]
        if stream is not None and self._attempts > 1:
            stream.path = str(self._log_dir / "attempt_*" / path.relative_to(path.parent.parent))
        return stream

    def _omission_notice(self, stream: _Stream) -> str:
        stream.full = True
        return (
            f"{stream.prefix}… the last lines follow once the run is over; "
            f"all are in {stream.path} …\n"
        )


def _clip(line: str, most: int, cut: int = 0) -> str:
    """Shortens a line that takes too many bytes, and says how much is missing.

    Args:
        line: The line.
        most: The most bytes that it may take.
        cut: Number of characters that it has lost before.
    """
    if not cut and _cost(line) <= most:
        return line
    most, kept = max(0, most - _CLIP_NOTICE_BYTES), len(line)
    while kept and (cost := _cost(line[:kept])) > most:
        kept = min(kept - 1, kept * most // cost)
    return f"{line[:kept]}… ({len(line) - kept + cut:,} characters more)"


def _cost(line: str) -> int:
    return len(json.dumps(line, ensure_ascii=False).encode(errors="replace")) + _LINE_OVERHEAD


def _format_amount(lines: int, skipped: int) -> str:
    text = [f"{lines:,} line{'s' * (lines != 1)}"] if lines else []
    return " and ".join([*text, *([f"{skipped / 1e6:,.0f} MB"] if skipped else [])])
