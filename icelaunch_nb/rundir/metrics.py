"""Metrics that ranks report: a JSON object a line, in the rank's own folder."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("attempt", "rank", "step", "time")


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
                self._fd = os.open(
                    self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
                )
                weakref.finalize(
                    self, os.close, self._fd
                ).atexit = False  # functions that run then may report too
            line = b"\n" + line if self._torn else line
            self._torn = os.write(self._fd, line) < len(line)


def read(files: Iterable[tuple[int, Path]]) -> list[dict[str, Any]]:
    """The rows of all files, in order of time.

    Args:
        files: Number of the attempt, and a rank's file.
    """
    rows: list[dict[str, Any]] = []
    for attempt, path in files:
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # the last line of a rank that was killed
                    row = json.loads(line)
                    rows.append(
                        {
                            "attempt": attempt,
                            **{
                                name: math.nan if value is None else _back(value)
                                for name, value in row.items()
                            },
                        }
                    )
    return sorted(rows, key=lambda row: row["time"])


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
    return float(value) if isinstance(value, str) else value
