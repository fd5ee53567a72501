"""Follows a run's journals, and detects a run that no process will finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from icelaunch_nb.client.host_pool import HostProcess
from icelaunch_nb.errors import UntrustedFileError
from icelaunch_nb.rundir import disk_reserve
from icelaunch_nb.rundir.journal import read_events
from icelaunch_nb.rundir.journal_events import Ended, unreadable_end
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import HOST_ENDED, RunState

# Seconds between two checks whether the agent lives.
_CHECK_INTERVAL = 0.2
# Seconds that a run of another kernel may have no agent: a cold start on a busy machine.
_COLD_START_TIMEOUT = 60.0
# Seconds that a host may take to report how an agent ended.
_REPORT_TIMEOUT = 2.0
_UNKNOWN_CAUSE = "nobody was left to say what of: a power cut, or kill -9 of everything"


class RunMonitor:
    """Reads the journals of a run as they grow, and keeps the state of the run.

    Args:
        run_dir: The run directory.
        launched: When the run was launched, in seconds since the epoch.

    Attributes:
        host: The host that was asked for the agent. Its end is the run's end. None: another kernel
            launched the run, or the run is over.
    """

    def __init__(self, run_dir: RunDir, launched: float) -> None:
        self.host: HostProcess | None = None
        self._dir, self._launched = run_dir, launched
        self._lock = threading.RLock()
        # The state, and the offset in each node's journal. `poll` replaces both at once.
        self._progress: tuple[RunState, Mapping[int, int]] = (RunState(), {0: 0})
        self._checked_at = self._missed_since = 0.0

    @property
    def last(self) -> RunState:
        """The state as of the last poll."""
        return self._progress[0]

    def poll(self) -> RunState:
        """Reads what is new and returns the state.

        The state of a run that is over is final, unless the run can't be read at the moment.
        """
        with self._lock:
            run_state, offsets = self._progress
            if run_state.state.over:
                return run_state
            try:
                run_state, offsets = self._read_new_events(run_state, offsets)
            except (UntrustedFileError, PermissionError) as error:
                return run_state.after(unreadable_end(None, str(error)))
            if not run_state.state.over and time.monotonic() - self._checked_at > _CHECK_INTERVAL:
                self._checked_at = time.monotonic()
                if self._agent_is_gone(run_state):
                    # The agent may have written its last events after the read above.
                    run_state, offsets = self._read_new_events(run_state, offsets)
                    if not run_state.state.over:
                        run_state = self._end_as_lost(run_state)
            if run_state.state.over:
                run_state = self._add_exit_of_host(run_state)
                self.host = None
            self._progress = run_state, offsets
            return run_state

    def _end_as_lost(self, run_state: RunState) -> RunState:
        """Ends a run that has no process left. Its host's parent records that."""
        end = Ended(state="LOST", note=self._reason_lost(run_state))
        if self.host is not None:
            self.host.record_end(self._dir, end)
        else:
            end.t = self._last_write_time()
        return run_state.after(end)

    def _add_exit_of_host(self, run_state: RunState) -> RunState:
        """Adds how the host ended. The agent can't know that, the host's parent can."""
        ended = run_state.end
        if (
            self.host is None
            or ended is None
            or ended.note != HOST_ENDED
            or not (how := self.host.exit_reason())
        ):
            return run_state
        end = Ended(state=ended.state, note=f"its host {how}")
        self.host.record_end(self._dir, end)
        end.t = ended.t
        return run_state.after(end)

    def _read_new_events(
        self, run_state: RunState, offsets: Mapping[int, int]
    ) -> tuple[RunState, Mapping[int, int]]:
        read = dict(offsets)
        for node, offset in offsets.items():
            events, read[node] = read_events(self._dir.journal_of(node), offset, self._dir)
            for event in events:
                event.node = node
                run_state = run_state.after(event)
        return run_state, read

    def _agent_is_gone(self, run_state: RunState) -> bool:
        """Whether the agent, or the host that was to start it, is gone and will write nothing."""
        if not self._dir.path.is_dir():
            return True
        if self.host is not None and self.host.agent_has_ended(str(self._dir.path)):
            return True
        if run_state.agent is not None:
            return not run_state.agent.alive() and self._report_is_overdue()
        if self.host is not None:
            return not self.host.alive()
        return time.time() - self._launched > _COLD_START_TIMEOUT

    def _report_is_overdue(self) -> bool:
        """Whether the agent has been gone longer than its host takes to report that."""
        now = time.monotonic()
        self._missed_since = self._missed_since or now
        if self.host is not None:
            return not self.host.alive() or now - self._missed_since > _REPORT_TIMEOUT
        # Another kernel launched the run, perhaps last week.
        return (
            now - self._missed_since > _REPORT_TIMEOUT
            or time.time() - self._last_write_time() > _REPORT_TIMEOUT
        )

    def _last_write_time(self) -> float:
        """When the journal was last written to, in seconds since the epoch."""
        try:
            return self._dir.journal.stat().st_mtime
        except OSError:
            return self._launched

    def _reason_lost(self, run_state: RunState) -> str:
        if not self._dir.path.is_dir():
            return "its directory is gone"
        if self.host is None or self.host.alive():
            how = self.host.agent_exit_reason(str(self._dir.path)) if self.host is not None else ""
            reasons = [how, disk_reserve.disk_full_message(self._dir.path)]
            return "\n".join(filter(None, reasons)) or _UNKNOWN_CAUSE
        how = f"its host {self.host.exit_reason()}"
        if run_state.agent is None and (log_tail := self.host.log_tail()):
            return f"{how}\n{log_tail}"
        return how
