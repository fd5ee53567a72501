"""What ``%load_ext icelaunch_nb`` does."""

from __future__ import annotations

import os
from typing import Any

from icelaunch_nb.notebook.hosts import hosts


def load(shell: Any) -> None:
    """Starts the host; it imports torch while the user goes on typing."""
    hosts.for_environ(os.environ)
