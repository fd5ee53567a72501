"""Metrics that ranks report: a JSON object per line, in the rank's own folder."""

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
_INFINITIES = ("inf", "-inf")
# Seconds since the epoch.
_MAX_TIME = 1e11
# Bytes.
_MAX_ROW = 1 << 20


class Metrics:
    """Writes each row at once: that costs 4 µs, and no row is lost, whatever ends the rank.

    Args:
        path: The file. The first row makes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        # Whether only the beginning of the last row is in the file, since the disk was full.
        self._torn = False

    def add(self, rank: int, step: Any, metrics: Mapping[str, Any]) -> None:
        """Writes a row.

        Args:
            rank: Global rank.
            step: A whole number, or an array or tensor with one.
            metrics: Numbers by name, or arrays or tensors with one element.

        Raises:
            ValueError: A metric has the name of a column that every row has.
            TypeError: A metric is no number, or the step is no whole number.
        """
        row: dict[str, Any] = {
            "rank": rank,
            "step": step if type(step) is int else _step_number(step),
            "time": time.time(),
        }
        for name, value in metrics.items():
            if name in COLUMNS:
                raise ValueError(
                    f"report({name}=…): every row has a {name} of its own already; "
                    "give the metric another name"
                )
            found = value if type(value) in (int, float) else number(name, value)
            # JSON has neither NaN nor infinities. pandas reads null as NaN.
            row[name] = (
                found if type(found) is int or math.isfinite(found) else _not_finite_to_json(found)
            )
        self._write(f"{json.dumps(row)}\n".encode())

    def _write(self, line: bytes) -> None:
        """Appends a line. A full disk costs metrics, not the run."""
        with contextlib.suppress(OSError):
            if self._fd is None:
                self._fd = open_private(self._path, os.O_WRONLY | os.O_APPEND)
                # Not at exit, since functions that run then may report too.
                weakref.finalize(self, os.close, self._fd).atexit = False
            line = b"\n" + line if self._torn else line
            self._torn = os.write(self._fd, line) < len(line)


def read(
    files: Iterable[tuple[int, Path]], open_file: Callable[[Path], int] = safe_open.open_file
) -> list[dict[str, Any]]:
    """Reads the rows of several files, in order of time.

    Rows that can't be parsed, and files that can't be opened, are skipped.

    Args:
        files: Pairs of the attempt's number and a rank's file.
        open_file: Opens a file, and returns the descriptor.

    Returns:
        One dict per row: `COLUMNS`, and the metrics by name.
    """
    rows: list[dict[str, Any]] = []
    for attempt, path in files:
        try:
            fd = open_file(path)
        # The rank reported nothing, or something else lies in the file's place.
        except OSError:
            continue
        try:
            for line in _lines(fd):
                # A rank that was killed may leave a torn last line.
                with contextlib.suppress(ValueError):
                    row = parse(line)
                    rows.append(
                        {
                            "attempt": attempt,
                            **{
                                name: _from_json(value)
                                for name, value in row.items()
                                if name != "attempt"
                            },
                        }
                    )
        finally:
            os.close(fd)
    return sorted(rows, key=lambda row: row["time"])


def _lines(fd: int) -> Iterator[bytes]:
    """The lines of a file, and what follows the last newline.

    That may be a whole row, of which only the newline didn't fit on a full disk.
    """
    end = 0
    for line, after in safe_open.read_lines(fd, 0, _MAX_ROW):
        end = after
        yield line
    yield os.pread(fd, _MAX_ROW, end)


def parse(line: bytes) -> dict[str, Any]:
    """Parses a row that `Metrics` wrote. A metric that has a wrong value is left out.

    Raises:
        ValueError: The line is no row.
    """
    row = parse_line(line)
    if (
        type(row.get("rank")) is not int
        or row["rank"] < 0
        or type(row.get("time")) not in (int, float)
        or not 0 <= row["time"] <= _MAX_TIME
    ):
        raise InvalidValueError("a row has a rank and a time")
    if row.get("step") is not None and type(row["step"]) is not int:
        raise InvalidValueError("a step is a whole number")
    return {
        name: value
        for name, value in row.items()
        if type(value) in (int, float) or value is None or value in _INFINITIES
    }


def number(name: str, value: Any) -> float:
    """Converts a metric's value: a number, or an array or tensor with one element.

    Args:
        name: The metric's name, for the message.
        value: The value.

    Raises:
        TypeError: The value is no number.
    """
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"report({name}=…): a {type(value).__name__} is no number: {error}"
        ) from None


def _step_number(step: Any) -> int:
    try:
        return operator.index(step)
    except TypeError:
        found = number("step", step)
    if not found.is_integer():
        raise TypeError(f"report(step={found}): a step is a whole number")
    return int(found)


def _not_finite_to_json(value: float) -> str | None:
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"


def _from_json(value: Any) -> Any:
    return math.nan if value is None else float(value) if isinstance(value, str) else value
