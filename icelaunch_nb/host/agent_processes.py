"""The host's agents: each started ahead of its task, watched until its own end, whatever becomes of the forkserver it came from."""

from __future__ import annotations

import os
from typing import Any

from icelaunch_nb import cpython
from icelaunch_nb.entry import run_agent
from icelaunch_nb.errors import how_it_ended
from icelaunch_nb.processes import Process
from icelaunch_nb.tasks import AgentTask


class Agent:
    """An agent, and the ranks that it starts ahead of theirs. Without a task it ends with this object's connection, at the latest with the host.

    Args:
        context: multiprocessing's.
        ranks: How many ranks it starts ahead.

    Attributes:
        identity: Its process; None where it was gone at once.
        gone: Descriptor that is readable once it is gone. Not multiprocessing's sentinel where that can be helped: it closes with
            the forkserver too, while the agent lives.
    """

    def __init__(self, context: Any, ranks: int) -> None:
        theirs, self._tasks = context.Pipe(duplex=False)
        self._process = context.Process(target=run_agent, args=(theirs, ranks), name="agent")
        self._process.start()
        theirs.close()
        self._server = cpython.forkserver_pid()
        self.identity = Process.of(self._process.pid)
        pidfd = open_pidfd(self._process.pid)
        self._pidfd = pidfd
        self.gone: int = pidfd if pidfd is not None else self._process.sentinel

    def usable(self) -> bool:
        """Whether it and its forkserver live, so that it could start ranks."""
        return bool(self._process.is_alive())

    def take(self, task: AgentTask) -> None:
        """Gives it its task.

        Raises:
            OSError: It is gone.
        """
        self._tasks.send(task)
        self._tasks.close()

    def send(self, signum: int) -> None:
        """Signals it."""
        if self.identity is not None:
            self.identity.send(signum)

    def close(self) -> None:
        """Lets it go, with or without a task."""
        self._tasks.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def end(self, servers: Servers) -> str:
        """How it ended, as a clause; who could tell is the forkserver, where that still lives."""
        self._process.join(1)
        code, server = self._process.exitcode, servers.end(self._server)
        if server:
            return f"vanished, and the forkserver {server}"
        return how_it_ended(code)

    def servers_end(self, servers: Servers) -> str:
        """How its forkserver ended, as a clause; empty while that lives."""
        return servers.end(self._server)


class Servers:
    """How this host's forkservers ended. multiprocessing reaps a dead one when it starts the next, and keeps nothing of it."""

    def __init__(self) -> None:
        self._ends: dict[int | None, str] = {}

    def look(self) -> None:
        """Keeps in mind how the present one ended, if it did."""
        code, pid = cpython.forkserver_end(), cpython.forkserver_pid()
        if code is not None and pid not in self._ends:
            self._ends[pid] = how_it_ended(code)

    def end(self, pid: int | None) -> str:
        """How one of them ended; empty while it lives."""
        self.look()
        return self._ends.get(pid, "")


def open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable once a process is gone; None where the system has none, or the process is gone."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
