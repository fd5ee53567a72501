"""Waits for a run, and meanwhile prints its ranks' output unless a panel shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from icelaunch_nb.client.log_excerpt import Excerpt, has_no_front_end
from icelaunch_nb.client.log_printer import Printer
from icelaunch_nb.client.run_monitor import RunMonitor
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.spec import RunSpec

# Seconds between two reads of the logs: while ranks print, and after a second without output.
_PRINTING = 0.02
_QUIET = 0.1


class RunWaiter:
    """Watches a run for those who wait for it.

    Args:
        run_dir: The run directory.
        spec: The run's spec.
        monitor: Follows the run's journals.

    Attributes:
        panel: The panel that shows the run. None until there is one.
    """

    def __init__(self, run_dir: RunDir, spec: RunSpec, monitor: RunMonitor) -> None:
        self.panel: Any = None
        self._dir, self._spec, self._monitor = run_dir, spec, monitor
        self._lock = threading.RLock()
        self._printer: Printer | None = None

    def pauses(self, timeout: float | None) -> Iterator[float]:
        """Shows what is new and yields the seconds to pause, until the run's end or the timeout.

        It polls the journal instead of being notified. A poll is one read of a file, 20 µs, and it
        works for a run that another kernel started. The pause is a hundredth of the time waited,
        from 1 ms to 100 ms, so a short run's end is seen at once. Logs are read 50 times a second
        while ranks print, and 10 times a second after a quiet second.
        """
        started, next_show, printing = time.monotonic(), 0.0, True
        printer = self._get_printer()
        while True:
            run_state, now = self._monitor.poll(), time.monotonic()
            over = run_state.state.over
            if over or now >= next_show:
                # Reading 16 logs takes 0.3 ms. At every poll, that would slow the start of 8 ranks.
                if not self.panel_shows_output():
                    with self._lock:
                        shown = printer.show(run_state.attempts, final=over, at_once=False)
                    if over and not shown:
                        yield 0.0  # lets an event loop run between the pieces of a long rest
                        continue
                printing = now - printer.changed < 1
                next_show = now + (_PRINTING if printing else _QUIET)
            waited = now - started
            if over and self.panel is not None:
                # A client without a browser only gets what comes while the cell runs.
                self.panel.update_displays()
            if over or (timeout is not None and waited >= timeout):
                return
            pause = min(_PRINTING if printing else _QUIET, 0.001 + waited / 100)
            yield pause if timeout is None else min(pause, max(0.0, timeout - waited))

    def panel_shows_output(self) -> bool:
        """Whether a panel on a page shows the ranks' output, so that nothing else has to."""
        return self.panel is not None and self.panel.shows_output

    def skip(self, rank: int, first: int, last: int) -> None:
        """Skips a part of a rank's stdout, which the debugger's prompt has shown.

        Args:
            rank: Global rank.
            first: Where the part begins, in bytes.
            last: Where it ends.
        """
        self._get_printer().skip(self._stdout_of(rank), first, last)

    def has_shown(self, rank: int, size: int) -> bool:
        """Whether the first `size` bytes of a rank's stdout have been printed."""
        return self._get_printer().has_shown(self._stdout_of(rank), size)

    def _get_printer(self) -> Printer:
        with self._lock:
            if self._printer is None:
                limit = self._spec.saved_output
                excerpt = None
                if limit is not None and has_no_front_end():
                    excerpt = Excerpt(limit, self._dir.path)
                self._printer = Printer(self._dir, self._spec.config, excerpt)
            return self._printer

    def _stdout_of(self, rank: int) -> Path:
        attempt = self._monitor.poll().attempts[-1]
        (entry,) = (entry for entry in attempt.ranks if entry.rank == rank)
        return self._dir.rank(attempt.attempt, entry.local_rank, entry.node).stdout
