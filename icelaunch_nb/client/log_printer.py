"""Shows the ranks' streams where somebody waits: each line with torch's prefix, no line broken by another rank's."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from icelaunch_nb.config import LaunchConfig, Std
from icelaunch_nb.rundir import RunDir

_CHUNK = 1 << 20
_LONG = (
    1 << 20
)  # an unfinished line of so many characters is shown as far as it got; held back, each look would copy it
_MOMENT = 0.05  # seconds that one look may take while ranks live
_MOST = 64 << 20  # bytes of one stream that are still shown after the end
_KEPT = 1 << 20
_QUIET = 0.25  # seconds after which an unfinished line is shown as far as it got
_BAR = 0.1  # seconds between two looks of a progress bar


@dataclass
class _Tail:
    """One stream of one rank in one attempt."""

    path: Path
    prefix: str
    console: str
    offset: int = 0
    line: str = ""  # what came after the last newline
    pending: bytes = b""  # the beginning of a character
    changed: float = 0.0
    left_out: Sequence[tuple[int, int]] = ()  # parts of the file that were shown elsewhere
    shown: str = ""  # how much of `line` the console shows, while this tail has its last line

    def read(self) -> str:
        """What is new."""
        try:
            with open(self.path, "rb") as file:
                data = self._read_on(file)
        except FileNotFoundError:
            return ""
        data = self.pending + data
        cut = _whole_characters(data)
        self.pending = data[cut:]
        return data[:cut].decode(errors="replace")

    def _read_on(self, file: BinaryIO) -> bytes:
        data = b""
        while len(data) < _CHUNK:
            while inside := [last for first, last in self.left_out if first <= self.offset < last]:
                self.offset = max(inside)
            file.seek(self.offset)
            new = file.read(
                min(
                    [
                        _CHUNK - len(data),
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
    r"""Prints what is new when it is asked to, in the thread that asks.

    Whole lines come at once. A line that isn't finished yet is held back, so that ranks can't break each other's lines; it is
    shown, and kept up to date, while no other rank's line is on the console's last line. So a single rank's progress bar
    (``\\r``) moves, and those of several ranks end up whole.
    """

    def __init__(self, run_dir: RunDir, config: LaunchConfig) -> None:
        self._dir, self._config = run_dir, config
        self._tails: list[_Tail] = []
        self._known = 0
        self._open: _Tail | None = None
        self._left_out: dict[Path, list[tuple[int, int]]] = {}

    def leave_out(self, path: Path, first: int, last: int) -> None:
        """Passes over a part of a log that was shown already, by a debugger's prompt.

        Args:
            path: The log.
            first: Where the part begins, in bytes.
            last: Where it ends.
        """
        self._left_out.setdefault(path, []).append((first, last))

    def has_shown(self, path: Path, size: int) -> bool:
        """Whether a log was printed up to `size` bytes."""
        return any(tail.path == path and tail.offset >= size for tail in self._tails)

    def show(self, attempts: Sequence[Mapping[str, Any]], *, final: bool) -> None:
        """Prints what came since the last call.

        Args:
            attempts: The journal's attempts so far.
            final: Whether nothing will come any more, so that unfinished lines are over, too.
        """
        texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        for attempt in attempts[self._known :]:
            self._show_new(texts, final=True)
            self._finish(texts)
            self._follow(attempt)
        self._known = len(attempts)
        self._show_new(texts, final=final)
        if final:
            self._finish(texts)
        else:
            self._show_unfinished(texts)
        _write(texts)

    def _show_new(self, texts: dict[str, list[str]], *, final: bool = False) -> None:
        """Reads on until nothing is new; while ranks live only for a moment, since they may print faster than anybody reads."""
        if final:
            self._skip_to_the_ends(texts)
        more, deadline = True, time.monotonic() + _MOMENT
        while more and (final or time.monotonic() < deadline):
            more = False
            for tail in self._tails:
                new = tail.read()
                if new:
                    more = more or len(new) >= _CHUNK // 4
                    self._take(tail, new, texts)
            if more:
                _write(texts)

    def _skip_to_the_ends(self, texts: dict[str, list[str]]) -> None:
        """Of what nobody has seen yet, shows the last of each stream and says what is on disk alone."""
        for tail in self._tails:
            try:
                left = tail.path.stat().st_size - tail.offset
            except FileNotFoundError:
                continue
            if left > _MOST:
                self._close(texts)
                skipped = (left - _KEPT) / 1e6
                texts[tail.console].append(
                    f"{tail.prefix}… {skipped:,.0f} MB more are in {tail.path} …\n"
                )
                tail.offset, tail.line, tail.pending, tail.shown = (
                    tail.offset + left - _KEPT,
                    "",
                    b"",
                    "",
                )

    def _follow(self, attempt: Mapping[str, Any]) -> None:
        self._tails = []
        for entry in attempt["ranks"]:
            local_rank = entry["local_rank"]
            shown, rank_dir = (
                self._config.shown(local_rank),
                self._dir.rank(attempt["attempt"], local_rank),
            )
            prefix = f"[{self._config.role}{local_rank}]:"
            if Std.OUT in shown:
                left_out = self._left_out.setdefault(rank_dir.stdout, [])
                self._tails.append(_Tail(rank_dir.stdout, prefix, "stdout", left_out=left_out))
            if Std.ERR in shown:
                self._tails.append(_Tail(rank_dir.stderr, prefix, "stderr"))

    def _take(self, tail: _Tail, new: str, texts: dict[str, list[str]]) -> None:
        *lines, rest = (tail.line + new).split("\n")
        for line in lines:
            if self._open is tail:
                texts[tail.console].append(self._rest_of(tail, line) + "\n")
                self._open, tail.shown = None, ""
            else:
                self._close(texts)
                texts[tail.console].append(_prefixed(tail.prefix, line) + "\n")
        tail.line, tail.changed = rest, time.monotonic()
        if len(rest) > _LONG:
            if self._open is not tail:
                self._close(texts)
            texts[tail.console].append(
                self._rest_of(tail, rest) if self._open is tail else _prefixed(tail.prefix, rest)
            )
            self._open, tail.line, tail.shown = tail, "", ""

    def _show_unfinished(self, texts: dict[str, list[str]]) -> None:
        now = time.monotonic()
        for tail in self._tails:
            if (
                not tail.line
                or tail.line == tail.shown
                or (self._open is not None and self._open is not tail)
            ):
                continue
            if now - tail.changed >= (_BAR if "\r" in tail.line else _QUIET) or (
                self._open is tail and "\r" in tail.line
            ):
                text = (
                    self._rest_of(tail, tail.line)
                    if self._open is tail
                    else _prefixed(tail.prefix, tail.line)
                )
                texts[tail.console].append(text)
                self._open, tail.shown = tail, tail.line

    def _rest_of(self, tail: _Tail, line: str) -> str:
        """What the console lacks of a line whose beginning it shows."""
        rest = line[len(tail.shown) :]
        head, carriage, last = rest.rpartition("\r")
        return "\r" + tail.prefix + last if carriage else head + last

    def _close(self, texts: dict[str, list[str]]) -> None:
        """Another line comes: what is on the console's last line stays there, and is shown again when it goes on."""
        if self._open is not None:
            texts[self._open.console].append("\n")
            self._open.shown = ""
            self._open = None

    def _finish(self, texts: dict[str, list[str]]) -> None:
        """Ends the lines that nobody will end any more."""
        for tail in self._tails:
            if tail.pending:
                tail.line += tail.pending.decode(errors="replace")
                tail.pending = b""
            if tail.line:
                self._take(tail, "\n", texts)
        self._close(texts)


def _prefixed(prefix: str, line: str) -> str:
    r"""The prefix before the line, and again wherever ``\\r`` goes back to its start; the last state of a bar only."""
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


def _whole_characters(data: bytes) -> int:
    """Length of the part of `data` that doesn't end inside a UTF-8 character."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if needed > back else len(data)
        if byte & 0x80 == 0:
            break
    return len(data)
