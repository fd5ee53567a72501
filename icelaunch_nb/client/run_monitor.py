"""Keeps a run's story up to date from its journal, and tells when nobody is left to write in it."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from icelaunch_nb import disk
from icelaunch_nb.journal import JournalWriter, read_journal
from icelaunch_nb.notebook.hosts import Host
from icelaunch_nb.rundir import RunDir
from icelaunch_nb.story import HOST_ENDED, Story

_BETWEEN_CHECKS = 0.2  # seconds between two looks whether the agent lives
_COLD_START = 60.0  # that another kernel's run may be without an agent: the time of a cold start on a busy machine
_TO_TELL = 2.0  # that a host gets to say what an agent died of
_SILENCE = "nobody was left to say what of: a power cut, or kill -9 of everything"


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
        self._read: tuple[Story, int] = (
            Story(),
            0,
        )  # and the offset in the journal; replaced together
        self._checked = self._vanished = 0.0

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
                        story = self._lost(story)
            if story.state.over:
                story = self._with_the_hosts_end(story)
                self.host = None
            self._read = story, offset
            return story

    def _lost(self, story: Story) -> Story:
        """Nobody is left who could say how it ended; of a run that this process launched, it says so itself."""
        end = {
            "t": self._last_sign() if self.host is None else time.time(),
            "event": "end",
            "state": "LOST",
            "note": self._last_words(story),
        }
        if self.host is not None:
            self._write(end)
        return story.after(end)

    def _with_the_hosts_end(self, story: Story) -> Story:
        """Of what its host died an agent can't know; this process, whose child that was, adds it to the journal."""
        if (
            self.host is None
            or (story.end or {}).get("note") != HOST_ENDED
            or not (how := self.host.end())
        ):
            return story
        end = {**(story.end or {}), "note": f"its host {how}"}
        self._write({**end, "t": time.time()})
        return story.after(end)

    def _write(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), JournalWriter(self._dir.journal) as journal:
            journal.write(**event)

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
            return not story.agent.alive() and self._had_time_to_tell()
        if self.host is not None:
            return not self.host.alive()
        return time.time() - self._launched > _COLD_START

    def _had_time_to_tell(self) -> bool:
        """Whether the agent has been gone for so long that its host would have said what of."""
        now = time.monotonic()
        self._vanished = self._vanished or now
        if self.host is not None:
            return not self.host.alive() or now - self._vanished > _TO_TELL
        # Another kernel's, or one of last week.
        return now - self._vanished > _TO_TELL or time.time() - self._last_sign() > _TO_TELL

    def _last_sign(self) -> float:
        """When anybody wrote in the journal, in seconds since the epoch."""
        try:
            return self._dir.journal.stat().st_mtime
        except OSError:
            return self._launched

    def _last_words(self, story: Story) -> str:
        if not self._dir.path.is_dir():
            return "its directory is gone"
        if self.host is None or self.host.alive():
            return disk.complaint(self._dir.path) or _SILENCE
        how = f"its host {self.host.end()}"
        return f"{how}\n{said}" if story.agent is None and (said := self.host.last_words()) else how
