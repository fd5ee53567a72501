"""The kernel's hosts: one for each set of variables that act on the import of torch."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.errors import HostError
from icelaunch_nb.launching.launch_messages import (
    AgentGone,
    AgentLaunch,
    DetachRun,
    HostRequest,
    Retire,
    Warm,
    parse_message,
)
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import Ended
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.system import cpython
from icelaunch_nb.system.exit_codes import describe_exit
from icelaunch_nb.system.userdirs import make_socket_dir

# Variables that act on the start of an interpreter, or on the import of torch and what it loads. A
# forkserver that was started with other values can't be corrected afterwards. Each rank sets all
# other variables itself. A host gets these alone, so /proc/<host>/environ holds no secrets.
_STARTUP_VARIABLES = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|TZ|LANG|LANGUAGE|LC_.*|LD_.*|DYLD_.*|PYTHON.*"
    r"|VIRTUAL_ENV|CONDA_PREFIX|GLIBC_TUNABLES|MALLOC_.*"
    r"|TORCH_.*|TORCHINDUCTOR_.*|PYTORCH_.*|ATEN_.*|OMP_.*|GOMP_.*|KMP_.*|MKL_.*"
    r"|OPENBLAS_.*|BLIS_.*|NUMEXPR_.*|VECLIB_.*|NPY_.*"
    r"|CUDA_.*|CUBLAS_.*|CUDNN_.*|NVIDIA_.*|HIP_.*|ROCR_.*|HSA_.*|USE_.*)"
)
# Huge pages for malloc's heap (glibc 2.35 and later). A fork then copies fewer page tables: 2.1 ms
# a rank instead of 3.6 ms. A rank gets the launch environment, so its children don't inherit this.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# Seconds that a host gets to end its runs when this process ends.
_CLOSE_TIMEOUT = 6.0
# Seconds, at most, between the moment when Linux closes the descriptors of a process that ends, and
# the moment when it can be waited for.
_REAP_TIMEOUT = 0.5
# A host takes about 180 MB.
_MAX_WARM_HOSTS = 2


class HostProcess:
    """A host process and the kernel's end of its socket.

    Args:
        environ: The variables of `_STARTUP_VARIABLES` to start it with.

    Raises:
        HostError: No directory for its sockets can be made.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        try:
            # multiprocessing leaves its sockets behind when a host is killed. `close` removes them.
            self._socket_dir = make_socket_dir()
        except OSError as error:
            raise HostError(
                "there is no place for the sockets of the process that starts agents: "
                f"{error}; set TMPDIR to a short path"
            ) from None
        # The host shares the file's offset. In append mode, reading doesn't change where it writes.
        self._log = tempfile.TemporaryFile("a+b", dir=self._socket_dir)
        self._socket, host_socket = socket.socketpair()
        # With a user's socket.setdefaulttimeout, recv would wait in spite of MSG_DONTWAIT.
        self._socket.settimeout(None)
        self._send_lock = threading.Lock()
        self._partial_line = b""
        # By run directory, how an agent ended that recorded no end; empty if it did record one.
        self._agent_exits: dict[str, str] = {}
        self._detached = False
        self._log_tail = ""
        self.warm = False
        with host_socket:
            # The host leads a session, since Interrupt is a SIGINT to the kernel's process group.
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *cpython.interpreter_flags(),
                    "-m",
                    "icelaunch_nb.host",
                    str(host_socket.fileno()),
                    str(os.getpid()),
                    self._socket_dir,
                ],
                env={
                    **_HUGE_PAGES,
                    **environ,
                    **cpython.interpreter_variables(),
                    "PYTHONPATH": _python_path(environ),
                },
                pass_fds=[host_socket.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=os.path.sep,
            )

    def launch(self, launch: AgentLaunch, control: int) -> None:
        """Asks for an agent.

        Args:
            launch: The agent's task.
            control: A descriptor of the run's control FIFO. The host holds the FIFO open, so a
                request can be sent before the agent reads.

        Raises:
            OSError: The host is gone.
        """
        line = launch.to_line()
        with self._send_lock:
            sent = socket.send_fds(self._socket, [line], [control])
            self._socket.sendall(line[sent:])
        self._detached = self._detached or launch.detach

    def alive(self) -> bool:
        """Whether the host process runs."""
        return self.process.poll() is None

    def exit_reason(self) -> str:
        """How the host process ended, as a clause. Empty while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_REAP_TIMEOUT)
        return "" if self.process.returncode is None else describe_exit(self.process.returncode)

    def agent_has_ended(self, run_dir: str) -> bool:
        """Whether the host reported the end of a run's agent.

        The report also comes when a full disk keeps the end out of the journal.
        """
        with contextlib.suppress(OSError), self._send_lock:
            while data := self._socket.recv(1 << 16, socket.MSG_DONTWAIT):
                self._receive(data)
        return run_dir in self._agent_exits

    def agent_exit_reason(self, run_dir: str) -> str:
        """How an agent ended that recorded no end, as a clause. Empty if nothing is known."""
        return self._agent_exits.get(run_dir, "")

    def record_end(self, run_dir: RunDir, end: Ended) -> None:
        """Writes the end of a run into its journal, after the host died or with what it reported.

        The host and its agents are gone by then, and only their parent knows how they ended. This
        is the one record of a run that the launching process writes.

        Args:
            run_dir: A run of this host.
            end: What to write. It gets the time of the writing.
        """
        end.t = time.time()
        with contextlib.suppress(OSError), JournalWriter(run_dir.journal) as journal:
            journal.write(end)

    def _receive(self, data: bytes) -> None:
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        for message in map(parse_message, lines):
            match message:
                case Warm():
                    self.warm = True
                case AgentGone():
                    self._agent_exits[message.run_dir] = message.how

    def wait_warm(self, timeout: float | None = None) -> bool:
        """Waits until the forkserver has imported torch.

        Args:
            timeout: Seconds. None: no limit.

        Returns:
            Whether it has.
        """
        self._socket.settimeout(timeout)
        with contextlib.suppress(TimeoutError, OSError):
            while not self.warm and (data := self._socket.recv(4096)):
                self._receive(data)
        self._socket.settimeout(None)
        return self.warm

    def log_tail(self) -> str:
        """The end of the host's output, for the message that it is gone."""
        if self._log.closed:
            return self._log_tail
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        return self._log.read().decode(errors="replace").strip()

    def detach(self, run_dir: str) -> None:
        """Asks the host to let a run outlive this process."""
        self._detached = True
        self._request(DetachRun(run_dir=run_dir))

    def close(self) -> None:
        """Closes the socket, so that the host ends its runs and itself, and waits for its end.

        It doesn't wait for a host with detached runs.
        """
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0 if self._detached else _CLOSE_TIMEOUT)
        if self.process.poll() is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        if self.process.returncode is None:
            # Popen warns of a child that runs on when it is deleted. This one is meant to.
            self.process.returncode = 0
        self._log_tail = self.log_tail()
        self._log.close()

    def retire(self) -> None:
        """Asks the host to end after its last run.

        Keep this object meanwhile: the host ends its runs when the socket closes.
        """
        self._request(Retire())

    def _request(self, request: HostRequest) -> None:
        with contextlib.suppress(OSError), self._send_lock:
            self._socket.sendall(request.to_line())


