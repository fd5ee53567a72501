"""Prints the ranks' streams: torch's prefix on each line, and no rank breaks another's line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from icelaunch_nb.client.log_excerpt import Excerpt
from icelaunch_nb.config import LaunchConfig, Std
from icelaunch_nb.rundir.journal_events import AttemptStarted
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.system.plaintext import one_line

_READ_SIZE = 1 << 20
# An unfinished line of more characters is printed so far. Each read would copy it otherwise.
_MAX_HELD_LINE = 1 << 20
# Seconds that one call may read while ranks live.
_MAX_READ_SECONDS = 0.05
# The most unprinted bytes of a stream that are printed whole after the end.
_MAX_FINAL_BYTES = 64 << 20
# Bytes at the end of a stream that are printed if more is left.
_FINAL_TAIL_BYTES = 1 << 20
# Seconds after which an unfinished line is printed so far.
_UNFINISHED_DELAY = 0.25
# Seconds between two updates of a progress bar.
_BAR_INTERVAL = 0.1


@dataclass
class _Tail:
    """One stream of one rank in one attempt.

    Attributes:
        path: The log.
        local_rank: The rank.
        open_log: Opens the log.
        prefix: The prefix of each line.
        console: ``stdout`` or ``stderr``.
        offset: Bytes read so far.
        line: The text since the last newline.
        pending: The bytes of an incomplete UTF-8 character.
        changed: When `line` last changed, as `time.monotonic` counts.
        left_out: Start and end of each part of the log that is shown elsewhere, in bytes.
        shown: The part of `line` that is on the console's last line, if this tail owns that.
        cut: Number of characters missing at the end of `line`. For an excerpt only.
    """

    path: Path
    local_rank: int
    open_log: Callable[[Path], int]
    prefix: str
    console: str
    offset: int = 0
    line: str = ""
    pending: bytes = b""
    changed: float = 0.0
    left_out: Sequence[tuple[int, int]] = ()
    shown: str = ""
    cut: int = 0

    def read(self) -> str:
        """Reads what is new."""
        try:
            if (
                not self.pending
                and os.stat(self.path, follow_symlinks=False).st_size <= self.offset
            ):
                return ""
            with open(self.open_log(self.path), "rb") as file:
                data = self._read_bytes(file)
        # The log isn't there yet, was removed, or isn't a file.
        except OSError:
            return ""
        data = self.pending + data
        cut = _complete_utf8_length(data)
        self.pending = data[cut:]
        return data[:cut].decode(errors="replace")

    def _read_bytes(self, file: BinaryIO) -> bytes:
        data = b""
        while len(data) < _READ_SIZE:
            while inside := [last for first, last in self.left_out if first <= self.offset < last]:
                self.offset = max(inside)
            file.seek(self.offset)
            new = file.read(
                min(
                    [
                        _READ_SIZE - len(data),
                        *(first - self.offset for first, _ in self.left_out if first > self.offset),
                    ]
                )
            )
            if not new:
                break
            data += new
            self.offset += len(new)
        return data


class Printer:
    r"""Prints what is new, in the thread that calls `show`.

    A whole line is printed at once. An unfinished line is held back, so that ranks can't break each
    other's lines. It is printed and kept up to date as long as no other rank needs the console's
    last line. So a single rank's progress bar (``\\r``) moves, and those of several ranks end up
    whole.

    Args:
        run_dir: The run directory.
        config: Which streams are shown.
        excerpt: Limits the output where there is no front end. Lines are printed when they are
            whole.

    Attributes:
        changed: When something new was last found, or the printer was made, as `time.monotonic`
            counts.
    """

    def __init__(
        self, run_dir: RunDir, config: LaunchConfig, excerpt: Excerpt | None = None
    ) -> None:
        self._dir, self._config, self._excerpt = run_dir, config, excerpt
        self.changed = time.monotonic()
        self._tails: list[_Tail] = []
        self._attempts_seen = 0
        self._open_tail: _Tail | None = None
        self._left_out: dict[Path, list[tuple[int, int]]] = {}

    def skip(self, path: Path, first: int, last: int) -> None:
        """Leaves out a part of a log that a debugger's prompt has shown.

        Args:
            path: The log.
            first: Start of the part, in bytes.
            last: End of the part, in bytes.
        """
        self._left_out.setdefault(path, []).append((first, last))

    def has_shown(self, path: Path, size: int) -> bool:
        """Whether a log was printed up to `size` bytes."""
        return any(tail.path == path and tail.offset >= size for tail in self._tails)

    def show(
        self, attempts: Sequence[AttemptStarted], *, final: bool, at_once: bool = True
    ) -> bool:
        """Prints what is new since the last call.

        Args:
            attempts: The journal's attempts so far.
            final: Whether the run is over, so that unfinished lines end too.
            at_once: Whether a final call prints all that is left, however long that takes.

        Returns:
            Whether a final call has printed all.
        """
        texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        for attempt in attempts[self._attempts_seen :]:
            self._print_new(texts, final=True)
            self._end_unfinished_lines(texts)
            self._follow(attempt)
            self.changed = time.monotonic()
        self._attempts_seen = len(attempts)
        done = self._print_new(texts, final=final, at_once=at_once)
        if final and done:
            self._end_unfinished_lines(texts)
            for console, text in self._excerpt.finish() if self._excerpt else ():
                texts[console].append(text)
        elif not final and self._excerpt is None:
            self._print_unfinished(texts)
        _write(texts)
        return final and done

    def _print_new(
        self, texts: dict[str, list[str]], *, final: bool = False, at_once: bool = True
    ) -> bool:
        """Reads and prints until nothing is new.

        It stops after a moment unless `final` and `at_once`. Ranks may print faster than it reads.

        Returns:
            Whether nothing was left.
        """
        if final:
            self._skip_to_tails(texts)
        more, deadline = True, time.monotonic() + _MAX_READ_SECONDS
        while more:
            more = False
            for tail in self._tails:
                new = tail.read()
                if new:
                    self.changed = time.monotonic()
                    more = more or len(new) >= _READ_SIZE // 4
                    self._add_text(tail, new, texts)
            if more:
                _write(texts)
            if not (final and at_once) and time.monotonic() >= deadline:
                break
        return not more

    def _skip_to_tails(self, texts: dict[str, list[str]]) -> None:
        """Skips to the end of each stream that has too much left, and says how much is on disk."""
        for tail in self._tails:
            try:
                left = tail.path.stat().st_size - tail.offset
            except OSError:
                continue
            if left > _MAX_FINAL_BYTES:
                self._end_open_line(texts)
                if self._excerpt is not None:
                    text = self._excerpt.skip(
                        tail.local_rank,
                        tail.console,
                        tail.prefix,
                        tail.path,
                        left - _FINAL_TAIL_BYTES,
                    )
                else:
                    text = (
                        f"{tail.prefix}… {(left - _FINAL_TAIL_BYTES) / 1e6:,.0f} MB more "
                        f"are in {one_line(tail.path)} …\n"
                    )
                texts[tail.console].append(text)
                tail.offset += left - _FINAL_TAIL_BYTES
                tail.line, tail.pending, tail.shown = "", b"", ""

    def _follow(self, attempt: AttemptStarted) -> None:
        self._tails = []
        for entry in attempt.ranks:
            local_rank = entry.local_rank
            shown = self._config.shown(local_rank)
            rank_dir = self._dir.rank(attempt.attempt, local_rank, entry.node)
            prefix = one_line(f"[{self._config.role}{local_rank}]:")
            if Std.OUT in shown:
                left_out = self._left_out.setdefault(rank_dir.stdout, [])
                self._tails.append(
                    _Tail(
                        rank_dir.stdout,
                        local_rank,
                        self._dir.open_log,
                        prefix,
                        "stdout",
                        left_out=left_out,
                    )
                )
            if Std.ERR in shown:
                self._tails.append(
                    _Tail(rank_dir.stderr, local_rank, self._dir.open_log, prefix, "stderr")
                )
        if self._excerpt is not None:
            self._excerpt.begin_attempt(len(self._tails))

    def _add_text(self, tail: _Tail, new: str, texts: dict[str, list[str]]) -> None:
        *lines, rest = (tail.line + new).split("\n")
        if self._excerpt is not None:
            self._add_excerpt_lines(self._excerpt, tail, lines, texts[tail.console])
            tail.line = rest[:_MAX_HELD_LINE]
            tail.cut += max(0, len(rest) - _MAX_HELD_LINE)
            return
        for line in lines:
            if self._open_tail is tail:
                texts[tail.console].append(self._unshown_part(tail, line) + "\n")
                self._open_tail, tail.shown = None, ""
            else:
                self._end_open_line(texts)
                texts[tail.console].append(_add_prefix(tail.prefix, line) + "\n")
        tail.line, tail.changed = rest, time.monotonic()
        if len(rest) > _MAX_HELD_LINE:
            if self._open_tail is not tail:
                self._end_open_line(texts)
            texts[tail.console].append(
                self._unshown_part(tail, rest)
                if self._open_tail is tail
                else _add_prefix(tail.prefix, rest)
            )
            self._open_tail, tail.line, tail.shown = tail, "", ""

    def _add_excerpt_lines(
        self, excerpt: Excerpt, tail: _Tail, lines: Sequence[str], texts: list[str]
    ) -> None:
        for line in lines:
            whole = _add_prefix(tail.prefix, line)
            text = excerpt.add_line(
                tail.local_rank,
                tail.console,
                tail.prefix,
                tail.path,
                whole,
                cut=tail.cut,
                new_output=not texts,
            )
            if text:
                texts.append(text)
            tail.cut = 0

    def _print_unfinished(self, texts: dict[str, list[str]]) -> None:
        now = time.monotonic()
        for tail in self._tails:
            if not tail.line or tail.line == tail.shown:
                continue
            if self._open_tail is not None and self._open_tail is not tail:
                continue
            is_open, is_bar = self._open_tail is tail, "\r" in tail.line
            delay = _BAR_INTERVAL if is_bar else _UNFINISHED_DELAY
            if now - tail.changed >= delay or (is_open and is_bar):
                if is_open:
                    text = self._unshown_part(tail, tail.line)
                else:
                    text = _add_prefix(tail.prefix, tail.line)
                texts[tail.console].append(text)
                self._open_tail, tail.shown = tail, tail.line

    def _unshown_part(self, tail: _Tail, line: str) -> str:
        """The part of a line that the console lacks, if it shows the line's beginning."""
        rest = line[len(tail.shown) :]
        head, carriage, last = rest.rpartition("\r")
        return "\r" + tail.prefix + last if carriage else head + last

    def _end_open_line(self, texts: dict[str, list[str]]) -> None:
        """Ends the console's last line before another line. It is shown again when it goes on."""
        if self._open_tail is not None:
            texts[self._open_tail.console].append("\n")
            self._open_tail.shown = ""
            self._open_tail = None

    def _end_unfinished_lines(self, texts: dict[str, list[str]]) -> None:
        """Ends the lines that no rank will end."""
        for tail in self._tails:
            if tail.pending:
                tail.line += tail.pending.decode(errors="replace")
                tail.pending = b""
            if tail.line:
                self._add_text(tail, "\n", texts)
        self._end_open_line(texts)


def _add_prefix(prefix: str, line: str) -> str:
    r"""Adds the prefix. Of a line that ``\\r`` rewrites, such as a bar, the last state remains."""
    if "\r" not in line:
        return prefix + line
    states = [state for state in line.split("\r") if state]
    return prefix + (states[-1] if states else "")


def _write(texts: dict[str, list[str]]) -> None:
    consoles: dict[str, TextIO | None] = {"stdout": sys.stdout, "stderr": sys.stderr}
    for name, console in consoles.items():
        if texts[name] and console is not None:
            text = "".join(texts[name])
            try:
                console.write(text)
            except UnicodeEncodeError:
                encoding = console.encoding or "ascii"
                console.write(text.encode(encoding, "backslashreplace").decode(encoding))
            console.flush()
            texts[name].clear()


def _complete_utf8_length(data: bytes) -> int:
    """The number of bytes of `data` before an incomplete UTF-8 character at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if needed > back else len(data)
        if byte & 0x80 == 0:
            break
    return len(data)
