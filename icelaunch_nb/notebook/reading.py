"""Keeps a run's story up to date from its journal, and tells when nobody is left to write in it."""

from __future__ import annotations

import threading
import time

from icelaunch_nb.notebook.hosts import Host
from icelaunch_nb.rundir import RunDir, read_journal
from icelaunch_nb.story import Story

_BETWEEN_CHECKS = 0.2  # seconds between two looks whether the agent lives
_COLD_START = 60.0  # that another kernel's run may be without an agent: the time of a cold start on a busy machine


class Reading:
    """How far a run's journal was read, and what it adds up to.

    Args:
        run_dir: The run directory.
        launched: When the run was launched, in seconds since the epoch.

    Attributes:
        host: The host that was asked for the agent, whose end would be the run's; None: another kernel's, or the run is over.
    """

    def __init__(self, run_dir: RunDir, launched: float) -> None:
        self.host: Host | None = None
        self._dir, self._launched = run_dir, launched
        self._lock = threading.RLock()
        self._read: tuple[Story, int] = (Story(), 0)  # and the offset in the journal; replaced together
        self._checked = 0.0

    @property
    def last(self) -> Story:
        """The story as of the last look."""
        return self._read[0]

    def now(self) -> Story:
        """The story as of now; a story that is over doesn't change any more."""
        with self._lock:
            story, offset = self._read
            if story.state.over:
                return story
            story, offset = self._go_on(story, offset)
            if not story.state.over and time.monotonic() - self._checked > _BETWEEN_CHECKS:
                self._checked = time.monotonic()
                if self._agent_is_gone(story):
                    # Its last words may have come between the two looks.
                    story, offset = self._go_on(story, offset)
                    if not story.state.over:
                        story = story.after({"event": "end", "state": "LOST", "t": time.time(), "note": self._last_words(story)})
            self._read = story, offset
            if story.state.over:
                self.host = None
            return story

    def _go_on(self, story: Story, offset: int) -> tuple[Story, int]:
        events, offset = read_journal(self._dir.journal, offset)
        for event in events:
            story = story.after(event)
        return story, offset

    def _agent_is_gone(self, story: Story) -> bool:
        """Whether the agent, or the host that was to start it, ended; then the journal's last line should say how."""
        if not self._dir.path.is_dir():
            return True
        if self.host is not None and self.host.gone(str(self._dir.path)):
            return True
        if story.agent is not None:
            return not story.agent.alive()
        if self.host is not None:
            return not self.host.alive()
        return time.time() - self._launched > _COLD_START

    def _last_words(self, story: Story) -> str:
        if not self._dir.path.is_dir():
            return "its directory is gone"
        return self.host.last_words() if self.host is not None and story.agent is None else ""
