"""The metrics that the ranks reported, in bins for a plot. The files are read as they grow.

A bin covers neighbouring steps, and contains a mean for each rank. A metric has at most `BINS`
bins. When there are more, the bins become twice as wide. So a poll of a long run costs no more than
one of a short run, and its plot is no larger.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icelaunch_nb.rundir.journal_events import AttemptStarted
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.records import parse_json
from icelaunch_nb.system.plaintext import sendable

# Bins of a metric: twice the pixels that a small plot has.
BINS = 480
# Above this many ranks, a metric has half as many bins. With 64 ranks, it is below 70 kB.
_MANY_RANKS = 16
# Metrics that are drawn. `Run.metrics` returns all of them.
METRICS = 16
# Bytes of a file that one poll reads. This takes 3 ms.
_POLL_SIZE = 1 << 16
# Unread bytes of a file. Above this, only some pieces of the file are read.
_MAX_BACKLOG = 4 << 20
# The number of these pieces, and their size in bytes.
_SKIMMED_PIECES = 32
_PIECE_SIZE = 8192
# The fields of a row that are no metrics.
_NOT_METRICS = ("rank", "step", "time")


@dataclass
class _Bin:
    """Some neighbouring steps: the sum and the number of the values, by rank index."""

    sums: array[float]
    counts: array[int]

    def means(self) -> array[float]:
        return array(
            "f",
            [
                total / count if count else math.nan
                for total, count in zip(self.sums, self.counts, strict=True)
            ],
        )


@dataclass
class _Metric:
    """A metric of an attempt.

    Attributes:
        name: Its name.
        width: The steps of a bin.
        bins: The bins by number. Bin n begins at step n times `width`.
        last: The newest value of each rank, by rank index.
        changed: The numbers of the bins that changed since they were sent; -1 for `last` alone.
        whole: Whether all bins must be sent.
    """

    name: str
    width: int = 1
    bins: dict[int, _Bin] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    whole: bool = True

    def add(self, index: int, ranks: int, step: int, value: float) -> None:
        self.last[index] = value
        if not math.isfinite(value):
            # NaN and infinity are in no bin. They only show as the newest value.
            self.changed.add(-1)
            return
        number = step // self.width
        found = self.bins.get(number)
        if found is None:
            found = self.bins[number] = _Bin(array("d", [0.0]) * ranks, array("l", [0]) * ranks)
        found.sums[index] += value
        found.counts[index] += 1
        self.changed.add(number)
        if len(self.bins) > (BINS if ranks <= _MANY_RANKS else BINS // 2):
            self._widen()

    def _widen(self) -> None:
        before, self.bins, self.width, self.whole = self.bins, {}, 2 * self.width, True
        for number, old in before.items():
            found = self.bins.setdefault(number // 2, old)
            if found is not old:
                for index in range(len(old.sums)):
                    found.sums[index] += old.sums[index]
                    found.counts[index] += old.counts[index]


@dataclass
class _File:
    """The file with one rank's metrics."""

    index: int
    path: Path
    open_log: Callable[[Path], int]
    size: int = 0
    read: int = 0
    rest: bytes = b""

    def read_rows(self) -> Iterator[Any]:
        """Reads the new rows, or some of them where there are too many."""
        try:
            self.size = self.path.stat().st_size
            if self.size <= self.read:
                return
            with open(self.open_log(self.path), "rb") as file:
                if self.size - self.read > _MAX_BACKLOG:
                    yield from self._skim(file)
                file.seek(self.read)
                data = file.read(_POLL_SIZE)
        except OSError:
            # The rank hasn't reported yet, or the file was removed.
            self.size = self.read
            return
        self.read += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _POLL_SIZE:
            self.rest = b""
        yield from _parse_rows(lines)

    def _skim(self, file: Any) -> Iterator[Any]:
        between = (self.size - self.read) // _SKIMMED_PIECES
        for number in range(_SKIMMED_PIECES):
            file.seek(self.read + number * between)
            # The first and the last line may be incomplete.
            yield from _parse_rows(file.read(_PIECE_SIZE).split(b"\n")[1:-1])
        self.read, self.rest = self.size - _PIECE_SIZE, b""


