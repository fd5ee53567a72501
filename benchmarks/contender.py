"""A contender's process, as the session sees it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.messages import Answer, Call

_TIMEOUT = 120.0  # seconds for one launch; the slowest peer needs a tenth of it
_ROOT = Path(__file__).parent.parent
_NOT_IN_A_USERS_SHELL = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")


def plain_environ() -> dict[str, str]:
    """Returns the environment of every measured process, with this repository on its path.

    It lacks what a test machine sets and a user's shell doesn't. With ``PYTHONDONTWRITEBYTECODE``,
    an editable install is compiled at every import. With ``PYTHONUNBUFFERED``, every printed line
    is a system call.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_IN_A_USERS_SHELL}
    return {**kept, "PYTHONPATH": str(_ROOT)}


class Unmeasured(Exception):
    """A launch gave no figure; the message says why."""


@dataclass(frozen=True)
class Measurement:
    """One launch.

    Attributes:
        called: When the launch was called, in seconds since the epoch.
        returned: When it returned its results or raised its exception, in seconds since the epoch.
        marks: The times that ranks noted, by label, in ascending order.
        lines: How many lines reached the caller's stdout.
        torch_imported: Whether torch is imported in the caller's process afterwards.
    """

    called: float
    returned: float
    marks: dict[str, list[float]]
    lines: int
    torch_imported: bool


class Contender:
    """A kernel with one contender in it.

    Args:
        name: The contender, a key of `launchers.LAUNCHERS`.
        scratch: A folder for all that the kernel writes.
    """

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self._folder = Path(tempfile.mkdtemp(prefix="kernel-", dir=scratch))
        self._stdout = self._folder / "stdout"
        self._session, theirs = multiprocessing.Pipe()
        with theirs, self._stdout.open("ab") as stdout:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.kernel", name, str(theirs.fileno())],
                cwd=self._folder,
                env={**plain_environ(), "TMPDIR": str(self._folder)},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stdout,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def load(self) -> None:
        """Does what a user does once per kernel.

        If this isn't called, the first launch does it, and its time includes it.
        """
        self._session.send(None)
        self._session.recv()

    def measure(self, call: Call, *, fails: bool = False) -> Measurement:
        """Launches once, and removes the files that this left on disk.

        Their memory in the page cache is then free again.

        Args:
            call: What to launch.
            fails: Whether the launch has to end in an exception.

        Raises:
            Unmeasured: The launch ended in another way, or not at all.
        """
        folder = Path(tempfile.mkdtemp(prefix="launch-", dir=self._folder))
        os.truncate(self._stdout, 0)
        try:
            answer = self._request(call, folder)
            if fails != bool(answer.error):
                raise Unmeasured(answer.error or "returned, though a rank had raised")
            with self._stdout.open("rb") as file:
                lines = sum(1 for _ in file)
            return Measurement(
                answer.called, answer.returned, _marks(folder), lines, answer.torch_imported
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _request(self, call: Call, folder: Path) -> Answer:
        try:
            self._session.send((call, str(folder)))
            if self._session.poll(_TIMEOUT):
                return self._session.recv()
        except (EOFError, OSError):
            raise Unmeasured("its process ended") from None
        raise Unmeasured(f"no answer within {_TIMEOUT:.0f} s")

    def close(self) -> None:
        """Ends the kernel, and all processes that it forked."""
        self._session.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _marks(folder: Path) -> dict[str, list[float]]:
    marks: dict[str, list[float]] = defaultdict(list)
    for path in folder.glob("mark-*"):
        marks[path.name.split("-")[1]].append(float(path.read_text()))
    return {label: sorted(times) for label, times in marks.items()}
