"""What ranks reported, thinned for a plot: read from their files as these grow, bounded in memory whatever comes.

Each metric has at most `BINS` bins of neighbouring steps; a bin holds a mean for each rank. When there are more, the bins become
twice as wide. So the thousandth look at a run costs what the second did, and a plot of a month's run is as large as one of a minute.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icelaunch_nb.rundir import RunDir

BINS = 480  # twice the pixels that a small plot has
_MANY = 16  # ranks from which on there are half as many bins, so that a metric is below 70 kB up to 64 ranks
METRICS = 16  # that are drawn; `Run.metrics` has them all
_AT_ONCE = 1 << 16  # bytes of a file that one look reads: 3 ms
_BEHIND = 4 << 20  # bytes not read yet from which on a file is skimmed
_SKIMMED = 32  # pieces of it that are read then
_PIECE = 8192
_OTHERS = ("rank", "step", "time")


@dataclass
class _Bin:
    """Some neighbouring steps: sum and number of values, by the ranks' places."""

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
    name: str
    width: int = 1  # steps of a bin
    bins: dict[int, _Bin] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)  # by place
    changed: set[int] = field(default_factory=set)
    whole: bool = True  # whether all of it has to be sent

    def add(self, place: int, ranks: int, step: int, value: float) -> None:
        self.last[place] = value
        if not math.isfinite(value):
            self.changed.add(-1)  # no bin: the value alone
            return
        number = step // self.width
        found = self.bins.get(number)
        if found is None:
            found = self.bins[number] = _Bin(array("d", [0.0]) * ranks, array("l", [0]) * ranks)
        found.sums[place] += value
        found.counts[place] += 1
        self.changed.add(number)
        if len(self.bins) > (BINS if ranks <= _MANY else BINS // 2):
            self._widen()

    def _widen(self) -> None:
        before, self.bins, self.width, self.whole = self.bins, {}, 2 * self.width, True
        for number, old in before.items():
            found = self.bins.setdefault(number // 2, old)
            if found is not old:
                for place in range(len(old.sums)):
                    found.sums[place] += old.sums[place]
                    found.counts[place] += old.counts[place]


@dataclass
class _File:
    """One rank's reports."""

    place: int
    path: Path
    size: int = 0
    read: int = 0
    rest: bytes = b""

    def rows(self) -> Iterator[Any]:
        """The rows that are new, or some of them where there are too many."""
        try:
            self.size = self.path.stat().st_size
            if self.size <= self.read:
                return
            with open(self.path, "rb") as file:
                if self.size - self.read > _BEHIND:
                    yield from self._skim(file)
                file.seek(self.read)
                data = file.read(_AT_ONCE)
        except OSError:  # not reported yet, or somebody removed it
            self.size = self.read
            return
        self.read += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _AT_ONCE:
            self.rest = b""
        yield from _parsed(lines)

    def _skim(self, file: Any) -> Iterator[Any]:
        between = (self.size - self.read) // _SKIMMED
        for number in range(_SKIMMED):
            file.seek(self.read + number * between)
            yield from _parsed(file.read(_PIECE).split(b"\n")[1:-1])  # whole lines
        self.read, self.rest = self.size - _PIECE, b""


class Curves:
    """The metrics of one attempt.

    Args:
        run_dir: The run directory.
        attempt: The journal's ``attempt`` event.
    """

    def __init__(self, run_dir: RunDir, attempt: Mapping[str, Any]) -> None:
        self.attempt = int(attempt["attempt"])
        self._files = [
            _File(place, run_dir.rank(self.attempt, entry["local_rank"]).metrics)
            for place, entry in enumerate(attempt["ranks"])
        ]
        self._metrics: dict[str, _Metric] = {}
        self._left_out: set[str] = set()
        self.steps: dict[int, int] = {}  # the newest step that each rank reported, by place

    @property
    def changed(self) -> bool:
        """Whether there is anything to `take`."""
        return any(metric.whole or metric.changed for metric in self._metrics.values())

    @property
    def backlog(self) -> bool:
        """Whether the files held more at the last look than was read of them."""
        return any(file.size > file.read for file in self._files)

    def look(self) -> None:
        """Reads what is new, a bounded piece of each file."""
        for file in self._files:
            for row in file.rows():
                self._add(file.place, row)

    def again(self) -> None:
        """Everything has to be sent once more."""
        for metric in self._metrics.values():
            metric.whole = True

    def _add(self, place: int, row: Any) -> None:
        if not isinstance(row, dict):
            return
        step = row.get("step")
        if not isinstance(step, int | float) or not 0 <= step < 1 << 53:
            return
        self.steps[place] = int(step)
        for name, value in row.items():
            if name in _OTHERS:
                continue
            metric = self._metrics.get(name)
            if metric is None:
                if len(self._metrics) >= METRICS:
                    if len(self._left_out) < 10 * METRICS:
                        self._left_out.add(name)
                    continue
                metric = self._metrics[name] = _Metric(name)
            metric.add(place, len(self._files), int(step), _number(value))

    def take(self, length: int) -> Iterator[tuple[dict[str, Any], bytes]]:
        """What changed, metric by metric, at most `length` bytes and at least one metric: what it is, and its numbers.

        The numbers: a float64 for each bin's first step, then for each bin a float32 per rank, NaN where there is none.
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
            about = {
                "attempt": self.attempt,
                "name": metric.name[:100],
                "width": metric.width,
                "whole": metric.whole,
                "bins": len(numbers),
                "ranks": len(self._files),
                "last": _last(metric.last),
                "left_out": len(self._left_out),
            }
            metric.whole = False
            metric.changed.clear()
            yield about, data
            length -= len(data)
            if length <= 0:
                return


def _last(values: Mapping[int, float]) -> float | None:
    """The mean of the ranks' newest values; None where one of them is no number."""
    mean = (
        math.fsum(values.values()) / len(values)
        if all(map(math.isfinite, values.values()))
        else math.nan
    )
    return mean if math.isfinite(mean) else None


def _parsed(lines: list[bytes]) -> Iterator[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # the last line of a rank that was killed, or somebody else's
            continue


def _number(value: Any) -> float:
    """As `metrics` writes it: null is NaN, "inf" and "-inf" are words."""
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
