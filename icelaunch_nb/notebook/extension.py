"""What ``%load_ext icelaunch_nb`` does."""

from __future__ import annotations

import os
from typing import Any

from icelaunch_nb.notebook.hosts import hosts
from icelaunch_nb.notebook.magic.magics import Magic


def load(shell: Any) -> None:
    """Starts the host, which imports torch while the user goes on typing; then the magics are there."""
    hosts.for_environ(os.environ)
    Magic(shell).register()
