"""The source of the cells that functions come from.

Tracebacks, ``inspect.getsource`` and torch.compile need it in the ranks.
"""

from __future__ import annotations

import linecache
import os
import sys
import types


def cell_sources(functions: list[types.FunctionType]) -> dict[str, dict[str, str]]:
    """Source and name of the cells that functions come from, by code filename; no real files."""
    found: dict[str, dict[str, str]] = {}
    for filename in {function.__code__.co_filename for function in functions}:
        if not os.path.exists(filename) and (lines := linecache.getlines(filename)):
            found[filename] = {"name": _cell_name(filename), "source": "".join(lines)}
    return found


def _cell_name(filename: str) -> str:
    """The cell's name as in the notebook's own tracebacks: ``Cell In[3]``."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    label = getattr(getattr(shell, "compile", None), "format_code_name", lambda _: None)(filename)
    return " ".join(label) if label else filename
