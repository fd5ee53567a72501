"""Turns tqdm's notebook bars into text bars in a rank's log.

Code that was written in a notebook says ``from tqdm.notebook import tqdm``. In a rank no notebook
draws the widget: it would print one bar at 0 %, or raise an ImportError about IProgress without
ipywidgets. ``tqdm`` and ``tqdm.auto`` choose text bars in a rank by themselves.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NAME = "tqdm.notebook"


def install() -> None:
    """Makes ``tqdm.notebook`` give text bars.

    tqdm itself is imported when the first bar is used.
    """
    if _NAME not in sys.modules:
        sys.modules[_NAME] = _TextBars(_NAME)


class _TextBars(ModuleType):
    """Stands in for the module ``tqdm.notebook``. Its names are made when they are first used."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "Text bars under the names of tqdm's notebook bars.")
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name not in ("tqdm", "tqdm_notebook", "trange", "tnrange"):
            raise AttributeError(f"module {_NAME!r} of a rank has no attribute {name!r}")
        from tqdm.std import tqdm

        class tqdm_notebook(tqdm):  # type: ignore[misc]
            """A text bar that takes the arguments of a notebook bar."""

            def __init__(self, *args: Any, display: bool = True, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)

        def trange(*args: Any, **kwargs: Any) -> Any:
            return tqdm_notebook(range(*args), **kwargs)

        self.tqdm = self.tqdm_notebook = tqdm_notebook
        self.trange = self.tnrange = trange
        return self.__dict__[name]
