"""The kernel's hosts: started in the background, one for each set of variables that act when torch is imported."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.errors import HostError, how_it_ended
from icelaunch_nb.tasks import AgentTask

# Variables that act on an interpreter's start or on the import of torch and what it loads: a forkserver that was started
# with other values can't be made right afterwards. Everything else is laid over in each rank. A host gets only these, so
# secrets never stand in /proc/<host>/environ.
_EARLY = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|TZ|LANG|LANGUAGE|LC_.*|LD_.*|DYLD_.*|PYTHON.*|VIRTUAL_ENV|CONDA_PREFIX|GLIBC_TUNABLES|MALLOC_.*"
    r"|TORCH_.*|TORCHINDUCTOR_.*|PYTORCH_.*|ATEN_.*|OMP_.*|GOMP_.*|KMP_.*|MKL_.*|OPENBLAS_.*|BLIS_.*|NUMEXPR_.*|VECLIB_.*|NPY_.*"
    r"|CUDA_.*|CUBLAS_.*|CUDNN_.*|NVIDIA_.*|HIP_.*|ROCR_.*|HSA_.*|USE_.*)"
)
# Huge pages for malloc's heap (glibc 2.35 and later): a fork then copies fewer page tables, 2.1 instead of 3.6 ms a rank. Ranks
# get the launch environment laid over, so their own children don't inherit it.
_FASTER_FORKS = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_CLOSING = 6.0  # seconds that a host gets to end its runs when this process ends
_REAPED = 0.5  # seconds that lie at most between the end of a process's descriptors and its own
_KEPT_WARM = 2  # a host holds about 180 MB


class Host:
    """A host process and the kernel's end of its socket.

    Args:
        environ: The early variables it starts with.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile(
            "a+b"
        )  # appending: reading it must not move where the host writes
        environ = _without_long_tmpdir(environ)
        # Its own place for multiprocessing's sockets, which outlive a host that is killed.
        self._place = tempfile.mkdtemp(prefix="ice-", dir=environ.get("TMPDIR") or None)
        self._socket, theirs = socket.socketpair()
        self._sending = threading.Lock()
        self._heard = b""
        self._gone: set[str] = set()
        self._detached = False
        self._last_words = ""
        self.warm = False
        with theirs:
            # A session of its own: Jupyter's Interrupt is a SIGINT to the kernel's whole process group.
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "icelaunch_nb.host",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    self._place,
                ],
                env={**_FASTER_FORKS, **environ, "PYTHONPATH": _python_path(environ)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=os.path.sep,
            )

    def launch(self, task: AgentTask) -> None:
        """Asks for an agent.

        Raises:
            OSError: The host is gone.
        """
        with self._sending:
            self._socket.sendall(task.to_line())
        self._detached = self._detached or task.detach

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def end(self) -> str:
        """How it ended, as a clause; empty while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_REAPED)
        return "" if self.process.returncode is None else how_it_ended(self.process.returncode)

    def gone(self, run_dir: str) -> bool:
        """Whether it said that the agent of that run ended; what a full disk keeps out of the journal is heard here."""
        with contextlib.suppress(OSError), self._sending:
            while data := self._socket.recv(1 << 16, socket.MSG_DONTWAIT):
                self._hear(data)
        return run_dir in self._gone

    def _hear(self, data: bytes) -> None:
        *lines, self._heard = (self._heard + data).split(b"\n")
        for message in map(json.loads, lines):
            if message["event"] == "warm":
                self.warm = True
            else:
                self._gone.add(message["run_dir"])

    def wait_warm(self, timeout: float | None = None) -> bool:
        """Waits until its forkserver has imported torch; whether it has."""
        self._socket.settimeout(timeout)
        with contextlib.suppress(TimeoutError, OSError):
            while not self.warm and (data := self._socket.recv(4096)):
                self._hear(data)
        self._socket.settimeout(None)
        return self.warm

    def last_words(self) -> str:
        """The end of what it wrote, for the message that it is gone."""
        if self._log.closed:
            return self._last_words
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        return self._log.read().decode(errors="replace").strip()

    def detach(self, run_dir: str) -> None:
        """Tells it that a run shall outlive this process."""
        self._detached = True
        with contextlib.suppress(OSError), self._sending:
            self._socket.sendall(json.dumps({"op": "detach", "run_dir": run_dir}).encode() + b"\n")

    def close(self) -> None:
        """At the end of this process: the host ends its runs and itself; waits for that, but not for detached runs."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0 if self._detached else _CLOSING)
        if self.process.poll() is not None:
            shutil.rmtree(self._place, ignore_errors=True)
        if self.process.returncode is None:
            self.process.returncode = 0  # it goes on by itself; Popen would warn of that
        self._last_words = self.last_words()
        self._log.close()

    def retire(self) -> None:
        """Lets it end once its last run has; as long as this object lives, so does its hold on the kernel's life."""
        with contextlib.suppress(OSError), self._sending:
            self._socket.sendall(b'{"op": "retire"}\n')


