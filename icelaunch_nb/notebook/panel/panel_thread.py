"""The thread that serves all panels of a kernel.

It polls the run directories and sends what is new. No other thread sends. It ends soon after no
panel has anything left to send, and starts again with the next message to a panel.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from icelaunch_nb.notebook.panel.session import Message, PanelSession, Retired

# Seconds between two polls, where these take little time.
_POLL_INTERVAL = 0.01
# Seconds between two polls at most, where the machine is busy.
_MAX_POLL_INTERVAL = 2.0
# Seconds that the thread waits for another run before it ends. ipykernel opens sockets for each
# new thread that sends, and keeps them.
_LINGER = 2.0
# Seconds between an error of a panel and its next attempt.
_RETRY_DELAY = 2.0
# Finished runs whose panels stay widgets. Panels of older runs turn into their summary.
_KEPT_PANELS = 16

_log = logging.getLogger(__name__)


class PanelThread:
    """The panels of this kernel, and the thread that serves them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # By run directory, the oldest first.
        self._sessions: dict[str, PanelSession] = {}
        # Sessions of retired panels that must still send their summary.
        self._retired: list[PanelSession] = []
        # Sessions that have something to send or to wait for.
        self._active: deque[PanelSession] = deque()
        self._retry_at: dict[PanelSession, float] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def get_or_create(self, path: str, create: Callable[[], Any]) -> Any:
        """Returns the panel of a run. The panels of the oldest finished runs retire.

        Args:
            path: The run directory.
            create: Makes the panel if there is none.
        """
        with self._lock:
            if path not in self._sessions:
                self._sessions[path] = PanelSession(create(), self._wake.set)
                over = [
                    old
                    for old, session in self._sessions.items()
                    if old != path and session.panel.run.state.over
                ]
                for old in over[: max(0, len(over) - _KEPT_PANELS)]:
                    session = self._sessions.pop(old)
                    self._retired.append(session)
                    self._post(session, Retired())
            return self._sessions[path].panel

    def post(self, panel: Any, message: Message) -> None:
        """Posts a message to a panel's session, which is then served until it has nothing to do."""
        with self._lock:
            for session in (self._sessions.get(panel.run.log_dir), *self._retired):
                if session is not None and session.panel is panel:
                    self._post(session, message)

    def _post(self, session: PanelSession, message: Message) -> None:
        with self._lock:
            session.post(message)
            if session not in self._active:
                self._active.append(session)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve_all, name="icelaunch-panels", daemon=True
                )
                self._thread.start()
        self._wake.set()

    def _serve_all(self) -> None:
        last_active = time.monotonic()
        while True:
            started = time.monotonic()
            self._wake.clear()
            for session in list(self._active):
                if not self._serve(session):
                    self._deactivate(session)
            with self._lock:
                if self._active:
                    last_active = started
                elif started - last_active > _LINGER:
                    self._thread = None
                    return
            if not self._active:
                self._wake.wait(_LINGER)
                continue
            # The thread uses at most a tenth of a core, however many ranks are shown. The interval
            # is bounded, because a page that receives nothing reports the kernel as lost.
            spent = time.monotonic() - started
            self._wake.wait(min(_MAX_POLL_INTERVAL, max(_POLL_INTERVAL, 9 * spent)))

    def _serve(self, session: PanelSession) -> bool:
        if time.monotonic() < self._retry_at.get(session, 0.0):
            return True
        try:
            return session.serve()
        except Exception:
            # The other panels are still served. This one is retried, since the cause may pass.
            path = session.panel.run.log_dir
            _log.exception("the panel of %s", path)
            self._retry_at[session] = time.monotonic() + _RETRY_DELAY
            return os.path.isdir(path)

    def _deactivate(self, session: PanelSession) -> None:
        """Stops serving a session until a message comes, unless a message waits already."""
        with self._lock:
            if session.has_messages and not session.closed:
                return
            self._active.remove(session)
            if session in self._retired:
                self._retired.remove(session)
                self._retry_at.pop(session, None)


panel_thread = PanelThread()
