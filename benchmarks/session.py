"""One session: it measures every contender in turn, A B C A B C, for every figure."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import cold
from benchmarks.contender import Contender, Unmeasured
from benchmarks.figures import FIGURES, Bound, Figure
from benchmarks.launchers import LAUNCHERS

_PAUSE = 0.5  # seconds between two launches; a person leaves at least as much


@dataclass
class Row:
    """A row of the table: one time of all contenders.

    Attributes:
        title: What the time is of.
        bound: What icelaunch_nb has to keep.
        samples: Seconds of each launch, by contender.
        notes: Why a contender has no samples, by contender.
    """

    title: str
    bound: Bound | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def median(self, contender: str) -> float | None:
        """Returns the contender's median in seconds, or None if it has no samples."""
        return statistics.median(self.samples[contender]) if self.samples.get(contender) else None


class Session:
    """Measures all figures of all contenders.

    Args:
        scratch: A folder for what the contenders write.
        repetitions: How often each figure is measured.
        cold_repetitions: How often a figure is measured of a peer whose every launch is cold and
            takes seconds.

    Attributes:
        launches_without_torch: How many of icelaunch_nb's warm launches left torch unimported in
            its kernel.
    """

    def __init__(self, scratch: Path, *, repetitions: int, cold_repetitions: int) -> None:
        self._scratch, self._repetitions, self._cold_repetitions = (
            scratch,
            repetitions,
            cold_repetitions,
        )
        self._contenders: dict[str, Contender] = {}
        self.launches_without_torch = 0

    def run(self) -> list[Row]:
        """Measures, and returns every row of the table."""
        rows = self._cold()
        try:
            for name, launcher in LAUNCHERS.items():
                if launcher.version() is not None:
                    self._contenders[name] = Contender(name, self._scratch)
                    self._contenders[name].load()
            for figure in FIGURES:
                rows += self._warm(figure)
        finally:
            for contender in self._contenders.values():
                contender.close()
        return rows

    def _cold(self) -> list[Row]:
        importing = Row("`import icelaunch_nb` (torch isn't imported)", Bound(0.15))
        first = Row(
            "first launch, 2 ranks: import and `%load_ext` → results in hand",
            Bound(1.2, "import torch"),
        )
        # A launch is warm by then: warm launches differ among themselves by a factor of about 1.5.
        settled = Row(
            "first launch, 2 ranks, 5 s after `%load_ext` → results in hand",
            Bound(1.5, "the third launch"),
        )
        for _ in self._rounds(self._repetitions, "cold"):
            _add(first, "import torch", cold.python("import torch"))
            m = cold.first_launch(self._scratch)
            _add(first, "icelaunch_nb", m.returned - m.called)
            m, third = cold.settled_launches(self._scratch, _PAUSE)
            _add(settled, "icelaunch_nb", m.returned - m.called)
            _add(settled, "the third launch", third.returned - third.called)
            _add(importing, "icelaunch_nb", cold.import_icelaunch())
        return [importing, first, settled]

    def _warm(self, figure: Figure) -> list[Row]:
        rows = [Row(timing.title, timing.bound) for timing in figure.timings]
        for name in figure.contenders:
            if name not in self._contenders:
                _note(rows, name, "not installed")
        # Round 0 isn't counted, because it finds warm what the previous figure left.
        for number in self._rounds(self._repetitions + 1, figure.timings[0].title):
            for name in figure.contenders:
                if name in rows[0].notes or (
                    LAUNCHERS[name].cold and not 0 < number <= self._cold_repetitions
                ):
                    continue
                time.sleep(_PAUSE)
                try:
                    m = self._contenders[name].measure(figure.call, fails=figure.fails)
                    seconds = [timing.seconds(m) for timing in figure.timings]
                except Unmeasured as why:
                    _note(rows, name, str(why))
                    self._contenders[name].close()
                    self._contenders[name] = Contender(name, self._scratch)
                    self._contenders[name].load()
                    continue
                if name == "icelaunch_nb" and not m.torch_imported:
                    self.launches_without_torch += 1
                for row, value in zip(rows, seconds, strict=True):
                    if number:
                        _add(row, name, value)
        return rows

    def _rounds(self, count: int, title: str) -> range:
        print(title, file=sys.stderr, flush=True)
        return range(count)


def _add(row: Row, name: str, seconds: float) -> None:
    row.samples.setdefault(name, []).append(seconds)


def _note(rows: list[Row], name: str, why: str) -> None:
    for row in rows:
        row.notes[name] = why
