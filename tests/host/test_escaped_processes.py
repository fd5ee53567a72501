"""The host ends the orphans that it gets, but nobody else."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A host of its own, since a process can't stop being a subreaper. `orphan` starts a process
# in another session, whose parent ends at once.
CODE = """
import os, subprocess, sys, time
from icelaunch_nb.host.escaped_processes import ActiveRun, EscapedProcesses, process_clock
from icelaunch_nb.rundir.paths import RUN_DIR_VARIABLE
from icelaunch_nb.system.processes import Process

def orphan(log=subprocess.DEVNULL, **environ):
    script = 'sleep 120 >&2 & echo $!'
    out = subprocess.run(["sh", "-c", script], env={**os.environ, **environ}, stdout=-1,
                         stderr=log, start_new_session=True)
    return Process.of(int(out.stdout))

def kill_all(*active):
    while orphans.kill(active):
        time.sleep(0.005)

def reaped(process):
    return not os.path.exists(f"/proc/{process.pid}")

folder, orphans, before = sys.argv[1], EscapedProcesses(), process_clock()
first, second = f"{folder}/first", f"{folder}/second"
"""

TESTS = {
    "an orphan is killed and reaped once no run is active": """
hidden = orphan()
active = ActiveRun(first, before)
kill_all(active)
assert hidden.alive(), "it may belong to the active run"
kill_all()
assert reaped(hidden)
""",
    "an orphan of an ended run is killed while another run is active": """
hidden = orphan(**{RUN_DIR_VARIABLE: first})
active = ActiveRun(second, before)
kill_all(active)
assert hidden.alive(), "its run hasn't ended"
orphans.add_ended(first)
kill_all(active)
assert reaped(hidden)
""",
    "an orphan with open files of an ended run is killed": """
os.mkdir(first)
with open(f"{first}/log", "w") as log:
    hidden = orphan(log)
orphans.add_ended(first)
kill_all(ActiveRun(second, before))
assert reaped(hidden)
""",
    "an orphan that is older than the active run belongs to no run": """
hidden = orphan()
kill_all(ActiveRun(first, process_clock() + 1000))
assert reaped(hidden)
""",
    "a process of the host itself is left alone": """
own = subprocess.Popen(["sleep", "120"])
kill_all()
assert own.poll() is None
own.kill()
own.wait()
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no subreapers")
@pytest.mark.parametrize("name", TESTS)
def test_escaped_processes(name, tmp_path):
    code = CODE + TESTS[name]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
