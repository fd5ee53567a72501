"""Metrics that ranks report: a JSON object a line, in the rank's own folder."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("attempt", "rank", "step", "time")
_FLUSH_AFTER = 0.2  # seconds between two writes

_writers: list[Metrics] = []


class Metrics:
    """Collects rows and writes them now and then: with the first row that comes 0.2 s after the last write, and at the end.

    Args:
        path: The file, made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._pid = path, os.getpid()
        self._rows: list[str] = []
        self._next_write = 0.0
        if not _writers:
            atexit.register(flush)
        _writers.append(self)

    def add(self, rank: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Notes a row.

        Raises:
            TypeError: A metric is no number.
        """
        row: dict[str, Any] = {"rank": rank, "step": step, "time": time.time()}
        for name, value in metrics.items():
            number = value if type(value) in (int, float) else _number(name, value)
            # JSON has no word for these; null is NaN to pandas.
            row[name] = number if type(number) is int or math.isfinite(number) else _special(number)
        self._rows.append(json.dumps(row))
        if time.monotonic() >= self._next_write:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected. A disk that is full costs metrics, not the run."""
        if not self._rows or self._pid != os.getpid():  # a forked child (a DataLoader worker) holds a copy of its rank's rows
            return
        rows, self._rows = self._rows, []
        self._next_write = time.monotonic() + _FLUSH_AFTER
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with open(fd, "wb", buffering=0) as file:
                file.write(("\n".join(rows) + "\n").encode())


def flush() -> None:
    """Writes what this process has collected."""
    for writer in _writers:
        writer.flush()


def read(files: Iterable[tuple[int, Path]]) -> list[dict[str, Any]]:
    """The rows of all files, in order of time.

    Args:
        files: Number of the attempt, and a rank's file.
    """
    flush()  # of a launch with inline=True, in this process
    rows: list[dict[str, Any]] = []
    for attempt, path in files:
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # the last line of a rank that was killed
                    row = json.loads(line)
                    rows.append({"attempt": attempt, **{name: math.nan if value is None else _back(value) for name, value in row.items()}})
    return sorted(rows, key=lambda row: row["time"])


def _number(name: str, value: Any) -> float:
    try:
        return float(value.detach() if hasattr(value, "detach") else value)  # torch warns of a tensor that has a gradient
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"report({name}=…): a {type(value).__name__} is no number: {error}") from None


def _special(value: float) -> str | None:
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"


def _back(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
