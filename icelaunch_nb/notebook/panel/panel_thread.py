"""The thread that serves all open panels of a kernel.

It looks at the run directories and sends what is new; it alone sends. It ends with the last panel that has something to wait
for, and is started again when one has.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from icelaunch_nb.notebook.panel.service import Service

_LOOK = 0.01  # between two looks at the logs of a quiet run
_LONGEST = 2.0  # and of a busy machine's
_LINGER = 2.0  # that the thread waits for another run before it ends; ipykernel keeps sockets for each new thread that sends
_REST = 2.0  # after something went wrong
_KEPT = 16  # finished runs whose panels stay widgets; those of older ones turn into their summary

_log = logging.getLogger(__name__)


class Panels:
    """The panels of this kernel, and their thread while one of them has something to wait for."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._panels: dict[str, Any] = {}
        self._services: dict[str, Service] = {}
        self._waiting: deque[str] = deque()
        self._thread: threading.Thread | None = None
        self._wake, self._stopping = threading.Event(), False

    def of_run(self, path: str, make: Callable[[], Any]) -> Any:
        """The panel of the run at `path`, made if there is none; those of runs that ended long ago are closed."""
        with self._lock:
            if path not in self._panels:
                self._panels[path] = make()
                over = [
                    old
                    for old, panel in self._panels.items()
                    if old != path and panel.run.state.over
                ]
                for old in over[: max(0, len(over) - _KEPT)]:
                    self.close(old)
            return self._panels[path]

    def close(self, path: str) -> None:
        """Turns a panel into its summary."""
        with self._lock:
            panel, _ = self._panels.pop(path, None), self._services.pop(path, None)
        if panel is not None:
            panel.renew_displays(live=False)
            panel.close()

    def serve(self, panel: Any) -> None:
        """Has the thread look after a panel, until there is nothing to wait for."""
        with self._lock:
            if panel.comm is None:
                return
            path = panel.run.log_dir
            if path not in self._services:
                self._services[path] = Service(panel)
            if path not in self._waiting:
                self._waiting.append(path)
            if self._thread is None:
                self._stopping = False
                self._thread = threading.Thread(
                    target=self._serve_all, name="icelaunch-panels", daemon=True
                )
                self._thread.start()
        self._wake.set()

    def stop(self) -> None:
        """Ends the thread and waits for it; the panels stay as they are."""
        with self._lock:
            thread, self._stopping = self._thread, True
        self._wake.set()
        if thread is not None:
            thread.join(5)

    def _serve_all(self) -> None:
        wanted = time.monotonic()
        while True:
            started = time.monotonic()
            self._wake.clear()
            for path in list(self._waiting):
                if not self._serve_one(path):
                    with self._lock:
                        service = self._services.get(path)
                        if (service is None or not service.panel.wishes) and path in self._waiting:
                            self._waiting.remove(path)
            with self._lock:
                if self._waiting:
                    wanted = started
                elif self._stopping or started - wanted > _LINGER:
                    self._thread = None
                    return
                if self._stopping:
                    self._waiting.clear()
                    continue
            if not self._waiting:
                self._wake.wait(_LINGER)
                continue
            # At most a tenth of a core, however many ranks are looked at; but a front end that hears nothing takes us for dead.
            self._wake.wait(min(_LONGEST, max(_LOOK, 9 * (time.monotonic() - started))))

    def _serve_one(self, path: str) -> bool:
        service = self._services.get(path)
        if service is None or service.panel.comm is None:
            return False
        if time.monotonic() < service.rests_until:
            return True
        try:
            service.panel.join_cell()
            waits = service.turn()
            if not waits:
                service.panel.join_cell(subshell_too=False)
            return waits
        except Exception:
            # What can't be served now must not stop the others; the kernel's log says why. Nor is it given up for a moment's trouble.
            _log.exception("the panel of %s", path)
            service.rests_until = time.monotonic() + _REST
            return os.path.isdir(path)


panels = Panels()
