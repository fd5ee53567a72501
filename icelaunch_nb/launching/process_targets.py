"""What a new process runs, by name. The new process imports it; the one that starts it doesn't.

So `host` starts agents without importing `agent`, and `agent` starts ranks without importing
`worker`.
"""

from __future__ import annotations

import importlib
from typing import Any

AGENT = "icelaunch_nb.agent.main:main"
RANK = "icelaunch_nb.worker.main:main"


def resolve(name: str) -> Any:
    """The object named ``module:attribute``. Its module is imported if it isn't yet."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def run(name: str, *args: Any) -> None:
    """Calls the function of that name; the target of new processes."""
    resolve(name)(*args)


def do_nothing() -> None:
    """The target of a process that only shows that the forkserver works."""
