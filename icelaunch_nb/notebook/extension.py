"""What ``%load_ext icelaunch_nb`` does."""

from __future__ import annotations

import importlib
import os
from typing import Any

from icelaunch_nb.client.host_pool import hosts
from icelaunch_nb.notebook.magic.magics import IcelaunchMagics


def load(shell: Any) -> None:
    """Starts the host, registers the magics, and imports what a launch needs.

    The host imports torch in the background, while the user types.
    """
    hosts.for_environ(os.environ)
    importlib.import_module("icelaunch_nb.pickling.packing")
    IcelaunchMagics(shell).register()
