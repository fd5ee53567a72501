"""Locations in code as their user names them: ``cell 5, line 7``."""

from __future__ import annotations

import functools
import linecache
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.records import Record, Text, parse_each, parse_json, text

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@dataclass(eq=False, repr=False)
class CellSource(Record):
    """A cell that functions of the run come from.

    Attributes:
        name: What to call it: ``Cell In[3]``.
        source: Its text.
    """

    name: Text
    source: Annotated[str, text(64 << 20)]


def read_sources(run_dir: RunDir) -> dict[str, CellSource]:
    """The cells that the run's functions come from, by code filename."""
    try:
        return dict(parse_each(CellSource, parse_json(run_dir.read(run_dir.sources))))
    except (OSError, ValueError):  # a program has none
        return {}


def cell_names(run_dir: RunDir) -> dict[str, str]:
    """Name to show (``Cell In[3]``) by code filename, of the cells that a run's functions come from."""
    return {filename: cell.name for filename, cell in read_sources(run_dir).items()}


def register_cells(run_dir: RunDir) -> dict[str, str]:
    """Puts the cells' sources where tracebacks, inspect, pdb and torch.compile look; returns `cell_names`."""
    cells = read_sources(run_dir)
    for filename, cell in cells.items():
        # No mtime: linecache.checkcache leaves such an entry alone, as it does for modules with a loader.
        linecache.cache[filename] = (len(cell.source), None, cell.source.splitlines(True), filename)
    return {filename: cell.name for filename, cell in cells.items()}


def format_location(filename: str, line: int, names: Mapping[str, str]) -> str:
    """``cell 5, line 7``, or ``train.py, line 7``."""
    name = names.get(filename)
    if name is None:
        return f"{os.path.basename(filename)}, line {line}"
    number = re.search(r"\d+", name)
    return (
        f"cell {number[0]}, line {line}"
        if number and "In" in name
        else f"{os.path.basename(name)}, line {line}"
    )


@functools.cache
def _library() -> tuple[str, ...]:
    """Where Python's own modules and installed packages lie."""
    import sysconfig  # 3 ms that a launching process needn't pay

    return tuple(
        os.path.realpath(sysconfig.get_path(name)) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )


def is_library(filename: str) -> bool:
    """Whether a file is no user's: Python's, an installed package's, this package's."""
    return filename.startswith(("<frozen", "<string>", _OURS, *_library())) or any(
        part in filename for part in _INSTALLED
    )


def is_ours(filename: str) -> bool:
    """Whether a file belongs to this package."""
    return filename.startswith(_OURS)
