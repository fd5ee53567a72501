"""Removes old runs in a thread of the host, in quiet moments after launches, so that no launch waits for it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from icelaunch_nb import retention
from icelaunch_nb.errors import ConfigError
from icelaunch_nb.tasks import AgentTask

_QUIET = 0.5  # seconds after a launch
_SHARE = 50  # so many times as long as it took it rests: at most 2 % of a core


class Tidying:
    """The thread, once a run lies where runs are removed by themselves."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._base: Path | None = None
        self._kept = retention.Kept()
        self._sizes: dict[Path, int] = {}

    def after(self, task: AgentTask) -> None:
        """There is one run more."""
        base = Path(task.run_dir).parent
        if base.name != f"icelaunch_nb-{os.geteuid()}":
            return
        with contextlib.suppress(ConfigError):
            self._kept = retention.kept(task.surroundings.environ)
        if self._base is None:
            threading.Thread(target=self._tidy, name="icelaunch-tidying", daemon=True).start()
        self._base = base
        self._wanted.set()

    def _tidy(self) -> None:
        while self._wanted.wait():
            time.sleep(_QUIET)
            self._wanted.clear()
            began = time.monotonic()
            if self._base is not None:
                retention.tidy(self._base, self._kept, self._sizes)
            time.sleep(_SHARE * (time.monotonic() - began))
