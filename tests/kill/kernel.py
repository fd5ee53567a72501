"""A real kernel that a cell of the matrix may kill, and the processes that descend from it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from jupyter_client import KernelManager

from icelaunch_nb.system.processes import Process

HERE = Path(__file__).parent


class Kernel:
    """An ipykernel with a TMPDIR of its own, which every process that it starts inherits.

    Args:
        warm: Whether to wait until its host is warm.
        python_path: The folder of another ipykernel. None for the installed one.
    """

    def __init__(self, *, warm: bool, python_path: Path | None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="kill-"))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        environ |= {
            "TMPDIR": str(self.home),
            "XDG_STATE_HOME": str(self.home / "state"),
            "IPYTHONDIR": str(self.home / "ipython"),
        }
        if python_path:
            environ["PYTHONPATH"] = str(python_path)
        self._manager = KernelManager(
            kernel_name="python3", connection_file=str(self.home / "kernel.json")
        )
        self._manager.start_kernel(env=environ, cwd=str(self.home))
        self._client = self._manager.blocking_client()
        self._client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
        self.pid = int(self._manager.provisioner.pid)
        self.process = Process.of(self.pid)
        self.run_cell(
            f"import sys; sys.path.insert(0, {str(HERE)!r}); import job; "
            + ("job.ice.launch(job.rank_of).result(120)" if warm else "0")
        )
        self.died = False

    def run_cell(self, code: str) -> None:
        """Runs a cell to its end."""
        reply = self._client.execute(code, reply=True, timeout=120)
        assert reply["content"]["status"] == "ok", reply["content"]

    def start_cell(self, code: str) -> None:
        """Starts a cell."""
        self._client.execute(code)

    def family(self) -> set[Process]:
        """Returns the kernel and every living process that descends from it."""
        mark, found = f"\0TMPDIR={self.home}\0".encode(), set()
        for pid in psutil.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
                if (
                    mark in b"\0" + file.read() + b"\0"
                    and (process := Process.of(pid))
                    and process.alive()
                ):
                    found.add(process)
        return found

    def host(self) -> psutil.Process | None:
        """Returns the kernel's host."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                if "icelaunch_nb.host" in child.cmdline():
                    return child
        return None

    def forkserver(self) -> psutil.Process | None:
        """Returns the forkserver of the kernel's host."""
        with contextlib.suppress(psutil.Error):
            for child in host.children() if (host := self.host()) else []:
                if "forkserver" in " ".join(child.cmdline()):
                    return child
        return None

    def close(self) -> None:
        """Ends the kernel and every process that is left."""
        self._client.stop_channels()
        with contextlib.suppress(Exception):
            self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()
        until(lambda: not self.family(), 30)
        for process in self.family():
            print(f"left behind by a kernel: {process}", file=sys.stderr)
            process.send(9)
        shutil.rmtree(self.home, ignore_errors=True)


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Waits for a condition, and returns whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
