"""The run directory: every path of a run.

The directory is the interface between kernel, agent and ranks. The kernel writes what to run, the
agent writes the journal, and each rank writes into its own folder. All of them read. Whole files
appear by write-then-rename, so a reader never sees half of one. `scripts/architecture.py` lists who
writes each file and when it is removed.

    <log_dir>/<run_id>_<random>/
        spec.json  call.pkl  sources.json   what to run (written by the kernel;
                                            call.pkl is removed at the end of the run)
        journal.jsonl  agent.log            what happened (written by the agent)
        events.board                        flags and counters that all processes see
        disk.reserve                        space for the last records on a full disk,
                                            until the end of the run
        checkpoint.json                     the newest checkpoint that a rank reported
        control                             a FIFO: requests to the agent
        agent_alive                         a FIFO that closes when the agent ends
        watchers/                           a mark for each handle on the run (retention.py)
        attempt_<k>/steps.board             how the ranks of an attempt agree on a step; the agent
                                            makes it if there are several ranks
        attempt_<k>/<local_rank>/           stdout.log  stderr.log  error.json  error.pkl
                                            result.pkl  metrics.jsonl  stacks.txt
                                            debugger.lock  debugger.sock
                                            error.reserve (while the rank lives)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from icelaunch_nb.errors import ConfigError, NotARunError, UnreadableRunError, UntrustedFileError
from icelaunch_nb.system import safe_open
from icelaunch_nb.system.files import write_atomically
from icelaunch_nb.system.userdirs import own_dir, own_dirs, temporary_dirs

# In the environment of every process of a run.
RUN_DIR_VARIABLE = "ICELAUNCH_RUN_DIR"
_DISK_RESERVE = "disk.reserve"


@dataclass(frozen=True)
class RankDir:
    """The folder of one rank in one attempt.

    stdout, stderr and error.json lie where torch elastic puts them.

    Attributes:
        path: The folder.
    """

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
    def error_reserve(self) -> Path:
        """Stands in for an error file that can't be written. The rank opens it at its start."""
        return self.path / "error.reserve"

    @property
    def disk_reserve(self) -> Path:
        """The run's reserve, which the rank removes when it finds the disk full."""
        return self.run_dir.disk_reserve

    @property
    def exception(self) -> Path:
        """The exception itself, pickled."""
        return self.path / "error.pkl"

    @property
    def result(self) -> Path:
        """The returned value, pickled."""
        return self.path / "result.pkl"

    @property
    def metrics(self) -> Path:
        """The metrics that the rank reported, a JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def stacks(self) -> Path:
        """Where faulthandler writes the stacks of all threads on request."""
        return self.path / "stacks.txt"

    def child_main(self, number: int) -> tuple[Path, Path]:
        """The script that the rank's spawned children run first, and the file that it loads.

        It is also for children of a forkserver.
        """
        return self.path / f"child_main_{number}.py", self.path / f"child_main_{number}.pkl"

    @property
    def debugger(self) -> Path:
        """The socket of the rank's debugger, which exists while the rank is in the debugger."""
        return self.path / "debugger.sock"

    @property
    def run_dir(self) -> RunDir:
        """The run's directory on this rank's machine."""
        return RunDir(self.path.parent.parent)

    @property
    def attempt(self) -> int:
        """The attempt's number, from 0."""
        return int(self.path.parent.name.rpartition("_")[2])

    @property
    def local_rank(self) -> int:
        """The local rank whose folder it is."""
        return int(self.path.name)

    @property
    def debugger_lock(self) -> Path:
        """The file that is locked while a thread or child of the rank is in the debugger."""
        return self.path / "debugger.lock"


