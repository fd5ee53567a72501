"""Follows the logs of a run's ranks for a panel: a share for each, the newest first when there is too much.

A chunk says where in its file it lies. So whoever puts chunks together needs no other order than that: what came twice is
recognised, and what was left out is seen as a gap.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icelaunch_nb.rundir import RunDir

BEHIND = 1 << 20  # bytes not sent yet, over all streams, from which on the oldest are left out
KEPT = 1 << 18  # and how much of the newest is sent then
_LINE = 4096  # how far a line's beginning is looked for
STREAMS = ("stdout", "stderr")


@dataclass(frozen=True)
class Chunk:
    """Some bytes of a log: of which rank's, and where they lie in the file."""

    attempt: int
    rank: int
    stream: str
    start: int
    data: bytes


@dataclass
class _Log:
    """One stream of one rank in one attempt."""

    attempt: int
    rank: int
    stream: str
    path: Path
    size: int = 0
    written: float = 0.0
    sent: int = 0

    def look(self) -> None:
        try:
            found = os.stat(self.path)
        except OSError:
            return
        self.size, self.written = found.st_size, found.st_mtime

    def read(self, length: int) -> Chunk:
        data = self._bytes(self.sent, length)
        chunk = Chunk(self.attempt, self.rank, self.stream, self.sent, data)
        self.sent += len(data)
        # What should be there and isn't was cut off or removed by somebody: don't wait for it.
        self.size = max(self.size, self.sent) if data else self.sent
        return chunk

    def skip_to_the_last(self, length: int) -> None:
        """Leaves out what lies before the last `length` bytes, up to the beginning of a line where one is near."""
        if length < self.size:
            self.sent = self._line_from(self.size - length, length)

    def before(self, end: int, length: int) -> Chunk:
        """The last `length` bytes before a place, from the beginning of a line where one is near."""
        at = self._line_from(end - length, length) if length < end else 0
        return Chunk(self.attempt, self.rank, self.stream, at, self._bytes(at, end - at))

    def _line_from(self, at: int, length: int) -> int:
        newline = self._bytes(at - 1, min(_LINE, length)).find(
            b"\n"
        )  # from the byte before: a line may begin right there
        return at + max(0, newline)

    def _bytes(self, at: int, length: int) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(at)
                return file.read(length)
        except OSError:
            return b""


class Follower:
    """The logs of all attempts of a run; the newest attempt's are followed.

    Args:
        run_dir: The run directory.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._dir = run_dir
        self._attempts: dict[int, list[_Log]] = {}
        self._followed: list[_Log] = []

    def follow(self, attempt: Mapping[str, Any]) -> None:
        """From now on this attempt too; of those before it, only what they have written until now still comes.

        Args:
            attempt: The journal's ``attempt`` event.
        """
        self.look()
        self._followed = [log for log in self._followed if log.sent < log.size]
        number = attempt["attempt"]
        logs = [
            _Log(
                number,
                entry["rank"],
                stream,
                getattr(self._dir.rank(number, entry["local_rank"]), stream),
            )
            for entry in attempt["ranks"]
            for stream in STREAMS
        ]
        self._attempts[number] = logs
        self._followed += logs

    def look(self) -> None:
        """Sees how much there is."""
        for log in self._followed:
            log.look()

    @property
    def backlog(self) -> int:
        """Bytes that `take` has not handed out yet."""
        return sum(log.size - log.sent for log in self._followed)

    def written(self, attempt: int) -> dict[int, float]:
        """When each rank of an attempt wrote last, in seconds since the epoch; 0 before it did."""
        when: dict[int, float] = {}
        for log in self._attempts.get(attempt, ()):
            when[log.rank] = max(when.get(log.rank, 0.0), log.written if log.size else 0.0)
        return when

    def take(self, length: int) -> list[Chunk]:
        """What is new, at most `length` bytes, a fair share from each log; the oldest is left out where there is too much."""
        hungry = sorted(
            (log for log in self._followed if log.sent < log.size),
            key=lambda log: log.size - log.sent,
        )
        if self.backlog > BEHIND:
            for log in hungry:
                kept = KEPT // len(hungry)
                if log.size - log.sent > kept:
                    log.skip_to_the_last(kept)
        chunks = []
        for number, log in enumerate(hungry):
            share = min(log.size - log.sent, length // (len(hungry) - number))
            if share > 0:
                chunk = log.read(share)
                length -= len(chunk.data)
                chunks.append(chunk)
        return [chunk for chunk in chunks if chunk.data]

    def rewind(self, attempt: int, length: int) -> None:
        """Hands out the last `length` bytes of an attempt's logs once more, a fair share from each.

        Args:
            attempt: Its number; one that isn't known is passed over.
            length: Bytes over all its logs.
        """
        logs = self._attempts.get(attempt, [])
        for log in logs:
            log.look()
        for log, share in zip(logs, _shares([log.size for log in logs], length), strict=True):
            log.sent = 0
            log.skip_to_the_last(share)
            if log not in self._followed:
                self._followed.append(log)

    def older(self, attempt: int, rank: int, before: Sequence[int], length: int) -> list[Chunk]:
        """The last `length` bytes that lie before these places in a rank's logs, a fair share from each.

        Args:
            attempt: Its number; one that isn't known has none.
            rank: The rank; likewise.
            before: The places, in the order of `STREAMS`.
            length: Bytes over both logs.
        """
        logs = [log for log in self._attempts.get(attempt, []) if log.rank == rank]
        for log in logs:
            log.look()
        ends = [max(0, min(place, log.size)) for log, place in zip(logs, before, strict=False)]
        chunks = [
            log.before(end, share)
            for log, end, share in zip(logs, ends, _shares(ends, length), strict=False)
        ]
        return [chunk for chunk in chunks if chunk.data]


def _shares(sizes: Sequence[int], length: int) -> list[int]:
    """How much each gets of a length: none more than its size, and what one leaves the others get."""
    shares = [0] * len(sizes)
    for left, place in zip(
        range(len(sizes), 0, -1), sorted(range(len(sizes)), key=sizes.__getitem__), strict=True
    ):
        shares[place] = min(sizes[place], length // left)
        length -= shares[place]
    return shares
