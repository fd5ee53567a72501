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

_PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INSTALLED_PARTS = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@dataclass(eq=False, repr=False)
class CellSource(Record):
    """A cell that functions of the run come from.

    Attributes:
        name: The cell's name for users: ``Cell In[3]``.
        source: The cell's text.
    """

    name: Text
    source: Annotated[str, text(64 << 20)]


def read_sources(run_dir: RunDir) -> dict[str, CellSource]:
    """Reads the cells that a run's functions come from, by code filename."""
    try:
        return dict(parse_each(CellSource, parse_json(run_dir.read(run_dir.sources))))
    # A program has none.
    except (OSError, ValueError):
        return {}


def cell_names(run_dir: RunDir) -> dict[str, str]:
    """Reads the names of a run's cells (``Cell In[3]``), by code filename."""
    return {filename: cell.name for filename, cell in read_sources(run_dir).items()}


def register_cells(run_dir: RunDir) -> dict[str, str]:
    """Adds the cells' sources to linecache, for tracebacks, inspect, pdb and torch.compile.

    Returns:
        The same as `cell_names`.
    """
    cells = read_sources(run_dir)
    for filename, cell in cells.items():
        # Without an mtime, linecache.checkcache leaves the entry alone, as it does for modules with
        # a loader.
        linecache.cache[filename] = (len(cell.source), None, cell.source.splitlines(True), filename)
    return {filename: cell.name for filename, cell in cells.items()}


def format_location(filename: str, line: int, names: Mapping[str, str]) -> str:
    """Formats a location: ``cell 5, line 7``, or ``train.py, line 7``.

    Args:
        filename: The code's filename.
        line: The line's number.
        names: The names of cells, by code filename.
    """
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
def _library_dirs() -> tuple[str, ...]:
    """The directories of Python's own modules and of installed packages."""
    # Not at the top: the import takes 3 ms, which a launching process needn't pay.
    import sysconfig

    return tuple(
        os.path.realpath(sysconfig.get_path(name)) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )


def is_library(filename: str) -> bool:
    """Whether a file is Python's, an installed package's or this package's, and not the user's."""
    return filename.startswith(("<frozen", "<string>", _PACKAGE_DIR, *_library_dirs())) or any(
        part in filename for part in _INSTALLED_PARTS
    )


def is_ours(filename: str) -> bool:
    """Whether a file belongs to this package."""
    return filename.startswith(_PACKAGE_DIR)