@dataclass(frozen=True)
class RunDir:
    """Every path of a run, named once.

    Attributes:
        path: The directory.
        identity: Which directory lay there when the run was made or attached. None: not known. Who
            may rename in the parent directory can put another directory there, and nothing is read
            from that one. A descriptor would do the same, but each run that a notebook shows would
            hold one.
    """

    path: Path
    identity: safe_open.Identity | None = field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> RunDir:
        """The run directory that lies at `path` now, with its identity.

        Raises:
            NotARunError: There is no directory.
            UntrustedFileError: The directory belongs to another user.
            UnreadableRunError: The directory can't be opened.
        """
        try:
            fd = safe_open.open_directory(path)
        except UntrustedFileError:
            raise
        except OSError as error:
            kind = (
                NotARunError if error.errno in (errno.ENOENT, errno.ENOTDIR) else UnreadableRunError
            )
            raise kind(f"{path} is not the directory of a run: {error.strerror}") from None
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return cls(Path(path), (found.st_dev, found.st_ino))

    def open(
        self, path: Path, flags: int = os.O_RDONLY, *, fifo: bool = False, any_owner: bool = False
    ) -> int:
        """Opens one of the run's files, and no other file in its place (see `safe_open`).

        Args:
            path: The file, below the directory.
            flags: As `os.open` takes them.
            fifo: Whether it must be a FIFO. Otherwise it must be a regular file.
            any_owner: Whether it may belong to another user, since it is only shown.

        Returns:
            The descriptor.

        Raises:
            UntrustedFileError: The file is of another kind, or belongs to another user.
            OSError: The file can't be opened.
        """
        directory = safe_open.open_directory(self.path, self.identity)
        try:
            return safe_open.open_below(
                directory, path.parts[len(self.path.parts) :], flags, fifo=fifo, any_owner=any_owner
            )
        finally:
            os.close(directory)

    def open_log(self, path: Path) -> int:
        """Opens a file that a rank wrote for people to read, as `open`.

        It may belong to another user, since a rank can change its user.

        Returns:
            The descriptor.

        Raises:
            UntrustedFileError: It is no regular file, or lies in a directory of another user.
            OSError: The file can't be opened.
        """
        return self.open(path, any_owner=True)

    def read(self, path: Path) -> bytes:
        """Reads one of the run's files whole.

        Raises:
            UntrustedFileError: The file is of another kind, of another user, or far too large.
            OSError: The file can't be opened.
        """
        return safe_open.read_whole(self.open(path), path)

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
    def disk_reserve(self) -> Path:
        """The file whose removal makes room for the last records on a full disk."""
        return self.path / _DISK_RESERVE

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.json"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def agent_alive(self) -> Path:
        """A FIFO whose only writer is the agent: ranks end when it closes."""
        return self.path / "agent_alive"

    @property
    def watchers(self) -> Path:
        """The folder with a mark for each handle that a process has on the run."""
        return self.path / "watchers"

    def node(self, node: int) -> Path:
        """The directory of a node's files. For node 0, the home node, it is the run directory."""
        return self.path / "nodes" / str(node) if node else self.path

    def journal_of(self, node: int) -> Path:
        """The journal of a node's agent."""
        return self.node(node) / self.journal.name

    def attempt(self, number: int, node: int = 0) -> Path:
        """An attempt's folder on a node."""
        return self.node(node) / f"attempt_{number}"

    def steps(self, attempt: int, node: int = 0) -> Path:
        """The board by which the ranks of one attempt agree on a step."""
        return self.attempt(attempt, node) / "steps.board"

    def rank(self, attempt: int, local_rank: int, node: int = 0) -> RankDir:
        """A rank's folder in an attempt."""
        return RankDir(self.attempt(attempt, node) / str(local_rank))

    def ranks(self, attempt: int, node: int = 0) -> list[RankDir]:
        """Lists the ranks' folders of an attempt on a node."""
        try:
            names = os.listdir(self.attempt(attempt, node))
        except OSError:
            return []
        return [
            self.rank(attempt, int(name), node)
            for name in sorted(names)
            if name.isascii() and name.isdigit()
        ]

    def write(self, path: Path, text: str) -> None:
        """Writes a whole file, which appears at once and which only its owner can read."""
        write_atomically(path, text.encode())

    def write_json(self, path: Path, value: object) -> None:
        """Writes a whole JSON file, as `write` does."""
        self.write(path, json.dumps(value))


def make_run_dir(log_dir: str | None, run_id: str) -> RunDir:
    """Makes the directory of a new run, with its FIFOs.

    Args:
        log_dir: The parent directory. None: `default_log_dir`.
        run_id: The beginning of the directory's name, as far as its characters are fit for one.

    Returns:
        The directory, with its identity.

    Raises:
        ConfigError: The directory can't be made there.
    """
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id).strip(".-")[:60] or "run"
    base = Path(log_dir) if log_dir is not None else default_log_dir()
    try:
        make_private(base)
        run_dir = RunDir(Path(tempfile.mkdtemp(prefix=f"{readable}_", dir=base)))
        for fifo in (run_dir.control, run_dir.agent_alive):
            os.mkfifo(fifo, 0o600)
            # Whatever the umask is.
            os.chmod(fifo, 0o600)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "log_dir",
            str(base),
            f"a run's directory can't be made there: {getattr(error, 'strerror', error)}",
        ) from None
    return RunDir.at(run_dir.path)


def make_private(path: Path) -> None:
    """Makes a directory and its missing parents, which only their owner can enter.

    `Path.mkdir(parents=True)` would let the umask decide about the parents.

    Raises:
        OSError: A directory can't be made.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(exist_ok=True, mode=0o700)


def default_log_dir(*, shared: bool = False) -> Path:
    """The user's own directory for runs in the temporary directory. It is made if it is missing.

    If it can't be made there, it is made in the next temporary directory that Python would use.

    Args:
        shared: Whether to use the machine's temporary directory, whatever TMPDIR says.

    Raises:
        ConfigError: It can't be made in any temporary directory.
    """
    reason = "there is none"
    for folder in temporary_dirs(shared=shared):
        try:
            return own_dir(folder, _default_name())
        except OSError as error:
            reason = f"{folder}: {error.strerror}"
    raise ConfigError(
        "log_dir",
        None,
        f"a run's directory can't be made in a temporary directory ({reason}); set log_dir",
    )


def default_log_dirs(*, shared: bool = False) -> list[Path]:
    """Lists the directories that `default_log_dir` may have returned. It makes none of them."""
    found: list[Path] = []
    for folder in temporary_dirs(shared=shared):
        found += own_dirs(folder, _default_name())
        with contextlib.suppress(OSError):
            os.rmdir(tempfile.mkdtemp(dir=folder))
            # A directory can be made here, so `default_log_dir` never went on to the next folder.
            break
    return found


def is_default_log_dir(base: Path) -> bool:
    """Whether a directory is a default one, in which old runs are removed automatically."""
    return base.name == _default_name() or base.name.startswith(f"{_default_name()}-")


def _default_name() -> str:
    return f"icelaunch_nb-{os.geteuid()}"