class MetricBins:
    """The metrics of one attempt.

    Args:
        run_dir: The run directory.
        attempt: The attempt.
    """

    def __init__(self, run_dir: RunDir, attempt: AttemptStarted) -> None:
        self.attempt = attempt.attempt
        self._files = [
            _File(
                index,
                run_dir.rank(self.attempt, entry.local_rank, entry.node).metrics,
                run_dir.open_log,
            )
            for index, entry in enumerate(attempt.ranks)
        ]
        self._metrics: dict[str, _Metric] = {}
        self._left_out: set[str] = set()
        # The newest step that each rank reported, by rank index.
        self.steps: dict[int, int] = {}

    @property
    def changed(self) -> bool:
        """Whether `pop_changes` would return anything."""
        return any(metric.whole or metric.changed for metric in self._metrics.values())

    @property
    def backlog(self) -> bool:
        """Whether the last poll left a part of a file unread."""
        return any(file.size > file.read for file in self._files)

    def poll(self) -> None:
        """Reads what is new, at most 64 KiB of each file."""
        for file in self._files:
            for row in file.read_rows():
                self._add(file.index, row)

    def resend(self) -> None:
        """Makes `pop_changes` return everything once more."""
        for metric in self._metrics.values():
            metric.whole = True

    def _add(self, index: int, row: Any) -> None:
        if not isinstance(row, dict):
            return
        step = row.get("step")
        if not isinstance(step, int | float) or not 0 <= step < 1 << 53:
            return
        self.steps[index] = int(step)
        for name, value in row.items():
            if name in _NOT_METRICS:
                continue
            metric = self._metrics.get(name)
            if metric is None:
                if len(self._metrics) >= METRICS:
                    if len(self._left_out) < 10 * METRICS:
                        self._left_out.add(name)
                    continue
                metric = self._metrics[name] = _Metric(name)
            metric.add(index, len(self._files), int(step), _to_float(value))

    def pop_changes(self, length: int) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Returns what changed since the last call, metric by metric.

        Args:
            length: Bytes after which it stops. The last metric is still whole.

        Yields:
            A metric's description, and its numbers: a float64 for each bin's first step, then a
            float32 for each bin and rank. It is NaN where the rank has no value.
        """
        for metric in self._metrics.values():
            if not metric.whole and not metric.changed:
                continue
            numbers = sorted(
                metric.bins if metric.whole else (n for n in metric.changed if n in metric.bins)
            )
            data = array("d", [number * metric.width for number in numbers]).tobytes() + b"".join(
                metric.bins[number].means().tobytes() for number in numbers
            )
            description = {
                "attempt": self.attempt,
                "name": sendable(metric.name[:100]),
                "width": metric.width,
                "whole": metric.whole,
                "bins": len(numbers),
                "ranks": len(self._files),
                "last": _newest_mean(metric.last),
                "left_out": len(self._left_out),
            }
            metric.whole = False
            metric.changed.clear()
            yield description, data
            length -= len(data)
            if length <= 0:
                return


def _newest_mean(values: Mapping[int, float]) -> float | None:
    """The mean of the ranks' newest values; None where it isn't finite."""
    if not all(map(math.isfinite, values.values())):
        return None
    mean = math.fsum(values.values()) / len(values)
    return mean if math.isfinite(mean) else None


def _parse_rows(lines: list[bytes]) -> Iterator[Any]:
    for line in lines:
        try:
            yield parse_json(line)
        except ValueError:
            # A killed rank's last line may be incomplete. Another program may have written this.
            continue


def _to_float(value: Any) -> float:
    """A value as a float. `rundir.metrics` writes NaN as null, and infinities as texts."""
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
