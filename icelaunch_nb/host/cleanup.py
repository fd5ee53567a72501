"""Removes old runs in a thread of the host.

The thread works a moment after a launch, so that no launch waits for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from icelaunch_nb.errors import ConfigError
from icelaunch_nb.launching.launch_messages import AgentLaunch
from icelaunch_nb.rundir import retention
from icelaunch_nb.rundir.paths import is_default_log_dir

_DELAY = 0.5  # seconds between a launch and the cleanup
_REST_FACTOR = 50  # rests 50 times as long as a cleanup took, so it uses at most 2 % of a core


class Cleanup:
    """Removes old runs of the default log directory. The thread starts with the first such run."""

    def __init__(self) -> None:
        self._scheduled = threading.Event()
        self._base: Path | None = None
        self._limits = retention.Limits()
        self._sizes: dict[Path, int] = {}

    def schedule(self, launch: AgentLaunch) -> None:
        """Schedules a cleanup after a launch."""
        base = Path(launch.run_dir).parent
        if not is_default_log_dir(base):
            return
        with contextlib.suppress(ConfigError):
            self._limits = retention.limits(launch.environment.environ)
        if self._base is None:
            threading.Thread(target=self._remove_old, name="icelaunch-cleanup", daemon=True).start()
        self._base = base
        self._scheduled.set()

    def _remove_old(self) -> None:
        while self._scheduled.wait():
            time.sleep(_DELAY)
            self._scheduled.clear()
            began = time.monotonic()
            if self._base is not None:
                retention.remove_old(self._base, self._limits, self._sizes)
            time.sleep(_REST_FACTOR * (time.monotonic() - began))
