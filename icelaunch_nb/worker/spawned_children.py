"""Gives the processes that a rank starts by spawn or forkserver the notebook's ``__main__``.

Python makes such a process run the file of its parent's ``__main__`` first, so that it finds what
is pickled by name. A notebook has no such file, so the rank writes one. That file loads the
functions and classes of cells that the rank itself got, and those that a cell's body has defined
since.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from icelaunch_nb.pickling import explain, packing
from icelaunch_nb.rundir import source_locations
from icelaunch_nb.rundir.paths import RankDir, RunDir
from icelaunch_nb.system import cpython

_numbers = itertools.count()


def provide_main(run_dir: RunDir, rank_dir: RankDir) -> Callable[[], None]:
    """Gives this rank's children a ``__main__``.

    Args:
        run_dir: The run's directory.
        rank_dir: The rank's folder, where the file is written.

    Returns:
        A function to call once the rank's own ``__main__`` is complete.
    """
    loaded: dict[str, Any] = {}  # the rank's own `__main__`, when it was complete
    written: list[tuple[dict[str, Any], str]] = []  # names and file of each write

    def main_file() -> str:
        added = {
            name: value
            for name, value in list(vars(sys.modules["__main__"]).items())
            if isinstance(value, types.FunctionType | type)
            and loaded.get(name) is not value
            and value.__module__ == "__main__"
        }
        if not written or written[-1][0] != added:
            # Another path each time: a forkserver that has run a file doesn't run it again.
            script, data = rank_dir.child_main(next(_numbers))
            packing.dump(
                {name: value for name, value in added.items() if explain.can_pickle(value)}, data
            )
            run_dir.write(
                script,
                f"from {__name__} import load\n"
                f"load(globals(), {str(run_dir.path)!r}, {str(data)!r})\n",
            )
            written.append((added, str(script)))
        return written[-1][1]

    cpython.set_main_of_children(main_file)
    return lambda: loaded.update(vars(sys.modules["__main__"]))


def load(namespace: dict[str, Any], run_dir: str, data: str) -> None:
    """Fills the ``__main__`` of a rank's child.

    Args:
        namespace: The globals to fill.
        run_dir: The run's directory.
        data: The file with the functions and classes that the rank has defined itself.
    """
    original, main = sys.modules["__main__"], types.ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        run = RunDir(Path(run_dir))
        source_locations.register_cells(run)
        packing.load(run.call)
        packing.adopt_main_classes()
        vars(main).update(packing.load(Path(data)))
    finally:
        sys.modules["__main__"] = original
    namespace.update(
        {
            name: value
            for name, value in vars(main).items()
            if not (name.startswith("__") and name.endswith("__"))
        }
    )
