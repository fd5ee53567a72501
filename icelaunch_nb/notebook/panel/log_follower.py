"""Follows the logs of a run's ranks for a panel.

Each log gets a fair share of the bytes that may be sent. When too much is unsent, the oldest bytes
are skipped.

A chunk contains its offset in the file. So the receiver recognises bytes that come twice, and sees
skipped bytes as a gap.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from icelaunch_nb.rundir.journal_events import AttemptStarted
from icelaunch_nb.rundir.paths import RunDir

# Unsent bytes of all logs together. Above this, the oldest bytes are skipped.
MAX_BACKLOG = 1 << 20
# The newest bytes of all logs together that are then sent.
KEPT_BACKLOG = 1 << 18
# Bytes in which the beginning of a line is searched.
_LINE_SEARCH = 4096
STREAMS = ("stdout", "stderr")


@dataclass(frozen=True)
class Chunk:
    """Some bytes of a rank's log, and their offset in the file."""

    attempt: int
    rank: int
    stream: str
    start: int
    data: bytes


@dataclass
class _Log:
    """The log of one stream of one rank in one attempt.

    Attributes:
        attempt: The attempt's number.
        rank: The rank.
        stream: ``stdout`` or ``stderr``.
        path: The file.
        open_log: Opens the file, and returns its descriptor.
        size: The file's size in bytes, as last polled.
        last_write: When the file was last written, in seconds since the epoch.
        sent: The offset up to which the file was sent or skipped.
    """

    attempt: int
    rank: int
    stream: str
    path: Path
    open_log: Callable[[Path], int]
    size: int = 0
    last_write: float = 0.0
    sent: int = 0

    def poll(self) -> None:
        try:
            found = os.stat(self.path)
        except OSError:
            return
        self.size, self.last_write = found.st_size, found.st_mtime

    def read(self, length: int) -> Chunk:
        data = self._read_bytes(self.sent, length)
        chunk = Chunk(self.attempt, self.rank, self.stream, self.sent, data)
        self.sent += len(data)
        # Without data, the file was truncated or removed. The missing bytes aren't awaited.
        self.size = max(self.size, self.sent) if data else self.sent
        return chunk

    def skip_to_last(self, length: int) -> None:
        """Skips to the last `length` bytes, and on to the beginning of a line if one is near."""
        if length < self.size:
            self.sent = self._line_start(self.size - length, length)

    def read_before(self, end: int, length: int) -> Chunk:
        """The last `length` bytes before an offset, from the beginning of a line if one is near."""
        at = self._line_start(end - length, length) if length < end else 0
        return Chunk(self.attempt, self.rank, self.stream, at, self._read_bytes(at, end - at))

    def _line_start(self, at: int, length: int) -> int:
        # The search begins one byte before, because a line may begin right at this offset.
        newline = self._read_bytes(at - 1, min(_LINE_SEARCH, length)).find(b"\n")
        return at + max(0, newline)

    def _read_bytes(self, at: int, length: int) -> bytes:
        try:
            with open(self.open_log(self.path), "rb") as file:
                file.seek(at)
                return file.read(length)
        except OSError:
            return b""


class LogFollower:
    """Follows the logs of all attempts of a run.

    Args:
        run_dir: The run directory.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._dir = run_dir
        self._attempts: dict[int, list[_Log]] = {}
        self._followed: list[_Log] = []

    def follow(self, attempt: AttemptStarted) -> None:
        """Follows an attempt. Of earlier attempts, what they have written so far is still sent.

        Args:
            attempt: The attempt.
        """
        self.poll()
        self._followed = [log for log in self._followed if log.sent < log.size]
        number = attempt.attempt
        logs = [
            _Log(
                number,
                entry.rank,
                stream,
                getattr(self._dir.rank(number, entry.local_rank, entry.node), stream),
                self._dir.open_log,
            )
            for entry in attempt.ranks
            for stream in STREAMS
        ]
        self._attempts[number] = logs
        self._followed += logs

    def poll(self) -> None:
        """Reads the sizes of the followed files."""
        for log in self._followed:
            log.poll()

    @property
    def backlog(self) -> int:
        """Bytes that `read_new` hasn't returned yet."""
        return sum(log.size - log.sent for log in self._followed)

    def last_writes(self, attempt: int) -> dict[int, float]:
        """When each rank of an attempt last wrote, in seconds since the epoch; 0: never.

        Args:
            attempt: The attempt's number. An unknown one has no ranks.

        Returns:
            The times by rank.
        """
        times: dict[int, float] = {}
        for log in self._attempts.get(attempt, ()):
            times[log.rank] = max(times.get(log.rank, 0.0), log.last_write if log.size else 0.0)
        return times

    def read_new(self, length: int) -> list[Chunk]:
        """Reads what is new, at most `length` bytes, with a fair share for each log.

        Where the backlog is above `MAX_BACKLOG`, its oldest bytes are skipped.
        """
        unsent = [log for log in self._followed if log.sent < log.size]
        unsent.sort(key=lambda log: log.size - log.sent)
        if self.backlog > MAX_BACKLOG:
            for log in unsent:
                kept = KEPT_BACKLOG // len(unsent)
                if log.size - log.sent > kept:
                    log.skip_to_last(kept)
        chunks = []
        for number, log in enumerate(unsent):
            share = min(log.size - log.sent, length // (len(unsent) - number))
            if share > 0:
                chunk = log.read(share)
                length -= len(chunk.data)
                chunks.append(chunk)
        return [chunk for chunk in chunks if chunk.data]

    def rewind(self, attempt: int, length: int) -> None:
        """Makes `read_new` return the last `length` bytes of an attempt's logs once more.

        Each log gets a fair share.

        Args:
            attempt: The attempt's number. An unknown one is ignored.
            length: Bytes of all its logs together.
        """
        logs = self._attempts.get(attempt, [])
        for log in logs:
            log.poll()
        for log, share in zip(logs, _shares([log.size for log in logs], length), strict=True):
            log.sent = 0
            log.skip_to_last(share)
            if log not in self._followed:
                self._followed.append(log)

    def read_before(
        self, attempt: int, rank: int, before: Sequence[int], length: int
    ) -> list[Chunk]:
        """Reads the last `length` bytes before these offsets of a rank's logs.

        Each log gets a fair share.

        Args:
            attempt: The attempt's number. An unknown one has no logs.
            rank: The rank. An unknown one has no logs.
            before: The offsets, in the order of `STREAMS`.
            length: Bytes of both logs together.
        """
        logs = [log for log in self._attempts.get(attempt, []) if log.rank == rank]
        for log in logs:
            log.poll()
        ends = [max(0, min(offset, log.size)) for log, offset in zip(logs, before, strict=False)]
        shares = _shares(ends, length)
        chunks = [
            log.read_before(end, share) for log, end, share in zip(logs, ends, shares, strict=False)
        ]
        return [chunk for chunk in chunks if chunk.data]


def _shares(sizes: Sequence[int], length: int) -> list[int]:
    """Divides a length into equal shares. What a small log doesn't need goes to the others."""
    shares = [0] * len(sizes)
    smallest_first = sorted(range(len(sizes)), key=sizes.__getitem__)
    for left, index in zip(range(len(sizes), 0, -1), smallest_first, strict=True):
        shares[index] = min(sizes[index], length // left)
        length -= shares[index]
    return shares
