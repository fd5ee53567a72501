"""The panel: a run as one sees it in a notebook. A pure function of the run directory.

This goes to the front end: `story`, what the journal says, when that changes; `pulse`, what moves all the time, at most four
times a second; the ranks' logs and their metrics, as messages with binary buffers. Clicks come back as messages. All of it is sent
by the thread in `panels`; what happens here happens in the thread that handles a cell or a click, and takes no time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from icelaunch_nb.errors import IcelaunchError
from icelaunch_nb.notebook import subshell
from icelaunch_nb.notebook.panel import summary
from icelaunch_nb.notebook.panel.panels import panels
from icelaunch_nb.notebook.panel.portrait import Portrait
from icelaunch_nb.notebook.panel.service import SHOWN_AGAIN

_MOMENT = 0.5  # seconds that a front end gets to say that it shows a new panel


def built(name: str) -> str:
    """A file of the front end's bundle."""
    path = Path(__file__).parent.parent / "frontend" / "dist" / name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise IcelaunchError(
            f"{path} is missing: the panel's front end is made when the package is installed; `pip install` it again"
        ) from None


CODE = ("panel.js", "panel.css")


@functools.cache
def _version() -> str:
    return hashlib.sha256("".join(map(built, CODE)).encode()).hexdigest()[:16]


def _outputs_are_apart() -> bool:
    """Whether this front end keeps markup where a widget's code can't reach it: there the output has to be a widget."""
    return "VSCODE_PID" in os.environ or "google.colab" in sys.modules


class RunPanel(anywidget.AnyWidget):
    """The live view of a run: its state, its ranks, their logs, and the buttons to act on it.

    Args:
        run: A `Run`.
    """

    # A text, not a path: anywidget has whoever watches a path's file keep every widget that was ever made of it.
    _esm = built("loader.js")

    version = traitlets.Unicode().tag(sync=True)  # of the code that the loader is to ask for
    place = traitlets.Unicode().tag(sync=True)  # class of the markup where it is to stand
    story = traitlets.Dict().tag(sync=True)
    pulse = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Any) -> None:
        self.run = run
        self.wishes: deque[dict[str, Any]] = deque()  # clicks that the thread hasn't seen yet
        self.seen = False  # whether a front end has said that it shows this
        self.shown_again_at: list[float] = []
        self._cell: dict[str, Any] = {}  # the message that asked for the newest display
        self._shown_at: float | None = None
        self._display_ids: list[str] = []
        portrait = Portrait(run)
        super().__init__(
            version=_version(),
            place=f"icelaunch-{secrets.token_hex(8)}",
            story=portrait.story(),
            pulse=portrait.pulse({}, {}),
        )
        self.on_msg(RunPanel._hear)
        subshell.listen(self.model_id)

    def _hear(self, content: dict[str, Any], _buffers: Any) -> None:
        self.seen = True
        self.wishes.append(content)
        panels.serve(self)

    @property
    def speaks(self) -> bool:
        """Whether what the ranks print is seen here, so that a waiting cell needn't print it as well.

        A new panel is given the benefit of the doubt for a moment.
        """
        return self.seen or (
            self._shown_at is not None
            and time.monotonic() - self._shown_at < _MOMENT
            and not self.run.state.over
        )

    def close(self) -> None:
        """Ends the widget; what it showed becomes the summary in the output."""
        if self.comm is None:  # ipywidgets closes a widget that nobody holds any more once again
            return
        layout = self.layout  # a widget of its own, that nobody else would close
        subshell.unlisten(self.model_id)
        super().close()
        layout.close()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        kernel = _kernel()
        self._shown_at = time.monotonic()
        if kernel is not None:
            self._cell = dict(kernel.get_parent())
            self.shown_again_at = [self._shown_at + after for after in SHOWN_AGAIN]
        handle = display(self.bundle(), raw=True, display_id=True)
        if handle is not None:
            self._display_ids.append(handle.display_id)
        if kernel is not None:
            panels.serve(self)

    def stand_in(self, cell: dict[str, Any]) -> None:
        """It is shown as a part of another widget, which `cell` shows."""
        self._cell, self._shown_at = cell, time.monotonic()
        self.shown_again_at = [self._shown_at + after for after in SHOWN_AGAIN]
        panels.serve(self)

    def bundle(self, *, live: bool = True) -> dict[str, Any]:
        """What an output holds: the static summary, in whose place the front end shows the panel while it lives."""
        html, live = summary.html(self.run), live and self.comm is not None
        data: dict[str, Any] = {
            "text/plain": summary.text(self.run),
            "text/html": f'<div class="icelaunch-place {self.place}">{html}</div>'
            if live
            else html,
        }
        if live and _outputs_are_apart():
            data["application/vnd.jupyter.widget-view+json"] = {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.model_id,
            }
        return data

    def send_code(self) -> None:
        """Gives a page the panel's own code, which the loader waits for."""
        self.send({"kind": "code"}, [built(name).encode() for name in CODE])

    def join_cell(self, *, subshell_too: bool = True) -> None:
        """What the calling thread sends from now on belongs to the cell that shows the panel."""
        kernel = _kernel()
        if kernel is not None:
            subshell.publish_under(
                kernel, self._cell, subshell.of_kernel(kernel) if subshell_too else None
            )

    def renew_outputs(self) -> None:
        """As `renew_displays`, while the run goes on: where the output is a widget, it would be made anew each time."""
        if not _outputs_are_apart():
            self.renew_displays()

    def renew_displays(self, *, live: bool = True) -> None:
        """Brings the outputs that hold this panel up to date, from any thread; where they stand doesn't matter."""
        kernel = _kernel()
        if kernel is None:
            return
        data = self.bundle(live=live) if self._display_ids else {}
        for display_id in self._display_ids:
            kernel.session.send(
                kernel.iopub_socket,
                "update_display_data",
                {"data": data, "metadata": {}, "transient": {"display_id": display_id}},
                parent=kernel.get_parent(),
                ident=f"kernel.{kernel.ident}.update_display_data".encode(),
            )


def _kernel() -> Any:
    """The ipykernel that this process is, or None."""
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None)


def panel_of(run: Any) -> RunPanel:
    """The panel of a run; there is one for all its views."""
    return panels.of_run(run.log_dir, lambda: RunPanel(run))
