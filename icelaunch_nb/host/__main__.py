"""The host process: ``python -m icelaunch_nb.host <socket fd> <kernel pid> <directory>``.

The host has one connection, a socket pair whose other end the kernel holds. No other process can
connect to it. The host notices the end of its kernel in three ways:

* The socket is closed.
* The kernel's pidfd becomes readable, even if a forked child of the kernel holds the socket open.
* Where there are no pidfds, the host checks its parent pid every second.
"""

from __future__ import annotations

import atexit
import contextlib
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from icelaunch_nb.host.agent_leftovers import end_leftovers, write_end
from icelaunch_nb.host.agent_processes import Agent, ForkserverExits, open_pidfd
from icelaunch_nb.host.cleanup import Cleanup
from icelaunch_nb.host.escaped_processes import ActiveRun, EscapedProcesses, process_clock
from icelaunch_nb.launching.launch_messages import (
    AgentGone,
    AgentLaunch,
    DetachRun,
    Message,
    Retire,
    Warm,
    parse_message,
)
from icelaunch_nb.launching.process_targets import do_nothing
from icelaunch_nb.rundir import agent_requests
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import ORPHANS_GRACE
from icelaunch_nb.system import cpython

PRELOAD = [
    "torch",
    "torch.distributed",
    "icelaunch_nb.agent.main",
    "icelaunch_nb.worker.main",
    "icelaunch_nb.launching.cell_function",
    "icelaunch_nb.pickling.torch_operators",  # needs torch; the launching process may not have it
    "decimal",  # saves 2 ms in each rank whose launching process has imported it
    "icelaunch_nb.host.prepare_forks",
]
_MAX_PREFORKED = 64  # ranks of an agent that are started ahead; each holds about 8 MB
_MAX_FDS = 64  # descriptors that one read takes from the socket
# Seconds without a launch after which the host starts the next agent ahead of its launch.
_PRESTART_DELAY = 0.1
# Seconds per rank. The host starts nothing ahead while the newest run still starts its ranks, and
# waits at most this long for it. Many ranks need this time to start.
_START_TIME_PER_RANK = 0.01
_START_POLL_INTERVAL = 0.02  # seconds between two checks whether the newest run is over
_MAX_TRIES = 5  # to start an agent while somebody kills forkservers
# Seconds at the host's end for SIGKILLed processes and resource trackers to disappear.
_ESCAPED_TIMEOUT = 1.0
# Seconds for an agent to end its ranks and itself once the kernel is gone.
_AGENT_TIMEOUT = 3.5


