"""The widget of the panel, which shows a run. It depends on nothing but the run directory.

The page receives `run_state` (what the journal reports) when it changes, and `live_state` (progress
and memory) at most four times a second. The ranks' logs and metrics are messages with binary
buffers. Clicks come back as messages.

Only the panel thread sends. The widget belongs to the threads that run cells and handle clicks. It
posts a message to its session and returns at once.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import traitlets

from icelaunch_nb.errors import IcelaunchError
from icelaunch_nb.notebook import subshell
from icelaunch_nb.notebook.panel import summary
from icelaunch_nb.notebook.panel.panel_thread import panel_thread
from icelaunch_nb.notebook.panel.session import Clicked, Closed, Shown
from icelaunch_nb.notebook.panel.view_model import ViewModel
from icelaunch_nb.notebook.widgets import RequestWidget

# Seconds in which a page must answer that it shows a new panel.
_ANSWER_TIMEOUT = 0.5


def bundle_file(name: str) -> str:
    """The text of a file of the front end's bundle.

    Raises:
        IcelaunchError: The bundle wasn't built.
    """
    path = Path(__file__).parent.parent / "frontend" / "dist" / name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise IcelaunchError(
            f"{path} is missing: the panel's front end is made when the package is installed; "
            "`pip install` it again"
        ) from None


CODE_FILES = ("panel.js", "panel.css")


@functools.cache
def _version() -> str:
    return hashlib.sha256("".join(map(bundle_file, CODE_FILES)).encode()).hexdigest()[:16]


def _outputs_are_isolated() -> bool:
    """Whether a widget's code can't reach the markup of an output in this front end.

    There the panel can't be mounted in the summary, so the output has to be a widget.
    """
    return "VSCODE_PID" in os.environ or "google.colab" in sys.modules


class RunPanel(RequestWidget):
    """The live view of a run: its state, its ranks, their logs and metrics, and its buttons.

    Args:
        run: A `Run`.
    """

    # This is the code and not the file's path. anywidget would watch the file, and the watcher
    # would keep every widget that was ever made.
    _esm = bundle_file("loader.js")

    # The version of the code that the loader requests.
    version = traitlets.Unicode().tag(sync=True)
    # The CSS class of the markup in which the panel is mounted.
    mount_class = traitlets.Unicode().tag(sync=True)
    run_state = traitlets.Dict().tag(sync=True)
    live_state = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Any) -> None:
        self.run = run
        self._page_answered = False
        self._shown_at: float | None = None
        # Other threads read this list, so it is only appended to.
        self._display_ids: list[str] = []
        model = ViewModel(run)
        super().__init__(
            version=_version(),
            mount_class=f"icelaunch-{secrets.token_hex(8)}",
            run_state=model.run_state(),
            live_state=model.live_state({}, {}),
        )
        self.on_msg(RunPanel._on_message)
        subshell.register(self.model_id)

    def _on_message(self, content: Any, _buffers: Any) -> None:
        self._page_answered = True
        panel_thread.post(self, Clicked(content))

    @property
    def shows_output(self) -> bool:
        """Whether a page shows what the ranks print. If so, a waiting cell doesn't print it.

        A new panel counts as shown for 0.5 s, until a page has had time to answer.
        """
        if self._page_answered:
            return True
        if self._shown_at is None or self.run.state.over:
            return False
        return time.monotonic() - self._shown_at < _ANSWER_TIMEOUT

    def close(self) -> None:
        """Closes the widget. The output shows the summary from then on."""
        # ipywidgets closes a widget again when it is garbage collected.
        if self.comm is None:
            return
        # The layout is a separate widget, which ipywidgets doesn't close.
        layout = self.layout
        subshell.unregister(self.model_id)
        super().close()
        layout.close()
        panel_thread.post(self, Closed())

    def _ipython_display_(self) -> None:
        from IPython.display import display

        kernel = subshell.current_kernel()
        self._shown_at = time.monotonic()
        handle = display(self.mime_bundle(), raw=True, display_id=True)
        if handle is not None:
            self._display_ids.append(handle.display_id)
        if kernel is not None:
            panel_thread.post(self, Shown(dict(kernel.get_parent()), self._shown_at))

    def show_in(self, cell: dict[str, Any]) -> None:
        """Handles the display of the panel as a part of another widget.

        Args:
            cell: The message that requested the execution of the displaying cell.
        """
        self._shown_at = time.monotonic()
        panel_thread.post(self, Shown(cell, self._shown_at))

    def mime_bundle(self, *, live: bool = True) -> dict[str, Any]:
        """The content of an output: the static summary, by MIME type.

        While the widget is open, the page mounts the panel in place of the summary.

        Args:
            live: Whether the panel may be mounted.
        """
        html, live = summary.html(self.run), live and self.comm is not None
        if live:
            html = f'<div class="icelaunch-mount {self.mount_class}">{html}</div>'
        data: dict[str, Any] = {"text/plain": summary.text(self.run), "text/html": html}
        if live and _outputs_are_isolated():
            data["application/vnd.jupyter.widget-view+json"] = {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.model_id,
            }
        return data

    def send_code(self) -> None:
        """Sends the panel's code, which the page's loader waits for."""
        self.send({"kind": "code"}, [bundle_file(name).encode() for name in CODE_FILES])

    def update_live_outputs(self) -> dict[str, Any]:
        """Updates the outputs while the run goes on, as `update_displays` does.

        Outputs that are widgets aren't updated, because each update would make the widget anew.
        """
        return {} if _outputs_are_isolated() else self.update_displays()

    def update_displays(self, *, live: bool = True) -> dict[str, Any]:
        """Updates all outputs that show this panel. Any thread may call this.

        A page that was loaded after the display doesn't know the display's id. So the session sends
        the new content to the page's code as well.

        Args:
            live: Whether the panel may be mounted in the outputs.

        Returns:
            The outputs' new content by MIME type; empty where there are no outputs.
        """
        kernel = subshell.current_kernel()
        if kernel is None or not self._display_ids:
            return {}
        data = self.mime_bundle(live=live)
        for display_id in list(self._display_ids):
            kernel.session.send(
                kernel.iopub_socket,
                "update_display_data",
                {"data": data, "metadata": {}, "transient": {"display_id": display_id}},
                parent=kernel.get_parent(),
                ident=f"kernel.{kernel.ident}.update_display_data".encode(),
            )
        return data


def panel_of(run: Any) -> RunPanel:
    """The panel of a run. All views of the run share it."""
    return panel_thread.get_or_create(run.log_dir, lambda: RunPanel(run))
