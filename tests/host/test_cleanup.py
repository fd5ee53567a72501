"""The host removes old runs after a launch, in the default directory only."""

from __future__ import annotations

import os
import time

from icelaunch_nb.host.cleanup import Cleanup
from icelaunch_nb.launching.launch_environment import LaunchEnvironment
from icelaunch_nb.launching.launch_messages import AgentLaunch
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import Ended
from icelaunch_nb.rundir.paths import is_default_log_dir, make_run_dir


def make_ended_run(base):
    run_dir = make_run_dir(str(base), "r")
    with JournalWriter(run_dir.journal) as journal:
        journal.write(Ended(state="SUCCEEDED"))
    return run_dir.path


def launch_of(path, keep):
    environment = LaunchEnvironment(environ={"ICELAUNCH_KEEP_RUNS": keep}, cwd=os.sep, sys_path=[])
    return AgentLaunch(run_dir=str(path), environment=environment)


def await_removal(paths):
    deadline = time.monotonic() + 60
    while any(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_old_runs_go_in_the_default_directory_and_nowhere_else(tmp_path):
    default, own = tmp_path / f"icelaunch_nb-{os.getuid()}", tmp_path / "own"
    assert is_default_log_dir(default) and not is_default_log_dir(own)
    mine = [make_ended_run(own) for _ in range(3)]
    old = [make_ended_run(default) for _ in range(3)]
    cleanup = Cleanup()
    cleanup.schedule(launch_of(mine[-1], "0"))
    cleanup.schedule(launch_of(old[-1], "0"))
    await_removal(old)
    assert all(path.exists() for path in mine)


def test_a_wrong_limit_keeps_the_limit_before(tmp_path):
    default = tmp_path / f"icelaunch_nb-{os.getuid()}"
    old = [make_ended_run(default) for _ in range(3)]
    cleanup = Cleanup()
    cleanup.schedule(launch_of(old[0], "0"))
    cleanup.schedule(launch_of(old[0], "many"))
    await_removal(old)
