"""A real ipykernel with real ranks, and the proof that it leaves no process behind.

Every process that a kernel of these tests starts has that kernel's own TMPDIR in its environment:
host, forkserver, agents, ranks, their DataLoader workers and subprocesses. So `Kernel.leftovers`
finds them whoever their parent is, and never counts those of another kernel.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import pytest
from jupyter_client import KernelManager

GONE_WITHIN = 30.0  # seconds after the kernel's end within which nothing of a run may be left
PATIENCE = 60.0  # seconds that anything else may take on a busy machine
RETRY_AFTER = 5.0  # seconds after which a kernel that hasn't begun with a cell gets another request

PREAMBLE = """
import os, pathlib, signal, sys, time
import icelaunch_nb as ice

HOME = pathlib.Path({home!r})

def launch(fn, *args, ranks=2, **options):
    return ice.launch(fn, args, nproc_per_node=ranks, **options)

def results(fn, *args, **options):
    return launch(fn, *args, **options).result()

def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
"""


@dataclass
class Cell:
    """One execution of a cell. Its attributes grow as messages arrive.

    Attributes:
        kernel: Where it runs.
        code: Its source.
        number: Its ``In[number]``.
        out: Its stdout.
        err: Its stderr.
        value: The text of its last expression.
        ename: Name of the exception that ended it; empty for none.
        evalue: What that exception said.
        over: Whether the kernel is done with it.
        displayed: What it displayed, in order: the data by MIME type.
    """

    kernel: Kernel
    code: str
    number: int = 0
    out: str = ""
    err: str = ""
    value: str = ""
    ename: str = ""
    evalue: str = ""
    over: bool = False
    displayed: list[dict[str, Any]] = field(default_factory=list)
    _traceback: list[str] = field(default_factory=list)

    @property
    def error(self) -> str:
        """The traceback, without its colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(self._traceback))

    @property
    def literal(self) -> Any:
        """The value of the last expression, whose text must be a Python literal."""
        assert not self.ename, self.error
        return ast.literal_eval(self.value)

    def wait(self, timeout: float = PATIENCE) -> Cell:
        """Waits until the cell ends."""
        return self.wait_until(lambda: self.over, "it ends", timeout)

    def wait_for(self, text: str, timeout: float = PATIENCE) -> Cell:
        """Waits until the cell has printed `text`, or ends."""
        return self.wait_until(
            lambda: text in self.out or self.over, f"it prints {text!r}", timeout
        )

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float) -> Cell:
        """Waits until `condition` holds, and reads the kernel's messages meanwhile."""
        deadline = time.monotonic() + timeout
        retry_at = time.monotonic() + RETRY_AFTER
        while not condition():
            assert time.monotonic() < deadline, (
                f"waited {timeout:.0f} s in vain until {what}; so far: {self}"
            )
            if not self.number and time.monotonic() > retry_at:
                # ipykernel 7.0 to 7.3 can miss a request that comes while it sends a reply. It sees
                # it with the next request (ipython/ipykernel#1554).
                retry_at = time.monotonic() + RETRY_AFTER
                self.kernel.client.kernel_info()
            self.kernel.read_message()
        return self

    def receive(self, message: dict[str, Any]) -> None:
        """Adds what a message says about this cell."""
        content, kind = message["content"], message["msg_type"]
        if kind == "execute_input":
            self.number = content["execution_count"]
        elif kind == "stream" and content["name"] == "stdout":
            self.out += content["text"]
        elif kind == "stream":
            self.err += content["text"]
        elif kind == "display_data":
            self.displayed.append(content["data"])
        elif kind == "execute_result":
            self.value = content["data"]["text/plain"]
        elif kind == "error":
            self.ename, self.evalue, self._traceback = (
                content["ename"],
                content["evalue"],
                content["traceback"],
            )
        elif kind == "status" and content["execution_state"] == "idle":
            if self.number:
                self.over = True
            else:
                # ipykernel aborts a request that comes too soon after a cell that failed.
                self.kernel.send(self)

    def __repr__(self) -> str:
        return (
            f"<Cell In[{self.number}] out={self.out!r} err={self.err!r} value={self.value!r} "
            f"error={self.error!r}>"
        )


