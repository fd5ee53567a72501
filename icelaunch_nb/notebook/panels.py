"""The thread that serves all open panels of a kernel.

It looks at the run directories and sends what is new; it alone sends. It ends with the last panel that has something to wait
for, and is started again when one has.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from icelaunch_nb.notebook.deeds import DEEDS, Deed
from icelaunch_nb.notebook.follower import STREAMS, Follower
from icelaunch_nb.notebook.portrait import Portrait

_RATE = 850_000  # bytes a second of logs, of one panel; with all that goes around them less than 1 MB
_BURST = 1 << 17  # and how much of it may come at once
_REPLAY = 1 << 20  # what a front end that has just opened gets of the logs
_BETWEEN = 0.05  # seconds between two messages with logs: 20 a second
_PULSE = 0.1  # between two pulses
_BEAT = 1.0  # and at the latest, so that a front end knows that we live
_LOOK = 0.01  # between two looks at the logs of a quiet run
SHOWN_AGAIN = (0.3, 1.0, 2.5)  # after a display; a front end whose "hello" waits for a busy kernel has missed what came before
_LINGER = 2.0  # that the thread waits for another run before it ends; ipykernel keeps sockets for each new thread that sends
_REST = 2.0  # after something went wrong
_KEPT = 16  # finished runs whose panels stay widgets; those of older ones turn into their summary

_log = logging.getLogger(__name__)


class Service:
    """What the thread does for one panel.

    Args:
        panel: A `RunPanel`.
    """

    def __init__(self, panel: Any) -> None:
        self.panel = panel
        self._portrait = Portrait(panel.run)
        self._follower = Follower(self._portrait.dir)
        self._attempts = 0
        self._allowance, self._counted = float(_BURST), time.monotonic()
        self._next_log = self._next_pulse = 0.0
        self._pulse_sent: tuple[float, str] = (0.0, "")
        self._story_sent: Any = None
        self._over_told = False
        self._helpers: list[threading.Thread] = []
        self.rests_until = 0.0

    def turn(self) -> bool:
        """Sends what is new; whether there is more to wait for."""
        panel = self.panel
        story = panel.run.story
        while panel.wishes:
            self._grant(panel.wishes.popleft())
        for attempt in story.attempts[self._attempts :]:
            self._follower.follow(attempt)
        self._attempts = len(story.attempts)
        if panel.shown_again_at and time.monotonic() >= panel.shown_again_at[0]:
            panel.shown_again_at.pop(0)
            if not panel.seen:
                self.replay()
        if story is not self._story_sent:
            self._story_sent = story
            panel.story = self._portrait.story()
        self._follower.look()
        self._send_logs()
        self._send_pulse(over=story.state.over)
        self._helpers = [helper for helper in self._helpers if helper.is_alive()]
        waits = bool(self._follower.backlog or self._helpers or panel.wishes or (panel.shown_again_at and not panel.seen))
        if story.state.over and not waits and not self._over_told:
            self._over_told = True
            panel.renew_displays()
        return waits or not story.state.over

    def _send_logs(self) -> None:
        now = time.monotonic()
        self._allowance = min(_BURST, self._allowance + (now - self._counted) * _RATE)
        self._counted = now
        if now < self._next_log or self._allowance < 1024 or not self._follower.backlog:
            return
        chunks = self._follower.take(int(self._allowance))
        data = b"".join(chunk.data for chunk in chunks)
        if not data:
            return
        self._allowance -= len(data)
        self._next_log = now + _BETWEEN
        index = [[chunk.attempt, chunk.rank, STREAMS.index(chunk.stream), chunk.start, len(chunk.data)] for chunk in chunks]
        self.panel.send({"kind": "log", "chunks": index}, [data])

    def _send_pulse(self, *, over: bool) -> None:
        now = time.monotonic()
        if now < self._next_pulse and not over:
            return
        self._next_pulse = now + _PULSE
        pulse = self._portrait.pulse(self._follower.written(self._attempts - 1))
        words = json.dumps({**pulse, "t": 0})
        sent, before = self._pulse_sent
        if words != before or (now - sent > _BEAT and not over):
            self._pulse_sent = now, words
            self.panel.pulse = pulse

    def _grant(self, wish: dict[str, Any]) -> None:
        """Does what a click asks for, and says what came of it."""
        deed = DEEDS.get(str(wish.get("do")))
        if deed is None:
            return
        if deed.slow:
            helper = threading.Thread(target=self._answer, args=(wish, deed), name=f"icelaunch-{wish['do']}", daemon=True)
            self._helpers.append(helper)
            helper.start()
        else:
            self._answer(wish, deed)

    def _answer(self, wish: dict[str, Any], deed: Deed) -> None:
        try:
            answer = {"ok": True, **deed.do(self, wish)}
        except Exception as error:
            answer = {"ok": False, "says": f"{type(error).__name__}: {error}"}
        self.panel.join_cell()
        self.panel.send({"kind": "answer", "id": wish.get("id"), "do": wish["do"], **answer})

    def replay(self, attempt: int | None = None) -> None:
        """Sends the last lines of an attempt once more; None: of the newest one."""
        self._follower.rewind(self._attempts - 1 if attempt is None else attempt, _REPLAY)


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
                over = [old for old, panel in self._panels.items() if old != path and panel.run.state.over]
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
                self._thread = threading.Thread(target=self._serve_all, name="icelaunch-panels", daemon=True)
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
            # At most a tenth of a core, however many ranks are looked at.
            self._wake.wait(max(_LOOK, 9 * (time.monotonic() - started)))

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
