"""A loop of the kernel's that is free while a cell runs, so that a click on the panel is handled then too.

ipykernel 7 has subshells: threads that handle messages beside the main one. It hands a message on a comm to the subshell under
whose name that comm was last published on, and to the main thread otherwise. So the panel's thread publishes under the name of
a subshell. ipykernel 6 has none of this: there a click waits for the cell's end.

Everything that only ipykernel knows is in this module. Where a name has changed, clicks wait as they do with ipykernel 6.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

_made: dict[str, str] = {}  # one for all panels of this kernel, by the kernel's own id
_making = threading.Lock()


def of_kernel(kernel: Any) -> str | None:
    """The id of our subshell, made if need be; None where there can be none."""
    manager: Any = getattr(getattr(kernel, "shell_channel_thread", None), "manager", None)
    make = getattr(manager, "_create_subshell", None)
    if make is None or not hasattr(kernel, "_shell_parent"):
        return None
    with _making:
        known = _made.get(kernel.ident)
        if known is not None and known in manager.list_subshell():
            return known
        done, found = threading.Event(), []

        def create() -> None:
            try:
                found.append(make())
            finally:
                done.set()

        kernel.shell_channel_thread.io_loop.add_callback(create)  # subshells are made in this thread alone
        done.wait(2)
        if found:
            _made[kernel.ident] = found[0]
        return found[0] if found else None


def publish_under(kernel: Any, cell: Mapping[str, Any], subshell: str | None) -> None:
    """What this thread publishes from now on belongs to `cell`, and replies to it go to `subshell`.

    Not by ``kernel.set_parent``: that would also turn what the user's own threads print towards our cell.
    """
    variable: Any = getattr(kernel, "_shell_parent", None)
    if hasattr(variable, "set"):
        header = {name: value for name, value in cell.get("header", {}).items() if name != "subshell_id"}
        variable.set({**cell, "header": {**header, "subshell_id": subshell} if subshell else header})
