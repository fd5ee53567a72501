"""What reaches the agent: wishes (stop, kill, detach), and moments to take down.

By the run's control FIFO, by SIGTERM, or because its host is gone.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from icelaunch_nb import moments
from icelaunch_nb.story import HOST_ENDED, ORPHANS_GRACE

# Seconds beyond the grace after which the agent stops waiting for itself (a rendezvous that blocks in C++, say).
_MARGIN = 3.0
_TERM_PATIENCE = 5.0
_LOOK = 1.0  # seconds between two looks whether the run directory is still there


def term_patience(grace: float) -> float:
    """Seconds between SIGTERM and SIGKILL for ranks that took longer than `grace` to stop by themselves.

    A part of a short grace: the host gives its agents 3.5 s for a grace of 2.
    """
    return min(_TERM_PATIENCE, grace / 2)


class Wishes:
    """Listens in a thread, since the agent's main thread can be deep in a rendezvous.

    Its callbacks run in that thread, and may come before the constructor returns. A line is a wish, ``stop <grace in seconds> [why]``,
    ``kill`` or ``detach``, or a moment, ``moment <JSON>``.

    Args:
        control: The run's control FIFO.
        parent: A descriptor that becomes readable when the host is gone; None: nobody to follow.
        on_stop: Called when a stop is wished, and again for one with less patience, with the grace and the reason.
        on_moment: Called with a moment that a rank or a kernel tells.
        give_up: Called, with the reason, where the agent did not end by itself in time after a wish to stop.

    Attributes:
        bell: Descriptor that is readable once a stop was wished.
        hurry: Descriptor that is readable once patience is over.
        grace: Seconds that ranks may take after a stop.
        reason: Who wished it.
    """

    def __init__(
        self,
        control: Path,
        parent: int | None,
        on_stop: Callable[[float, str], None],
        on_moment: Callable[[Mapping[str, Any]], None],
        give_up: Callable[[str], None],
    ) -> None:
        self.grace, self.reason, self._deadline = 0.0, "", 0.0
        self.bell, self._ring = os.pipe()
        self.hurry, self._ring_hurry = os.pipe()
        # Read and write: so the FIFO never reports its end while kernels come and go.
        self._path = control
        self._control = os.open(control, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._parent, self._on_stop, self._on_moment, self._give_up = (
            parent,
            on_stop,
            on_moment,
            give_up,
        )
        self._rang = threading.Event()
        self._over = threading.Event()
        self._signalled, wake = os.pipe()
        os.set_blocking(wake, False)
        # C's handler writes there at once; Python's would wait until the main thread comes back from a rendezvous.
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        threading.Thread(target=self._listen, name="icelaunch-wishes", daemon=True).start()

    def bell_rang(self) -> bool:
        """Whether a stop was wished."""
        return self._rang.is_set()

    def close(self) -> None:
        """The run is over; nobody needs to give up any more."""
        self._over.set()

    def fds(self) -> list[int]:
        """Descriptors that a forked rank must not keep."""
        return [self.bell, self._ring, self.hurry, self._ring_hurry, self._control, self._signalled]

    def _listen(self) -> None:
        pending = b""
        watched: list[Any] = [
            self._control,
            self._signalled,
            *([self._parent] if self._parent is not None else []),
        ]
        while True:
            ready, _, _ = select.select(watched, [], [], _LOOK)
            if not ready and not self._path.exists():
                self._stop(ORPHANS_GRACE, "its directory is gone")
            if self._parent in ready:
                watched.remove(self._parent)
                self._stop(ORPHANS_GRACE, HOST_ENDED)
            if self._signalled in ready and signal.SIGTERM in os.read(self._signalled, 64):
                self._stop(ORPHANS_GRACE, "its agent got SIGTERM")
            if self._control in ready:
                *lines, pending = (pending + os.read(self._control, 4096)).split(b"\n")
                for line in lines:
                    self._grant(line.decode(errors="replace"), watched)

    def _grant(self, line: str, watched: list[Any]) -> None:
        word, _, rest = line.partition(" ")
        number, _, why = rest.partition(" ")
        if word == "stop":
            try:
                self._stop(max(0.0, float(number)), why or "it was asked to")
            except ValueError:
                return
        elif word == "kill":
            self._stop(0.0, "it was asked to")
            os.write(self._ring_hurry, b"!")
        elif word == "detach" and self._parent in watched:
            watched.remove(self._parent)
        elif word == moments.WORD and (moment := moments.told(rest)) is not None:
            self._on_moment(moment)

    def _stop(self, grace: float, reason: str) -> None:
        deadline = time.monotonic() + grace
        if self._rang.is_set():
            if deadline < self._deadline:  # asked again, with less patience
                self._deadline = deadline
                timer = threading.Timer(grace, os.write, (self._ring_hurry, b"!"))
                timer.daemon = True
                timer.start()
                self._on_stop(grace, reason)
            return
        self.grace, self.reason, self._deadline = grace, reason, deadline
        self._rang.set()
        os.write(self._ring, b"!")
        self._on_stop(grace, reason)
        threading.Thread(
            target=self._insist,
            args=(grace + term_patience(grace) + _MARGIN,),
            name="icelaunch-insist",
            daemon=True,
        ).start()

    def _insist(self, seconds: float) -> None:
        if not self._over.wait(seconds):
            self._give_up(self.reason)
