"""The host's agents as processes.

The host starts each agent ahead of its launch, and watches it until it ends. The forkserver that an
agent was forked from may end earlier.
"""

from __future__ import annotations

import os
from typing import Any

from icelaunch_nb.launching import process_targets
from icelaunch_nb.launching.launch_messages import AgentLaunch
from icelaunch_nb.rundir import disk_reserve
from icelaunch_nb.system import cpython
from icelaunch_nb.system.exit_codes import describe_exit
from icelaunch_nb.system.processes import Process


class Agent:
    """An agent process.

    The agent starts its first ranks ahead of its launch. Without a launch it ends as soon as this
    object closes the connection, and at the latest with the host.

    Args:
        context: multiprocessing's forkserver context.
        ranks: Number of ranks that the agent starts ahead.

    Attributes:
        identity: The agent's process. None if it was gone at once.
        gone: Descriptor that is readable once the agent is gone. It is a pidfd where the system has
            them. multiprocessing's sentinel also closes when the forkserver ends, while the agent
            still lives.
    """

    def __init__(self, context: Any, ranks: int) -> None:
        theirs, self._launches = context.Pipe(duplex=False)
        self._process = context.Process(
            target=process_targets.run, args=(process_targets.AGENT, theirs, ranks), name="agent"
        )
        self._process.start()
        theirs.close()
        self._forkserver_pid = cpython.forkserver_pid()
        self.identity = Process.of(self._process.pid)
        pidfd = open_pidfd(self._process.pid)
        self._pidfd = pidfd
        self.gone: int = pidfd if pidfd is not None else self._process.sentinel

    def usable(self) -> bool:
        """Whether the agent and its forkserver live, so that the agent can start ranks."""
        return bool(self._process.is_alive())

    def send_launch(self, launch: AgentLaunch) -> None:
        """Sends the agent its launch.

        Raises:
            OSError: The agent is gone.
        """
        self._launches.send(launch)
        self._launches.close()

    def send_signal(self, signum: int) -> None:
        """Sends a signal to the agent, if it still lives."""
        if self.identity is not None:
            self.identity.send(signum)

    def close(self) -> None:
        """Closes the connection and the pidfd. An agent without a launch ends by that."""
        self._launches.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def describe_exit(self, exits: ForkserverExits) -> str:
        """How the agent ended, as a clause. Only a living forkserver knows its exit code."""
        self._process.join(1)
        code, forkserver_exit = self._process.exitcode, exits.describe(self._forkserver_pid)
        if forkserver_exit:
            return f"vanished, and the forkserver {forkserver_exit}"
        return disk_reserve.cause_of(code) or describe_exit(code)

    def describe_forkserver_exit(self, exits: ForkserverExits) -> str:
        """How the agent's forkserver ended, as a clause. Empty while it lives."""
        return exits.describe(self._forkserver_pid)


class ForkserverExits:
    """How this host's forkservers ended.

    multiprocessing reaps a dead forkserver when it starts the next one, and forgets its exit code.
    """

    def __init__(self) -> None:
        self._descriptions: dict[int | None, str] = {}

    def poll(self) -> None:
        """Records how the current forkserver ended, if it has ended."""
        code, pid = cpython.forkserver_exit_code(), cpython.forkserver_pid()
        if code is not None and pid not in self._descriptions:
            self._descriptions[pid] = describe_exit(code)

    def describe(self, pid: int | None) -> str:
        """How the forkserver with this pid ended, as a clause. Empty while it lives."""
        self.poll()
        return self._descriptions.get(pid, "")


def open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable once a process is gone.

    None if the system has no pidfds, or if the process is gone already.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