class Kernel:
    """A kernel, used as a notebook uses it.

    Args:
        home: A short, empty directory: its TMPDIR, its working directory, its connection file.
        environ: Environment variables in addition to those of the tests.
    """

    def __init__(self, home: Path, environ: Mapping[str, str]) -> None:
        self.home = home
        self._cells: dict[str, Cell] = {}
        self._manager = KernelManager(
            kernel_name="python3", connection_file=str(home / "kernel.json")
        )
        self._environ = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("OMP_", "RANK", "LOCAL_RANK", "WORLD_SIZE"))
            },
            "TMPDIR": str(home),
            "IPYTHONDIR": str(home / "ipython"),
            "NO_COLOR": "1",
            **environ,
        }
        self._manager.start_kernel(env=self._environ, cwd=str(home))
        self.client = self._manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    @property
    def pid(self) -> int:
        return self._manager.provisioner.pid

    # Cells.

    def run(self, code: str, timeout: float = PATIENCE) -> Cell:
        """Runs a cell until it ends, with or without an error."""
        return self.start(code).wait(timeout)

    def start(self, code: str) -> Cell:
        """Starts a cell without waiting for it."""
        cell = Cell(self, code)
        self.send(cell)
        return cell

    def send(self, cell: Cell) -> None:
        """Sends the request to execute a cell."""
        self._cells[self.client.execute(cell.code)] = cell

    def does(self, code: str, timeout: float = PATIENCE) -> Cell:
        """Runs a cell that must not fail."""
        cell = self.run(code, timeout)
        assert not cell.ename, cell.error
        return cell

    def value(self, code: str, timeout: float = PATIENCE) -> Any:
        """Runs a cell and returns the value of its last expression."""
        return self.run(code, timeout).literal

    def read_message(self) -> None:
        """Reads the next message, if one arrives within 0.1 s, and gives it to its cell."""
        try:
            message = self.client.get_iopub_msg(timeout=0.1)
        except Empty:
            assert self._manager.is_alive(), "the kernel is gone"
            return
        cell = self._cells.get(message["parent_header"].get("msg_id", ""))
        if cell is not None:
            cell.receive(message)

    # Interrupt, restart and end.

    def interrupt(self) -> None:
        """Does what the notebook's Interrupt does: SIGINT to the kernel's whole process group."""
        self._manager.interrupt_kernel()

    def interrupted(self, code: str, touched: str) -> Cell:
        """Runs a cell, and interrupts it once it has made the file `touched` in `home`."""
        cell = self.start(code)
        self.until((self.home / touched).exists, f"the cell touches {touched}")
        self.interrupt()
        return cell.wait()

    def restart(self) -> None:
        self._manager.restart_kernel()
        self.client.wait_for_ready(timeout=PATIENCE)

    def shutdown(self) -> None:
        self._manager.shutdown_kernel()

    def kill(self) -> None:
        """Kills the kernel alone by SIGKILL, as the out-of-memory killer does."""
        os.kill(self.pid, signal.SIGKILL)
        psutil.Process(self.pid).wait(PATIENCE)

    # The processes that it started.

    def leftovers(self, *but: int) -> list[psutil.Process]:
        """The living processes that this kernel started, but for itself and the pids in `but`."""
        known = {*but, self.pid if self._manager.is_alive() else None}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if (
                    process.pid not in known
                    and process.environ().get("TMPDIR") == str(self.home)
                    and (process.status() != psutil.STATUS_ZOMBIE)
                ):
                    found.append(process)
        return found

    @staticmethod
    def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
        """Those that run or are still dying.

        A dying process has no environment any more, so `Kernel.leftovers` misses it.
        """
        found = []
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def host(self) -> list[psutil.Process]:
        """The hosts among `leftovers`."""
        return [process for process in self.leftovers() if "icelaunch_nb.host" in _command(process)]

    def leaves_nobody(
        self, *but: int, seen: Iterable[psutil.Process] = (), within: float = GONE_WITHIN
    ) -> None:
        """Asserts that soon no process is left, of those in `seen` either.

        Args:
            *but: Pids that may stay.
            seen: Processes that were found before and must end, too.
            within: Seconds after which a process that is still there fails the test.
        """
        deadline = time.monotonic() + within
        while left := self.living({*seen, *self.leftovers(*but)}):
            if time.monotonic() > deadline:
                listed = [f"{process.pid} {' '.join(_command(process))[:100]}" for process in left]
                for process in left:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                pytest.fail(f"left behind after {within} s: {listed}")
            time.sleep(0.02)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """Waits until `condition` returns something true, and returns that."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain until {what}"
            time.sleep(0.01)
        return value

    def close(self) -> None:
        """Ends the kernel, and asserts that no process of it is left."""
        try:
            if self._manager.is_alive():
                self._manager.shutdown_kernel(now=True)
            self.leaves_nobody()
        finally:
            self.client.stop_channels()
            self._manager.cleanup_resources()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextlib.contextmanager
def a_kernel(environ: Mapping[str, str]) -> Iterator[Kernel]:
    """Starts a kernel in a new directory. At the end it must leave no process behind."""
    home = Path(tempfile.mkdtemp(prefix="ice-kernel-"))
    kernel = None
    try:
        kernel = Kernel(home, environ)
        yield kernel
    finally:
        if kernel is not None:
            kernel.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def bare_kernel(ipykernel: dict[str, str]) -> Iterator[Kernel]:
    """A kernel for one test, in which nothing was run yet."""
    with a_kernel(ipykernel) as kernel:
        yield kernel


@pytest.fixture
def another(ipykernel: dict[str, str]) -> Iterator[Kernel]:
    """A second kernel of the same user."""
    with a_kernel(ipykernel) as kernel:
        kernel.does("import os, time\nimport icelaunch_nb as ice")
        yield kernel


@pytest.fixture
def fresh_kernel(bare_kernel: Kernel) -> Kernel:
    """A kernel for one test that has run `PREAMBLE`. Its host is not started yet."""
    bare_kernel.does(PREAMBLE.format(home=str(bare_kernel.home)))
    return bare_kernel


@pytest.fixture(scope="module")
def kernel(ipykernel: dict[str, str]) -> Iterator[Kernel]:
    """A kernel that the tests of a module share. It has run `PREAMBLE` and has a host."""
    with a_kernel(ipykernel) as kernel:
        kernel.does(
            PREAMBLE.format(home=str(kernel.home))
            + "\nget_ipython().run_line_magic('load_ext', 'icelaunch_nb')"
        )
        yield kernel
