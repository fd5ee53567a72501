"""Shows the rows as a table in Markdown."""

from __future__ import annotations

import os
import platform
import statistics

from benchmarks.launchers import LAUNCHERS
from benchmarks.session import Row

_OURS = "icelaunch_nb"


def render(
    rows: list[Row], *, load_before: float, load_after: float, launches_without_torch: int
) -> str:
    """Returns the whole report: the conditions of the measurement, and the table."""
    peers = [name for name in LAUNCHERS if name != _OURS]
    head = ["figure", *LAUNCHERS, *(f"{_OURS} ÷ {peer}" for peer in peers), "bound", "kept"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = [_cell(row, name) for name in LAUNCHERS]
        lines.append(
            _line(
                [row.title, *cells, *(_ratio(row, peer) for peer in peers), _bound(row), _kept(row)]
            )
        )
    return "\n".join(
        [*_conditions(load_before, load_after, launches_without_torch), "", *lines, ""]
    )


def _conditions(load_before: float, load_after: float, launches_without_torch: int) -> list[str]:
    versions = ", ".join(
        f"{name} {launcher.version() or 'not installed'}" for name, launcher in LAUNCHERS.items()
    )
    return [
        f"Median (least–greatest, ×number of launches). {versions}; "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load average {load_before:.1f} before and {load_after:.1f} after.",
        f"torch was not in `sys.modules` of {_OURS}'s kernel "
        f"after {launches_without_torch} launches in it "
        "(all but those whose result is a tensor).",
    ]


def _cell(row: Row, name: str) -> str:
    samples = row.samples.get(name)
    if name in row.notes:
        return row.notes[name]
    if not samples:
        return "–"
    return _median_and_range(samples)


def _median_and_range(samples: list[float]) -> str:
    median, least, greatest = statistics.median(samples), min(samples), max(samples)
    return f"**{_time(median)}** ({_time(least)}–{_time(greatest)}, ×{len(samples)})"


def _ratio(row: Row, peer: str) -> str:
    ours, theirs = row.median(_OURS), row.median(peer)
    return f"{ours / theirs:.2g}" if ours is not None and theirs else "–"


def _bound(row: Row) -> str:
    if row.bound is None:
        return "none"
    if not row.bound.relative_to:
        return f"≤ {_time(row.bound.limit)}"
    reference = row.bound.relative_to
    text = f"≤ {row.bound.limit:g} × {reference}"
    if reference in LAUNCHERS:
        return text
    # What has no column of its own is shown here.
    return f"{text}: {_median_and_range(row.samples[reference])}; here {_ratio(row, reference)}"


def _kept(row: Row) -> str:
    if row.bound is None:
        return "–"
    ours, reference = (
        row.median(_OURS),
        row.median(row.bound.relative_to) if row.bound.relative_to else 1.0,
    )
    if ours is None or reference is None:
        return "not measured"
    return "met" if ours <= row.bound.limit * reference else "**not met**"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.02 else f"{seconds * 1000:.1f} ms"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
