"""Metrics that ranks report: a JSON object a line, in the rank's own folder."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from icelaunch_nb.rundir.records import InvalidValueError, parse_line
from icelaunch_nb.system import safe_open
from icelaunch_nb.system.files import open_private

COLUMNS = ("attempt", "rank", "step", "time")
_SPECIAL = ("inf", "-inf")
_LATEST = 1e11  # seconds since the epoch
_LONGEST_ROW = 1 << 20  # bytes


class Metrics:
    """Writes rows as they come: one costs 4 µs, and none is lost whatever ends the rank.

    Args:
        path: The file, made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._torn = False  # whether a full disk took only the head of the last row

    def add(self, rank: int, step: Any, metrics: Mapping[str, Any]) -> None:
        """Notes a row.

        Raises:
            ValueError: A metric has the name of a column that every row has.
            TypeError: A metric is no number, or the step no whole one.
        """
        row: dict[str, Any] = {
            "rank": rank,
            "step": step if type(step) is int else _whole(step),
            "time": time.time(),
        }
        for name, value in metrics.items():
            if name in COLUMNS:
                raise ValueError(
                    f"report({name}=…): every row has a {name} of its own already; give the metric another name"
                )
            found = value if type(value) in (int, float) else number(name, value)
            # JSON has no word for these; null is NaN to pandas.
            row[name] = found if type(found) is int or math.isfinite(found) else _special(found)
        self._write(f"{json.dumps(row)}\n".encode())

    def _write(self, line: bytes) -> None:
        """A disk that is full costs metrics, not the run."""
        with contextlib.suppress(OSError):
            if self._fd is None:
                self._fd = open_private(self._path, os.O_WRONLY | os.O_APPEND)
                weakref.finalize(
                    self, os.close, self._fd
                ).atexit = False  # functions that run then may report too
            line = b"\n" + line if self._torn else line
            self._torn = os.write(self._fd, line) < len(line)


def read(
    files: Iterable[tuple[int, Path]], open_file: Callable[[Path], int] = safe_open.open_file
) -> list[dict[str, Any]]:
    """The rows of all files, in order of time.

    Args:
        files: Number of the attempt, and a rank's file.
        open_file: Gives a descriptor of a file.
    """
    rows: list[dict[str, Any]] = []
    for attempt, path in files:
        try:
            fd = open_file(path)
        except OSError:  # not reported, or no file
            continue
        try:
            for line in _lines(fd):
                with contextlib.suppress(ValueError):  # the last line of a rank that was killed
                    row = parse(line)
                    rows.append(
                        {
                            "attempt": attempt,
                            **{
                                name: _back(value)
                                for name, value in row.items()
                                if name != "attempt"
                            },
                        }
                    )
        finally:
            os.close(fd)
    return sorted(rows, key=lambda row: row["time"])


def _lines(fd: int) -> Iterator[bytes]:
    """The lines of a file, and what follows the last newline: a full disk may have kept that out alone."""
    end = 0
    for line, after in safe_open.read_lines(fd, 0, _LONGEST_ROW):
        end = after
        yield line
    yield os.pread(fd, _LONGEST_ROW, end)


def parse(line: bytes) -> dict[str, Any]:
    """A row as `Metrics` wrote it; of a metric whose value can't be, the row has none.

    Raises:
        ValueError: It is no row.
    """
    row = parse_line(line)
    if (
        type(row.get("rank")) is not int
        or row["rank"] < 0
        or type(row.get("time")) not in (int, float)
        or not 0 <= row["time"] <= _LATEST
    ):
        raise InvalidValueError("a row has a rank and a time")
    if row.get("step") is not None and type(row["step"]) is not int:
        raise InvalidValueError("a step is a whole number")
    return {
        name: value
        for name, value in row.items()
        if type(value) in (int, float) or value is None or value in _SPECIAL
    }


def number(name: str, value: Any) -> float:
    """A metric's value: a number, or an array or tensor with one element.

    Raises:
        TypeError: It is none.
    """
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"report({name}=…): a {type(value).__name__} is no number: {error}"
        ) from None


def _whole(step: Any) -> int:
    try:
        return operator.index(step)
    except TypeError:
        found = number("step", step)
    if not found.is_integer():
        raise TypeError(f"report(step={found}): a step is a whole number")
    return int(found)


def _special(value: float) -> str | None:
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"


def _back(value: Any) -> Any:
    return math.nan if value is None else float(value) if isinstance(value, str) else value