def _without_long_tmpdir(environ: Mapping[str, str]) -> dict[str, str]:
    """multiprocessing puts a socket into TMPDIR, whose whole path must fit into 107 characters. Ranks get the real one."""
    return {
        name: value
        for name, value in environ.items()
        if name != "TMPDIR" or len(os.fsencode(value)) < 60
    }


class Hosts:
    """The hosts of this process, the one used last at the end."""

    def __init__(self) -> None:
        self._hosts: dict[Any, Host] = {}
        self._retired: list[Host] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def for_environ(self, environ: Mapping[str, str]) -> Host:
        """The host whose forkserver fits these variables, started if need be.

        Raises:
            HostError: torch is not installed.
        """
        if importlib.util.find_spec("torch") is None:
            raise HostError(
                "torch is not installed in the environment of this kernel; `pip install torch`"
            )
        early = {name: value for name, value in environ.items() if _EARLY.fullmatch(name)}
        key = (sys.executable, tuple(sorted(early.items())))
        with self._lock:
            if (
                self._pid != os.getpid()
            ):  # a forked copy of the kernel: these hosts are its parent's
                self._hosts, self._pid = {}, os.getpid()
            host = self._hosts.pop(key, None)
            if host is not None and not host.alive():
                host.close()
                host = None
            host = host or Host(early)
            self._hosts[key] = host
            self._retire()
            return host

    def launch(self, task: AgentTask) -> Host:
        """Has an agent started, by a new host where the old one has just died.

        Raises:
            HostError: No host could take the task.
        """
        for _ in range(2):
            host = self.for_environ(task.surroundings.environ)
            try:
                host.launch(task)
                return host
            except OSError:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    host.process.wait(10)
        raise HostError(f"the process that starts agents ended at once:\n{host.last_words()}")

    def close(self) -> None:
        """Closes all hosts of this process."""
        if self._pid == os.getpid():
            for host in [*self._hosts.values(), *self._retired]:
                host.close()

    def _retire(self) -> None:
        """Keeps the newest warm and lets the others end."""
        for key in list(self._hosts)[:-_KEPT_WARM]:
            host = self._hosts.pop(key)
            host.retire()
            self._retired.append(host)
        for host in [host for host in self._retired if not host.alive()]:
            host.gone("")  # hears its last messages
            host.close()
            self._retired.remove(host)


def _python_path(environ: Mapping[str, str]) -> str:
    """PYTHONPATH with the folder of this package, where a notebook may have put that on sys.path by hand.

    Not where it is installed: site-packages must not come before the standard library.
    """
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    entries = []
    for entry in filter(None, environ.get("PYTHONPATH", "").split(os.pathsep)):
        with contextlib.suppress(FileNotFoundError):  # a relative one, in a directory that is gone
            entries.append(os.path.abspath(entry))
    installed = home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return os.pathsep.join(entries if installed else [*entries, home])


hosts = Hosts()
atexit.register(hosts.close)