class HostPool:
    """The hosts of this process, the one that was used last at the end."""

    def __init__(self) -> None:
        self._hosts: dict[Any, HostProcess] = {}
        self._retired: list[HostProcess] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def for_environ(self, environ: Mapping[str, str]) -> HostProcess:
        """Gives the host whose forkserver fits an environment, and starts it if there is none.

        Raises:
            HostError: torch is not installed, or no directory for sockets can be made.
        """
        if importlib.util.find_spec("torch") is None:
            raise HostError(
                "torch is not installed in the environment of this kernel; `pip install torch`"
            )
        startup = {
            name: value for name, value in environ.items() if _STARTUP_VARIABLES.fullmatch(name)
        }
        # The interpreter ignores these variables: python -E or -I.
        if sys.flags.ignore_environment:
            startup = {
                name: value for name, value in startup.items() if not name.startswith("PYTHON")
            }
        key = (sys.executable, tuple(sorted(startup.items())))
        with self._lock:
            # After a fork of the kernel, these hosts are the parent's.
            if self._pid != os.getpid():
                self._hosts, self._pid = {}, os.getpid()
            host = self._hosts.pop(key, None)
            if host is not None and not host.alive():
                host.close()
                host = None
            host = host or HostProcess(startup)
            self._hosts[key] = host
            self._retire_old_hosts()
            return host

    def launch(self, launch: AgentLaunch, control: int) -> HostProcess:
        """Has a host start an agent. If the host has just died, a new one is started.

        Args:
            launch: The agent's task.
            control: A descriptor of the run's control FIFO.

        Raises:
            HostError: No host took the launch.
        """
        for _ in range(2):
            host = self.for_environ(launch.environment.environ)
            try:
                host.launch(launch, control)
                return host
            except OSError:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    host.process.wait(10)
        raise HostError(f"the process that starts agents ended at once:\n{host.log_tail()}")

    def close(self) -> None:
        """Closes all hosts of this process."""
        if self._pid == os.getpid():
            for host in [*self._hosts.values(), *self._retired]:
                host.close()

    def _retire_old_hosts(self) -> None:
        """Keeps the newest hosts warm and asks the others to end."""
        for key in list(self._hosts)[:-_MAX_WARM_HOSTS]:
            host = self._hosts.pop(key)
            host.retire()
            self._retired.append(host)
        for host in [host for host in self._retired if not host.alive()]:
            # This reads its last messages.
            host.agent_has_ended("")
            host.close()
            self._retired.remove(host)


def _python_path(environ: Mapping[str, str]) -> str:
    """PYTHONPATH, with the folder of this package unless the package is installed.

    A notebook may have put that folder on sys.path by hand. An installed package lies in
    site-packages, which must not come before the standard library.
    """
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    entries = []
    for entry in filter(None, environ.get("PYTHONPATH", "").split(os.pathsep)):
        # A relative entry can't be resolved if the working directory was removed.
        with contextlib.suppress(FileNotFoundError):
            entries.append(os.path.abspath(entry))
    import sysconfig

    installed = home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return os.pathsep.join(entries if installed else [*entries, home])


hosts = HostPool()
atexit.register(hosts.close)
