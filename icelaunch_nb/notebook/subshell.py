"""A loop of the kernel's that is free while a cell runs, so that a click on the panel is handled then too.

ipykernel 7 has subshells: threads that handle messages beside the main one. It hands a message on a comm to the subshell under
whose name that comm was last published on, and to the main thread otherwise. So the panel's thread publishes under the name of
a subshell. ipykernel 6 has none of this: there a cell that waits for a run takes the clicks itself, and any other cell makes them wait
for its end.

Everything that only ipykernel knows is in this module. Where a name has changed, clicks wait as they do with ipykernel 6.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Mapping
from typing import Any

_made: dict[str, str] = {}  # one for all panels of this kernel, by the kernel's own id
_making = threading.Lock()
_listening: set[str] = (
    set()
)  # ids of our widgets: other people's don't expect to be called in the middle of a cell


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

        kernel.shell_channel_thread.io_loop.add_callback(
            create
        )  # subshells are made in this thread alone
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
        header = {
            name: value for name, value in cell.get("header", {}).items() if name != "subshell_id"
        }
        variable.set(
            {**cell, "header": {**header, "subshell_id": subshell} if subshell else header}
        )


def listen(comm_id: str) -> None:
    """Has `take_clicks` take what comes for this widget."""
    _listening.add(comm_id)


def unlisten(comm_id: str) -> None:
    """The way back from `listen`."""
    _listening.discard(comm_id)


def take_clicks() -> None:
    """Handles what has come for our widgets, in the kernel's main thread while a cell keeps it; everything else keeps its turn.

    For ipykernel 6, which puts messages into one queue; where there is none, this does nothing.
    """
    ipython: Any = sys.modules.get("IPython.core.getipython")
    kernel: Any = getattr(ipython.get_ipython(), "kernel", None) if ipython and _listening else None
    queue: Any = getattr(kernel, "msg_queue", None)
    if queue is None or threading.current_thread() is not threading.main_thread():
        return
    kernel.shell_stream.flush()  # from the socket into the queue
    others = []
    try:
        while queue.qsize():
            others.append(queue.get_nowait())
            arguments = others[-1][2]
            if arguments and _is_a_click(kernel, arguments[0]):
                others.pop()
                _click(kernel, arguments[0])
    finally:  # an interrupt may come at any moment
        for entry in others:
            queue.put_nowait(entry)


def _is_a_click(kernel: Any, frames: Any) -> bool:
    """Looks at a message without taking it apart: the session refuses one that is read a second time."""
    with contextlib.suppress(Exception):  # whatever it is, the kernel will say it
        _, [_, header, _, _, content, *_] = kernel.session.feed_identities(frames, copy=False)
        return (
            json.loads(bytes(header))["msg_type"] == "comm_msg"
            and json.loads(bytes(content))["comm_id"] in _listening
        )
    return False


def _click(kernel: Any, frames: Any) -> None:
    identities, frames = kernel.session.feed_identities(frames, copy=False)
    message = kernel.session.deserialize(frames, content=True, copy=False)

    def say(state: str, parent: Any) -> None:
        kernel.session.send(
            kernel.iopub_socket,
            "status",
            {"execution_state": state},
            parent=parent,
            ident=f"kernel.{kernel.ident}.status".encode(),
        )

    # Not the kernel's own way, which would make the message the parent of what the cell prints from here on.
    say("busy", message)
    kernel.comm_manager.comm_msg(kernel.shell_stream, identities, message)
    say("idle", message)
    say("busy", kernel.get_parent())  # the cell still runs
