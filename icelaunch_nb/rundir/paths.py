"""The run directory: every path of a run.

The directory is the interface between kernel, agent and ranks. The agent writes the journal; ranks write into their own
folders; whoever looks on reads. Whole files appear by write-then-rename, so a reader never sees half of one.

    <log_dir>/<run_id>_<random>/
        spec.json  call.pkl  sources.json        what was asked (the kernel writes it; call.pkl goes when the run is over)
        journal.jsonl  agent.log                 what happened (the agent)
        events.board                             flags and counters that all of them see
        ballast                                  space for the last words on a full disk, until the run is over
        checkpoint.json                          the newest checkpoint that a rank told of (that rank)
        control  leash                           FIFOs: wishes and moments to the agent; the agent's life, for the ranks
        watchers/                                a mark of each process that looks at the run (retention.py)
        attempt_<k>/steps.board                  how the ranks of one attempt agree on a step (they make it, if they use it)
        attempt_<k>/<local_rank>/                stdout.log  stderr.log  error.json  error.pkl  result.pkl
                                                 metrics.jsonl  stacks.txt  debugger.lock  debugger.sock
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icelaunch_nb.disk import write_whole
from icelaunch_nb.errors import ConfigError, IcelaunchError

_LONGEST = select.PIPE_BUF  # bytes of a line that a FIFO takes whole or not at all; 4096 on Linux


@dataclass(frozen=True)
class RankDir:
    """The folder of one rank in one attempt; stdout, stderr and error.json lie as torch elastic lays them."""

    path: Path

    @property
    def stdout(self) -> Path:
        return self.path / "stdout.log"

    @property
    def stderr(self) -> Path:
        return self.path / "stderr.log"

    @property
    def error(self) -> Path:
        """torch elastic's error file (JSON), with our fields beside torch's."""
        return self.path / "error.json"

    @property
    def exception(self) -> Path:
        """The exception itself, packed."""
        return self.path / "error.pkl"

    @property
    def result(self) -> Path:
        """The returned value, packed."""
        return self.path / "result.pkl"

    @property
    def metrics(self) -> Path:
        """What the rank reported, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def stacks(self) -> Path:
        """Where faulthandler writes the stacks of all threads on request."""
        return self.path / "stacks.txt"

    @property
    def debugger(self) -> Path:
        """The socket of the rank's debugger; there while the rank is in it."""
        return self.path / "debugger.sock"

    @property
    def debugger_lock(self) -> Path:
        """Held while a thread or a process of the rank is in the debugger."""
        return self.path / "debugger.lock"


@dataclass(frozen=True)
class RunDir:
    """Every path of a run, named once."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def call(self) -> Path:
        return self.path / "call.pkl"

    @property
    def sources(self) -> Path:
        return self.path / "sources.json"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def agent_log(self) -> Path:
        return self.path / "agent.log"

    @property
    def board(self) -> Path:
        return self.path / "events.board"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.json"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def leash(self) -> Path:
        return self.path / "leash"

    def attempt(self, number: int) -> Path:
        return self.path / f"attempt_{number}"

    def steps(self, attempt: int) -> Path:
        """How the ranks of one attempt agree on a step."""
        return self.attempt(attempt) / "steps.board"

    def rank(self, attempt: int, local_rank: int) -> RankDir:
        return RankDir(self.attempt(attempt) / str(local_rank))

    def write(self, path: Path, text: str) -> None:
        """Writes a whole file that appears at once, readable by its owner alone."""
        write_whole(path, text.encode())

    def read_spec(self) -> dict[str, Any]:
        """What was asked, as `launch` wrote it.

        Raises:
            IcelaunchError: The directory is not a run's, or belongs to somebody else.
        """
        check_owner(self.path)
        try:
            return json.loads(self.spec.read_bytes())
        except (OSError, ValueError) as error:
            raise IcelaunchError(f"{self.path} is not the directory of a run: {error}") from None

    def write_json(self, path: Path, value: object) -> None:
        """Writes a whole JSON file, as `write` does."""
        self.write(path, json.dumps(value))

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that a rank told of: ``path``, ``time``, ``rank``, ``step``; None: there is none."""
        try:
            return json.loads(self.checkpoint.read_bytes())
        except (OSError, ValueError):
            return None


def make_run_dir(log_dir: str | None, run_id: str) -> RunDir:
    """Makes the directory of a new run, with its FIFOs.

    Args:
        log_dir: The base; None: a directory of the user's in the temporary one.
        run_id: What the name begins with.

    Raises:
        ConfigError: It can't be made there.
    """
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id).strip(".-")[:60] or "run"
    base = Path(log_dir) if log_dir is not None else default_log_dir()
    try:
        make_private(base)
        run_dir = RunDir(Path(tempfile.mkdtemp(prefix=f"{readable}_", dir=base)))
        for fifo in (run_dir.control, run_dir.leash):
            os.mkfifo(fifo, 0o600)
            os.chmod(fifo, 0o600)  # whatever the umask
    except (OSError, ValueError) as error:
        raise ConfigError(
            "log_dir",
            str(base),
            f"a run's directory can't be made there: {getattr(error, 'strerror', error)}",
        ) from None
    return run_dir


def make_private(path: Path) -> None:
    """Makes a directory, and those above it that are missing, its owner's alone; mkdir(parents=True) would go by the umask.

    Raises:
        OSError: It can't be made.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(exist_ok=True, mode=0o700)


def default_log_dir() -> Path:
    """The user's own directory for runs in the temporary directory, made if need be.

    Raises:
        ConfigError: Somebody else owns a directory of that name.
    """
    path = Path(tempfile.gettempdir()) / f"icelaunch_nb-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError("log_dir", None, f"{path} belongs to somebody else; set log_dir")
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    return path


def check_owner(path: Path) -> None:
    """Refuses what another user could have put there; nothing is unpickled before this was asked.

    Raises:
        IcelaunchError: `path` is missing, or neither the caller nor root owns it.
    """
    try:
        owner = path.stat().st_uid
    except OSError as error:
        raise IcelaunchError(f"{path}: {error.strerror}") from None
    if owner not in (os.geteuid(), 0):
        raise IcelaunchError(f"{path} belongs to user {owner}, not to you: nothing in it is loaded")


def tell_agent(run_dir: RunDir, line: str) -> bool:
    """Says a line to a run's agent (`agent.wishes` knows which); whether it is on its way.

    Never waits, and never raises for an agent that is gone or doesn't read.

    Raises:
        ValueError: It is so long that a FIFO wouldn't take it whole, between the lines of others.
    """
    data = line.encode() + b"\n"
    if len(data) > _LONGEST:
        raise ValueError(f"a line of {len(data)} bytes: at most {_LONGEST}")
    try:
        fd = os.open(run_dir.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.write(fd, data) == len(data)
    except OSError:
        return False
    finally:
        os.close(fd)
