"""What the host does once an agent is gone: it ends what is left, and completes the journal.

Linux ends the ranks together with their agent (`worker/killed_with_agent.py`). What the ranks had
started may still live, and an agent that was killed has recorded no end.
"""

from __future__ import annotations

import contextlib

from icelaunch_nb.host.agent_processes import Agent, ForkserverExits
from icelaunch_nb.rundir import disk_reserve
from icelaunch_nb.rundir.journal import JournalWriter, read_events
from icelaunch_nb.rundir.journal_events import AttemptStarted, Ended, Event
from icelaunch_nb.rundir.paths import RUN_DIR_VARIABLE, RunDir
from icelaunch_nb.system.processes import kill_marked, kill_sessions


def end_leftovers(run_dir: RunDir, agent: Agent, exits: ForkserverExits) -> str:
    """Ends what an agent left behind, and writes the end that it could not write.

    Args:
        run_dir: The agent's run.
        agent: The agent, which is gone.
        exits: How the host's forkservers ended.

    Returns:
        How the agent ended, as a clause, if it recorded no end. Empty if it did.
    """
    events: list[Event] = []
    with contextlib.suppress(OSError):
        events, _ = read_events(run_dir.journal, 0)
    kill_sessions(
        entry.process
        for event in events
        if isinstance(event, AttemptStarted)
        for entry in event.ranks
    )
    kill_marked(f"{RUN_DIR_VARIABLE}={run_dir.path}")
    disk_reserve.release(run_dir.disk_reserve)
    with contextlib.suppress(OSError):  # only an agent that was killed leaves it
        run_dir.call.unlink()
    end = next((event for event in events if isinstance(event, Ended)), None)
    if end is None:
        how = f"its agent {agent.describe_exit(exits)}"
        write_end(run_dir, "LOST", how)
        return how
    if end.state == "FAILED" and (forkserver_exit := agent.describe_forkserver_exit(exits)):
        note = "; ".join(filter(None, [end.note, f"the forkserver {forkserver_exit}"]))
        write_end(run_dir, "FAILED", note)
    return ""


def write_end(run_dir: RunDir, state: str, note: str) -> None:
    """Writes the journal's last line in place of an agent.

    This fails where the directory is gone or the disk is full. `AgentGone` informs the kernel then.
    """
    with contextlib.suppress(OSError), JournalWriter(run_dir.journal) as journal:
        journal.write(Ended(state=state, note=note))
