"""What a new process runs, by name: the process that starts it never imports it, the new one does.

So the rooms stay apart: the host starts agents and imports no agent, the agent starts ranks and imports no rank.
"""

from __future__ import annotations

import importlib
from typing import Any

AGENT = "icelaunch_nb.agent.main:main"
RANK = "icelaunch_nb.worker.main:main"


def find(name: str) -> Any:
    """The object of a name, ``module:attribute``, which is imported here if it has to be."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def run(name: str, *args: Any) -> None:
    """What a new process starts with: calls the function of a name."""
    find(name)(*args)


def nothing() -> None:
    """Proves that the forkserver answers."""
