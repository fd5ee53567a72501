"""The host from its first line to its last: ``python -m icelaunch_nb.host <socket fd> <kernel pid>``.

Its one connection is a socket pair whose other end the kernel holds, so nobody else can reach it. Three things keep it from
outliving its kernel unnoticed: the socket's end, a pidfd of the kernel (a forked child of the kernel can hold the socket
open), and a look at its parent every second where there are no pidfds.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any

from icelaunch_nb import cpython
from icelaunch_nb.entry import nothing, run_agent
from icelaunch_nb.processes import Process
from icelaunch_nb.tasks import AgentTask

PRELOAD = ["torch", "torch.distributed", "icelaunch_nb.agent.main", "icelaunch_nb.worker.main", "icelaunch_nb.host.frozen"]
_SPARE_RANKS = 64  # at most so many are started ahead; each holds about 8 MB
_SPARE_AFTER = 0.1  # seconds without a launch after which the next agent is started ahead of its task
_TRIES = 5  # to start an agent while somebody kills forkservers
_AGENT_PATIENCE = 3.5  # seconds an agent may take to end its ranks and itself once the kernel is gone


class Host:
    """Holds the forkserver and the agents.

    Args:
        kernel: The socket.
        kernel_pid: Whose life this one's depends on.
    """

    def __init__(self, kernel: socket.socket, kernel_pid: int) -> None:
        self._kernel, self._kernel_pid = kernel, kernel_pid
        self._kernel_pidfd = _pidfd(kernel_pid)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._wanted: queue.SimpleQueue[AgentTask | None] = queue.SimpleQueue()
        self._agents: dict[Any, AgentTask] = {}
        self._lock = threading.Lock()
        self._retired = False
        self._starting = 0
        self._wake_r, self._wake_w = os.pipe()

    def serve(self) -> None:
        """Starts agents until the kernel is gone, then ends what is not detached, and waits for what is."""
        threading.Thread(target=self._start_agents, name="icelaunch-starter", daemon=True).start()
        pending = b""
        while self._kernel_lives() and not (self._retired and self._idle()):
            ready = self._wait([self._kernel, *([self._kernel_pidfd] if self._kernel_pidfd is not None else [])])
            if self._kernel_pidfd in ready:
                break
            if self._kernel in ready:
                data = self._receive()
                if not data:
                    break
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
        self._end()

    def _obey(self, message: dict[str, Any]) -> None:
        if message["op"] == "retire":
            self._retired = True
        elif message["op"] == "detach":
            with self._lock:
                for task in self._agents.values():
                    task.detach = task.detach or task.run_dir == message["run_dir"]
        else:
            with self._lock:
                self._starting += 1
            self._wanted.put(AgentTask.from_message(message))

    def _idle(self) -> bool:
        with self._lock:
            return not self._agents and not self._starting

    def _receive(self) -> bytes:
        try:
            return self._kernel.recv(1 << 20)
        except OSError:
            return b""

    def _kernel_lives(self) -> bool:
        return self._kernel_pidfd is not None or os.getppid() == self._kernel_pid

    def _wait(self, others: list[Any]) -> list[Any]:
        """Waits for any of `others`; forgets agents that ended meanwhile."""
        with self._lock:
            agents = {agent.sentinel: agent for agent in self._agents}
        ready = multiprocessing.connection.wait([*others, self._wake_r, *agents], 1.0)
        if self._wake_r in ready:
            os.read(self._wake_r, 4096)
        for sentinel in ready:
            if sentinel in agents:
                agents[sentinel].join()
                with self._lock:
                    del self._agents[agents[sentinel]]
        return ready

    def _start_agents(self) -> None:
        """In a thread: starting blocks while the forkserver imports torch, and the kernel may die meanwhile.

        One agent is always started ahead of its task, as soon as launches leave a moment for it.
        """
        with contextlib.suppress(OSError, EOFError):
            warmer = self._context.Process(target=nothing)
            warmer.start()
            warmer.join()
        with contextlib.suppress(OSError):
            self._kernel.sendall(b'{"event": "warm"}\n')
        spare: _Spare | None = None
        ranks = 1
        while True:
            try:
                task = self._wanted.get(timeout=_SPARE_AFTER if spare is None else None)
            except queue.Empty:
                with contextlib.suppress(OSError, EOFError):  # the forkserver was killed; the next try starts another
                    spare = _Spare(self._context, ranks)
                continue
            if task is None:
                return
            ranks = min(task.ranks, _SPARE_RANKS)  # the next launch probably wants as many
            with self._lock:
                agent = self._give(task, spare)
                self._agents[agent.process] = task
                self._starting -= 1
            spare = None
            os.write(self._wake_w, b"!")

    def _give(self, task: AgentTask, spare: _Spare | None) -> _Spare:
        """Hands a task to the spare agent, or to a new one; a killed forkserver is started again by the next try."""
        for _ in range(_TRIES):
            try:
                agent = spare or _Spare(self._context, 0)
                agent.tasks.send(task)
                agent.tasks.close()
                return agent
            except (OSError, EOFError):
                spare = None
        os._exit(1)  # the kernel sees that, and says so

    def _end(self) -> None:
        self._wanted.put(None)
        with self._lock:
            ending = {agent: Process.of(agent.pid) for agent, task in self._agents.items() if not task.detach}
        for process in ending.values():
            if process is not None:
                process.send(signal.SIGTERM)
        deadline = time.monotonic() + _AGENT_PATIENCE
        while self._agents and (time.monotonic() < deadline or any(task.detach for task in self._agents.values())):
            self._wait([])
            if time.monotonic() >= deadline:
                self._kill(ending)
        self._kill(ending)
        pid = cpython.forkserver_pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)  # our own child, not reaped yet: the pid can't be anybody else's

    def _kill(self, ending: dict[Any, Process | None]) -> None:
        for agent, process in ending.items():
            if agent in self._agents and process is not None:
                process.send(signal.SIGKILL)  # its ranks hang on its leash


class _Spare:
    """An agent without a task, and the ranks that it starts ahead of theirs. It ends when this object's connection closes, at the latest with the host."""

    def __init__(self, context: Any, ranks: int) -> None:
        theirs, self.tasks = context.Pipe(duplex=False)
        self.process = context.Process(target=run_agent, args=(theirs, ranks), name="agent")
        self.process.start()
        theirs.close()


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def main() -> None:
    """Reads its two arguments and serves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kernel = socket.socket(fileno=int(sys.argv[1]))
    kernel.set_inheritable(False)
    Host(kernel, int(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
