"""The host's agents: real processes of a real forkserver, and how the host describes their end."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A host of its own. The forkserver preloads nothing, so an agent that is killed at once has not
# imported torch.
CODE = """
import multiprocessing, os, select, signal, time

from icelaunch_nb.host.agent_processes import Agent, ForkserverExits, open_pidfd
from icelaunch_nb.launching.process_targets import do_nothing
from icelaunch_nb.system import cpython

def await_end(process):
    while process.alive():
        time.sleep(0.005)

def main(context, exits):
{body}

if __name__ == "__main__":
    main(multiprocessing.get_context("forkserver"), ForkserverExits())
    print("done")
"""

UNUSED = """
    agent = Agent(context, 0)
    assert agent.usable()
    agent.close()
    await_end(agent.identity)
    assert agent.describe_exit(exits) == "ended with code 1"
"""

KILLED = """
    agent = Agent(context, 0)
    agent.send_signal(signal.SIGKILL)
    select.select([agent.gone], [], [])
    assert not agent.identity.alive()
    assert agent.describe_exit(exits) == "was killed by SIGKILL"
    assert agent.describe_forkserver_exit(exits) == ""
    agent.close()
"""

WITHOUT_FORKSERVER = """
    agent, forkserver = Agent(context, 0), cpython.forkserver_pid()
    os.kill(forkserver, signal.SIGKILL)
    os.waitid(os.P_PID, forkserver, os.WEXITED | os.WNOWAIT)
    assert agent.describe_forkserver_exit(exits) == "was killed by SIGKILL"
    while agent.usable():  # until it has closed what it inherited of the forkserver
        time.sleep(0.005)

    other = context.Process(target=do_nothing)  # starts another forkserver, and reaps the first
    other.start()
    other.join()
    assert cpython.forkserver_pid() != forkserver and open_pidfd(forkserver) is None

    agent.send_signal(signal.SIGKILL)
    await_end(agent.identity)
    expected = "vanished, and the forkserver was killed by SIGKILL"
    assert agent.describe_exit(exits) == expected
    agent.close()
"""


def run(body, folder):
    script = folder / "host.py"
    script.write_text(CODE.replace("{body}", body))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.slow  # it imports torch
def test_an_agent_without_a_launch_ends_when_the_host_closes_the_connection(tmp_path):
    run(UNUSED, tmp_path)


def test_the_host_knows_which_signal_killed_an_agent(tmp_path):
    run(KILLED, tmp_path)


def test_the_end_of_a_forkserver_is_known_after_another_one_has_started(tmp_path):
    run(WITHOUT_FORKSERVER, tmp_path)
