"""What the panel and the form have in common as widgets."""

from __future__ import annotations

from typing import Any

import anywidget

from icelaunch_nb.system.plaintext import sendable


class RequestWidget(anywidget.AnyWidget):
    """A widget whose state a page can't set: the page only sends requests.

    Any other message on its comm is ignored, because our front end sends none.
    """

    def _handle_msg(self, msg: Any) -> None:
        data = msg["content"].get("data")
        if not isinstance(data, dict):
            return
        custom = data.get("method") == "custom" and isinstance(data.get("content"), dict)
        if custom or data.get("method") == "request_state":
            super()._handle_msg(msg)


def request_id(value: Any) -> str | int | None:
    """The id of a page's request, as the reply repeats it; None where the value is no id."""
    return sendable(value) if isinstance(value, str | int) else None
