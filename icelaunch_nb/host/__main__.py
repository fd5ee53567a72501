"""The host from its first line to its last: ``python -m icelaunch_nb.host <socket fd> <kernel pid> <directory>``.

Its one connection is a socket pair whose other end the kernel holds, so nobody else can reach it. Three things keep it from
outliving its kernel unnoticed: the socket's end, a pidfd of the kernel (a forked child of the kernel can hold the socket
open), and a look at its parent every second where there are no pidfds.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import queue
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from icelaunch_nb import cpython
from icelaunch_nb.context import RUN_DIR_VARIABLE
from icelaunch_nb.disk import drop_ballast
from icelaunch_nb.entry import nothing
from icelaunch_nb.host.agents import Agent, Servers, open_pidfd
from icelaunch_nb.host.tidying import Tidying
from icelaunch_nb.journal import JournalWriter, read_journal
from icelaunch_nb.processes import Process, end_marked, end_sessions
from icelaunch_nb.rundir import RunDir
from icelaunch_nb.story import ORPHANS_GRACE
from icelaunch_nb.tasks import AgentTask

PRELOAD = [
    "torch",
    "torch.distributed",
    "icelaunch_nb.agent.main",
    "icelaunch_nb.worker.main",
    "icelaunch_nb.body",
    "icelaunch_nb.host.frozen",
]
_SPARE_RANKS = 64  # at most so many are started ahead; each holds about 8 MB
_SPARE_AFTER = (
    0.1  # seconds without a launch after which the next agent is started ahead of its task
)
_TRIES = 5  # to start an agent while somebody kills forkservers
_AGENT_PATIENCE = (
    3.5  # seconds an agent may take to end its ranks and itself once the kernel is gone
)


class Host:
    """Holds the forkserver and the agents.

    Args:
        kernel: The socket.
        kernel_pid: Whose life this one's depends on.
    """

    def __init__(self, kernel: socket.socket, kernel_pid: int) -> None:
        self._kernel, self._kernel_pid = kernel, kernel_pid
        self._kernel_pidfd = open_pidfd(kernel_pid)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._wanted: queue.SimpleQueue[AgentTask | None] = queue.SimpleQueue()
        self._agents: dict[Agent, AgentTask] = {}
        self._servers, self._tidying = Servers(), Tidying()
        self._lock = threading.Lock()
        self._retired = False
        self._detached: set[str] = set()
        self._pending = b""
        self._starting = 0
        self._wake_r, self._wake_w = os.pipe()

    def serve(self) -> None:
        """Starts agents until the kernel is gone, then ends what is not detached, and waits for what is."""
        threading.Thread(target=self._start_agents, name="icelaunch-starter", daemon=True).start()
        while self._kernel_lives() and not (self._retired and self._idle()):
            ready = self._wait(
                [self._kernel, *([self._kernel_pidfd] if self._kernel_pidfd is not None else [])]
            )
            if self._kernel_pidfd in ready or (self._kernel in ready and not self._listen()):
                break
        self._kernel.setblocking(False)
        while self._listen():  # what it said last: a launch to detach, say
            pass
        self._end()

    def _listen(self) -> bool:
        """Obeys what the kernel says; whether there was anything."""
        try:
            data = self._kernel.recv(1 << 20)
        except OSError:
            data = b""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))
        return bool(data)

    def _obey(self, message: dict[str, Any]) -> None:
        if message["op"] == "retire":
            self._retired = True
        elif message["op"] == "detach":
            self._detached.add(message["run_dir"])
        else:
            task = AgentTask.from_message(message)
            if task.detach:
                self._detached.add(task.run_dir)
            with self._lock:
                self._starting += 1
            self._wanted.put(task)

    def _idle(self) -> bool:
        with self._lock:
            return not self._agents and not self._starting

    def _kernel_lives(self) -> bool:
        return self._kernel_pidfd is not None or os.getppid() == self._kernel_pid

    def _wait(self, others: list[Any]) -> list[Any]:
        """Waits for any of `others`; forgets agents that ended meanwhile."""
        with self._lock:
            agents = {agent.gone: agent for agent in self._agents}
        ready = multiprocessing.connection.wait([*others, self._wake_r, *agents], 1.0)
        if self._wake_r in ready:
            os.read(self._wake_r, 4096)
        for gone in ready:
            if gone in agents:
                with self._lock:
                    task = self._agents.pop(agents[gone])
                self._look_after(task, agents[gone])
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
        spare: Agent | None = None
        ranks = 1
        while True:
            try:
                task = self._wanted.get(timeout=_SPARE_AFTER if spare is None else None)
            except queue.Empty:
                with contextlib.suppress(
                    OSError, EOFError
                ):  # the forkserver was killed; the next try starts another
                    spare = self._new_agent(ranks)
                continue
            if task is None:
                return
            ranks = min(task.ranks, _SPARE_RANKS)  # the next launch probably wants as many
            agent = self._give(
                task, spare
            )  # without the lock: a new forkserver takes seconds to import torch
            with self._lock:
                self._agents[agent] = task
                self._starting -= 1
            spare = None
            os.write(self._wake_w, b"!")
            self._tidying.after(task)

    def _new_agent(self, ranks: int) -> Agent:
        self._servers.look()  # multiprocessing is about to forget a dead one
        return Agent(self._context, ranks)

    def _give(self, task: AgentTask, spare: Agent | None) -> Agent:
        """Hands a task to the spare agent, or to a new one; a killed forkserver is started again by the next try."""
        for _ in range(_TRIES):
            if spare is not None and not spare.usable():
                spare.close()
                spare = None
            try:
                agent = spare or self._new_agent(0)
                agent.take(task)
                return agent
            except (OSError, EOFError):
                traceback.print_exc()
                spare = None
        os._exit(1)  # the kernel sees that, and says what was just printed

    def _look_after(self, task: AgentTask, agent: Agent) -> None:
        """After an agent's end: ends what it could not, and says what it could not say."""
        run_dir = RunDir(Path(task.run_dir))
        events, _ = read_journal(run_dir.journal, 0)
        end_sessions(
            Process(rank["pid"], rank["started"])
            for event in events
            if event["event"] == "attempt"
            for rank in event["ranks"]
        )
        end_marked(f"{RUN_DIR_VARIABLE}={task.run_dir}")
        drop_ballast(run_dir.path)
        with contextlib.suppress(OSError):  # an agent that was killed left it
            run_dir.call.unlink()
        end = next((event for event in events if event["event"] == "end"), None)
        if end is None:
            _write_end(run_dir, "LOST", f"its agent {agent.end(self._servers)}")
        elif end["state"] == "FAILED" and (said := agent.servers_end(self._servers)):
            _write_end(
                run_dir,
                "FAILED",
                "; ".join(filter(None, [end.get("note"), f"the forkserver {said}"])),
            )
        agent.close()
        with contextlib.suppress(OSError):  # a kernel that doesn't listen, or is gone
            self._kernel.send(
                json.dumps({"event": "gone", "run_dir": task.run_dir}).encode() + b"\n",
                socket.MSG_DONTWAIT,
            )

    def _end(self) -> None:
        """Ends what is not detached, lets the rest finish, and takes the forkserver along."""
        waiting = []
        with contextlib.suppress(queue.Empty):
            while (task := self._wanted.get_nowait()) is not None:
                waiting.append(task)
        for task in waiting:
            if task.run_dir in self._detached:
                self._wanted.put(task)
                continue
            with self._lock:
                self._starting -= 1
            _write_end(RunDir(Path(task.run_dir)), "STOPPED", "its kernel ended before it began")
        self._wanted.put(None)
        told: dict[Agent, Callable[[], None]] = {}
        deadline = time.monotonic() + _AGENT_PATIENCE
        while not self._idle():
            with self._lock:
                attached = {
                    agent: task
                    for agent, task in self._agents.items()
                    if task.run_dir not in self._detached
                }
                detached = len(self._agents) + self._starting - len(attached)
            late = time.monotonic() > deadline
            for agent, task in attached.items():
                if agent not in told:
                    told[agent] = _ask_to_stop(agent, task)
                elif late:
                    agent.send(signal.SIGKILL)  # its ranks hang on its leash
            if late and not detached and time.monotonic() > deadline + 1:
                break
            self._wait([])
        pid = cpython.forkserver_pid()
        if pid is not None:
            os.kill(
                pid, signal.SIGKILL
            )  # our own child, not reaped yet: the pid can't be anybody else's


def _ask_to_stop(agent: Agent, task: AgentTask) -> Callable[[], None]:
    """Says why, by the run's FIFO; whoever holds the answer keeps that open, so that the wish outlives its reader's start."""
    try:
        fifo = open(
            RunDir(Path(task.run_dir)).control,
            "r+b",
            buffering=0,
            opener=lambda path, _: os.open(path, os.O_RDWR | os.O_NONBLOCK),
        )
        fifo.write(f"stop {ORPHANS_GRACE} its kernel ended\n".encode())
        return fifo.close
    except OSError:  # the directory is gone
        agent.send(signal.SIGTERM)
        return lambda: None


def _write_end(run_dir: RunDir, state: str, note: str) -> None:
    """A journal's last line, in an agent's place; where the directory is gone or the disk full, the kernel hears it otherwise."""
    with contextlib.suppress(OSError), JournalWriter(run_dir.journal) as journal:
        journal.write("end", state=state, note=note)


def main() -> None:
    """Reads its three arguments and serves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tempfile.tempdir = sys.argv[3]
    atexit.register(shutil.rmtree, sys.argv[3], ignore_errors=True)
    kernel = socket.socket(fileno=int(sys.argv[1]))
    kernel.set_inheritable(False)
    Host(kernel, int(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