class Host:
    """Holds the forkserver and the agents.

    Args:
        kernel: The socket to the kernel.
        kernel_pid: Pid of the kernel. The host ends when this process ends.
    """

    def __init__(self, kernel: socket.socket, kernel_pid: int) -> None:
        self._kernel, self._kernel_pid = kernel, kernel_pid
        self._kernel_pidfd = open_pidfd(kernel_pid)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._launches: queue.SimpleQueue[AgentLaunch | None] = queue.SimpleQueue()
        self._agents: dict[Agent, AgentLaunch] = {}
        self._active_runs: dict[str, ActiveRun] = {}
        self._escaped, self._escaped_left = EscapedProcesses(), False
        self._forkserver_exits, self._cleanup = ForkserverExits(), Cleanup()
        self._lock = threading.Lock()
        self._retired = False
        self._detached: set[str] = set()
        self._pending = b""
        # Descriptors of control FIFOs. Each belongs to the next launch message.
        self._control_fds: list[int] = []
        self._control_fd_of: dict[str, int] = {}  # by run directory, for runs that are under way
        self._starting = 0
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_w, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # An escaped process that ends wakes the main thread.
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Starts agents until the kernel is gone.

        Then it ends the runs that are not detached, and waits for the detached ones.
        """
        threading.Thread(target=self._start_agents, name="icelaunch-starter", daemon=True).start()
        while self._kernel_lives() and not (self._retired and self._idle()):
            ready = self._wait_for(
                [self._kernel, *([self._kernel_pidfd] if self._kernel_pidfd is not None else [])]
            )
            if self._kernel_pidfd in ready or (
                self._kernel in ready and not self._handle_messages()
            ):
                break
        self._kernel.setblocking(False)
        while self._handle_messages():  # the kernel's last messages, such as a detach
            pass
        self._end()

    def _handle_messages(self) -> bool:
        """Reads and handles the kernel's messages. Returns whether there was anything to read."""
        try:
            data, fds, _, _ = socket.recv_fds(self._kernel, 1 << 20, _MAX_FDS)
        except OSError:
            data, fds = b"", []
        for fd in fds:
            os.set_inheritable(fd, False)
        self._control_fds += fds
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            try:
                self._handle_message(parse_message(line))
            except ValueError:  # a message of a newer kernel, for example
                traceback.print_exc()
        return bool(data)

    def _handle_message(self, message: Message) -> None:
        match message:
            case Retire():
                self._retired = True
            case DetachRun():
                self._detached.add(message.run_dir)
            case AgentLaunch():
                if message.detach:
                    self._detached.add(message.run_dir)
                with self._lock:
                    # The FIFO keeps a request that comes before the agent reads, as long as a
                    # descriptor is open. So this one stays open until the agent is gone.
                    self._control_fd_of[message.run_dir] = self._control_fds.pop(0)
                    self._starting += 1
                self._launches.put(message)

    def _idle(self) -> bool:
        with self._lock:
            return not self._agents and not self._starting

    def _kernel_lives(self) -> bool:
        return self._kernel_pidfd is not None or os.getppid() == self._kernel_pid

    def _wait_for(self, others: list[Any]) -> list[Any]:
        """Waits up to a second for any of `others`, and cleans up after agents that have ended."""
        with self._lock:
            agents = {agent.gone: agent for agent in self._agents}
        ready = multiprocessing.connection.wait([*others, self._wake_r, *agents], 1.0)
        woken = self._wake_r in ready
        if woken:
            os.read(self._wake_r, 4096)
        for gone in ready:
            if gone in agents:
                with self._lock:
                    launch = self._agents.pop(agents[gone])
                    del self._active_runs[launch.run_dir]
                self._clean_up_after(launch, agents[gone])
                self._escaped.add_ended(launch.run_dir)
                woken = True
        if woken or self._escaped_left:
            self._escaped_left = self._end_escaped()
        return ready

    def _end_escaped(self) -> bool:
        with self._lock:
            active_runs = list(self._active_runs.values())
        return self._escaped.kill(active_runs)

    def _start_agents(self) -> None:
        """Starts an agent for each launch, and always one agent ahead of the next launch.

        It runs in a thread. To start an agent blocks while the forkserver imports torch, and the
        kernel may end meanwhile.
        """
        with contextlib.suppress(OSError, EOFError):
            first = self._context.Process(target=do_nothing)
            first.start()
            first.join()
        with contextlib.suppress(OSError):
            self._kernel.sendall(Warm().to_line())
        prestarted: Agent | None = None
        newest: Agent | None = None
        ranks, undisturbed_until = 1, 0.0
        pause = _PRESTART_DELAY
        while True:
            try:
                launch = self._launches.get(timeout=pause if prestarted is None else None)
            except queue.Empty:
                with self._lock:
                    busy = newest in self._agents and time.monotonic() < undisturbed_until
                if busy:
                    pause = _START_POLL_INTERVAL
                    continue
                # If the forkserver was killed, the next try starts another one.
                with contextlib.suppress(OSError, EOFError):
                    prestarted = self._new_agent(ranks)
                continue
            if launch is None:
                return
            with self._lock:
                self._active_runs[launch.run_dir] = active = ActiveRun(
                    launch.run_dir, process_clock()
                )
            ranks = min(launch.ranks, _MAX_PREFORKED)  # the next launch probably wants as many
            # Without the lock: a new forkserver needs seconds to import torch.
            agent = self._start_agent(launch, prestarted)
            with self._lock:
                self._agents[agent] = launch
                self._active_runs[launch.run_dir] = replace(
                    active, agent=agent.identity.pid if agent.identity else None
                )
                self._starting -= 1
            newest, prestarted, pause = agent, None, _PRESTART_DELAY
            undisturbed_until = (
                time.monotonic() + _PRESTART_DELAY + _START_TIME_PER_RANK * launch.ranks
            )
            os.write(self._wake_w, b"!")
            self._cleanup.schedule(launch)

    def _new_agent(self, ranks: int) -> Agent:
        self._forkserver_exits.poll()  # starting a process makes multiprocessing forget a dead one
        return Agent(self._context, ranks)

    def _start_agent(self, launch: AgentLaunch, prestarted: Agent | None) -> Agent:
        """Sends a launch to the prestarted agent, or to a new one.

        The forkserver may have been killed. Then a further try starts another one.
        """
        for _ in range(_MAX_TRIES):
            if prestarted is not None and not prestarted.usable():
                prestarted.close()
                prestarted = None
            try:
                agent = prestarted or self._new_agent(0)
                agent.send_launch(launch)
                return agent
            except (OSError, EOFError):
                traceback.print_exc()
                prestarted = None
        os._exit(1)  # the kernel reports what was just printed

    def _clean_up_after(self, launch: AgentLaunch, agent: Agent) -> None:
        how = end_leftovers(RunDir(Path(launch.run_dir)), agent, self._forkserver_exits)
        agent.close()
        self._close_control(launch)
        with contextlib.suppress(OSError):  # the kernel doesn't read, or is gone
            message = AgentGone(run_dir=launch.run_dir, how=how)
            self._kernel.send(message.to_line(), socket.MSG_DONTWAIT)

    def _close_control(self, launch: AgentLaunch) -> None:
        """Closes the control FIFO of a run that is over."""
        with self._lock:
            fd = self._control_fd_of.pop(launch.run_dir, None)
        if fd is not None:
            os.close(fd)

    def _end(self) -> None:
        """Stops the runs that are not detached, waits for the others, and ends the forkserver."""
        waiting = []
        with contextlib.suppress(queue.Empty):
            while (launch := self._launches.get_nowait()) is not None:
                waiting.append(launch)
        for launch in waiting:
            if launch.run_dir in self._detached:
                self._launches.put(launch)
                continue
            with self._lock:
                self._starting -= 1
            write_end(RunDir(Path(launch.run_dir)), "STOPPED", "its kernel ended before it began")
            self._close_control(launch)
        self._launches.put(None)
        requested: set[Agent] = set()
        deadline = time.monotonic() + _AGENT_TIMEOUT
        while not self._idle():
            with self._lock:
                attached = {
                    agent: launch
                    for agent, launch in self._agents.items()
                    if launch.run_dir not in self._detached
                }
                detached = len(self._agents) + self._starting - len(attached)
            late = time.monotonic() > deadline
            for agent, launch in attached.items():
                if agent not in requested:
                    requested.add(agent)
                    _request_stop(agent, launch)
                elif late:
                    agent.send_signal(signal.SIGKILL)  # its ranks end with it
            if late and not detached and time.monotonic() > deadline + 1:
                break
            self._wait_for([])
        deadline = time.monotonic() + _ESCAPED_TIMEOUT
        while self._end_escaped() and time.monotonic() < deadline:
            time.sleep(0.005)
        pid = cpython.forkserver_pid()
        if pid is not None:
            # The forkserver is our child and not reaped yet, so no other process has its pid.
            os.kill(pid, signal.SIGKILL)


def _request_stop(agent: Agent, launch: AgentLaunch) -> None:
    request = agent_requests.Stop(grace=ORPHANS_GRACE, reason="its kernel ended")
    if not agent_requests.send(RunDir(Path(launch.run_dir)), request):  # the directory is gone
        agent.send_signal(signal.SIGTERM)


def main() -> None:
    """Reads the three arguments and serves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tempfile.tempdir = sys.argv[3]
    atexit.register(shutil.rmtree, sys.argv[3], ignore_errors=True)
    kernel = socket.socket(fileno=int(sys.argv[1]))
    kernel.set_inheritable(False)
    Host(kernel, int(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
