"""Places in code as their user names them: ``cell 5, line 7``."""

from __future__ import annotations

import json
import linecache
import os
import re
import sysconfig
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.rundir import RunDir

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY = tuple(
    os.path.realpath(sysconfig.get_path(name)) + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def cell_names(run_dir: RunDir) -> dict[str, str]:
    """Name to show (``Cell In[3]``) by code filename, of the cells that a run's functions come from."""
    return {filename: cell["name"] for filename, cell in _sources(run_dir).items()}


def know_cells(run_dir: RunDir) -> dict[str, str]:
    """Puts the cells' sources where tracebacks, inspect, pdb and torch.compile look; returns `cell_names`."""
    for filename, cell in _sources(run_dir).items():
        # No mtime: linecache.checkcache leaves such an entry alone, as it does for modules with a loader.
        linecache.cache[filename] = (
            len(cell["source"]),
            None,
            cell["source"].splitlines(True),
            filename,
        )
    return cell_names(run_dir)


def _sources(run_dir: RunDir) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(run_dir.sources.read_bytes())
    except (OSError, ValueError):  # a program has none
        return {}


def place(filename: str, line: int, names: Mapping[str, str]) -> str:
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


def is_library(filename: str) -> bool:
    """Whether a file is no user's: Python's, an installed package's, this package's."""
    return filename.startswith(("<frozen", "<string>", _OURS, *_LIBRARY)) or any(
        part in filename for part in _INSTALLED
    )


def is_ours(filename: str) -> bool:
    """Whether a file belongs to this package."""
    return filename.startswith(_OURS)
