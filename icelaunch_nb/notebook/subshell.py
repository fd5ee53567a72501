"""Handles clicks on the panel while a cell runs.

ipykernel 7 has subshells: threads that handle messages beside the main thread. A comm's message
goes to the subshell under whose id the comm last published, and otherwise to the main thread. So
the panel thread publishes under the id of a subshell.

ipykernel 6 has no subshells. There a cell that waits for a run handles the clicks itself. During
any other cell, clicks wait until the cell ends.

In this room, only this module uses private names of ipykernel. Where such a name has changed,
clicks wait as they do with ipykernel 6.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.client import display_hooks

# The subshell that all panels of a kernel share, by the kernel's id.
_subshells: dict[str, str] = {}
_create_lock = threading.Lock()
# The comm ids of our widgets. Other widgets don't expect to be called in the middle of a cell.
_registered: set[str] = set()


def current_kernel() -> Any:
    """The ipykernel of this process; None where there is none."""
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None)


def get_or_create(kernel: Any) -> str | None:
    """The id of our subshell, which is created if necessary; None where there are no subshells."""
    manager: Any = getattr(getattr(kernel, "shell_channel_thread", None), "manager", None)
    create = getattr(manager, "_create_subshell", None)
    if create is None or not hasattr(kernel, "_shell_parent"):
        return None
    with _create_lock:
        known = _subshells.get(kernel.ident)
        if known is not None and known in manager.list_subshell():
            return known
        done, created = threading.Event(), []

        def create_in_shell_channel_thread() -> None:
            try:
                created.append(create())
            finally:
                done.set()

        # Only the shell channel's thread may create subshells.
        kernel.shell_channel_thread.io_loop.add_callback(create_in_shell_channel_thread)
        done.wait(2)
        if created:
            _subshells[kernel.ident] = created[0]
        return created[0] if created else None


def publish_under(kernel: Any, cell: Mapping[str, Any], subshell: str | None) -> None:
    """Makes `cell` the parent of what this thread publishes from now on.

    ``kernel.set_parent`` isn't used, because it would also redirect what the user's threads print.

    Args:
        kernel: The ipykernel.
        cell: The message that requested the cell's execution.
        subshell: The id of the subshell that handles the replies; None for the main thread.
    """
    variable: Any = getattr(kernel, "_shell_parent", None)
    if hasattr(variable, "set"):
        header = {
            name: value for name, value in cell.get("header", {}).items() if name != "subshell_id"
        }
        variable.set(
            {**cell, "header": {**header, "subshell_id": subshell} if subshell else header}
        )


def register(comm_id: str) -> None:
    """Lets `handle_clicks` handle the messages for this widget."""
    _registered.add(comm_id)
    display_hooks.add_wait_callback(handle_clicks)


def unregister(comm_id: str) -> None:
    """Undoes `register`."""
    _registered.discard(comm_id)


def handle_clicks() -> None:
    """Handles the messages for our widgets in the main thread while a cell occupies it.

    Every other message keeps its place in the queue. This is for ipykernel 6, which puts all
    messages into one queue. Where there is no queue, this does nothing.
    """
    ipython: Any = sys.modules.get("IPython.core.getipython")
    kernel: Any = (
        getattr(ipython.get_ipython(), "kernel", None) if ipython and _registered else None
    )
    queue: Any = getattr(kernel, "msg_queue", None)
    if queue is None or threading.current_thread() is not threading.main_thread():
        return
    # Moves messages from the socket into the queue.
    kernel.shell_stream.flush()
    others = []
    try:
        while queue.qsize():
            others.append(queue.get_nowait())
            arguments = others[-1][2]
            if arguments and _is_click(kernel, arguments[0]):
                others.pop()
                _handle_click(kernel, arguments[0])
    finally:
        # Also after a KeyboardInterrupt, which may come at any moment.
        for entry in others:
            queue.put_nowait(entry)


def _is_click(kernel: Any, frames: Any) -> bool:
    """Whether a message is for one of our widgets.

    It is parsed here, because the session refuses to deserialize a message a second time.
    """
    # The kernel reports a malformed message.
    with contextlib.suppress(Exception):
        _, [_, header, _, _, content, *_] = kernel.session.feed_identities(frames, copy=False)
        return (
            json.loads(bytes(header))["msg_type"] == "comm_msg"
            and json.loads(bytes(content))["comm_id"] in _registered
        )
    return False


def _handle_click(kernel: Any, frames: Any) -> None:
    identities, frames = kernel.session.feed_identities(frames, copy=False)
    message = kernel.session.deserialize(frames, content=True, copy=False)

    def send_status(state: str, parent: Any) -> None:
        kernel.session.send(
            kernel.iopub_socket,
            "status",
            {"execution_state": state},
            parent=parent,
            ident=f"kernel.{kernel.ident}.status".encode(),
        )

    # ipykernel's own dispatch would make this message the parent of what the cell prints next.
    send_status("busy", message)
    kernel.comm_manager.comm_msg(kernel.shell_stream, identities, message)
    send_status("idle", message)
    # The cell still runs.
    send_status("busy", kernel.get_parent())
