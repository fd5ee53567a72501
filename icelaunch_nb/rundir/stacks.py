"""The stacks of the ranks: a signal makes faulthandler write them.

This needs no ptrace, and works while a rank is in a C call. If py-spy is installed and may look
into the ranks, it adds the frames of C and C++ code between Python's.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from icelaunch_nb.rundir import source_locations, stack_signal
from icelaunch_nb.rundir.journal_events import RankEntry
from icelaunch_nb.rundir.paths import RUN_DIR_VARIABLE, RunDir
from icelaunch_nb.rundir.timeline import format_ranks
from icelaunch_nb.system.plaintext import in_lines
from icelaunch_nb.system.processes import is_marked

# Seconds between two readings of what was written.
_POLL_INTERVAL = 0.02
# Seconds. In less time py-spy can't even start.
_MIN_PY_SPY_TIME = 0.5
# Seconds that it may take to end py-spy.
_PY_SPY_KILL_TIME = 0.4
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in .*')
_THREAD = re.compile(r"(?:Current t|T)hread (0x[0-9a-f]+)")
# The file of the frames below the user's function.
_WORKER_MAIN = os.path.join("icelaunch_nb", "worker", "main.py")
# Characters.
_MAX_LINE = 160
_INSTALLED = re.compile(r'File "[^"\n]*/(?:site|dist)-packages/')
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_ADDRESS = re.compile(r"0x[0-9a-f]+")
# A thread's id, and whether it was idle.
_PY_SPY_THREAD = re.compile(r"^Thread \d+ \(\w+\)", re.MULTILINE)
_PY_SPY_TITLE = "\nwith native frames, by py-spy:\n"
# Bytes of a dump. faulthandler writes at most 100 threads with 100 frames each.
_MAX_DUMP = 8 << 20
_NO_ANSWER = (
    "no answer: the rank is not ready yet, or is stopped, or its code blocks or handles "
    f"the signal that asks for stacks ({stack_signal.SIGNUM.name}), or has become another program\n"
)
_NO_ANSWER_PROGRAM = (
    "no answer: nothing in a program's ranks listens to the signal that asks for stacks; "
    "py-spy tells where they are, where it is installed and allowed to look into them\n"
)


def collect(
    run_dir: RunDir,
    attempt: int,
    ranks: Sequence[RankEntry],
    timeout: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[int, str]:
    """Collects the stacks of all threads of an attempt's ranks.

    Args:
        run_dir: The run directory.
        attempt: The attempt's number.
        ranks: The attempt's ranks.
        timeout: Seconds to wait at most.
        cancelled: Called again and again. Once it returns True, waiting ends.

    Returns:
        The stacks by global rank, as faulthandler writes them. Empty for a rank that wrote none.
    """
    found, pending = {entry.rank: "" for entry in ranks}, dict[int, tuple[int, int]]()
    deadline = time.monotonic() + timeout
    try:
        for entry in ranks:
            if entry.pid == os.getpid():
                found[entry.rank] = _own_stacks()
                continue
            with contextlib.suppress(OSError):
                fd = _open(run_dir.rank(attempt, entry.local_rank, entry.node).stacks)
                pending[entry.rank] = fd, os.fstat(fd).st_size
                if not _send_signal(entry, fd):
                    os.close(pending.pop(entry.rank)[0])
        while pending and time.monotonic() < deadline and not cancelled():
            for rank, (fd, before) in list(pending.items()):
                text = os.pread(fd, _MAX_DUMP, before).decode(errors="replace")
                if text.endswith("\n") and text == found[rank]:
                    os.close(pending.pop(rank)[0])
                found[rank] = text
            time.sleep(_POLL_INTERVAL)
    finally:
        for fd, _ in pending.values():
            os.close(fd)
    return {rank: _newest(text) for rank, text in found.items()}


def known_pids(run_dir: RunDir, attempt: int, ranks: Sequence[RankEntry]) -> dict[int, int]:
    """Finds the ranks whose processes certainly belong to the run.

    The journal doesn't prove that: one from another user may name any process.

    Args:
        run_dir: The run directory.
        attempt: The attempt's number.
        ranks: The attempt's ranks.

    Returns:
        Pids by global rank.
    """
    known = {}
    for entry in ranks:
        if entry.pid == os.getpid() or not entry.process.alive():
            continue
        # A program's rank has this variable in its environment.
        ours = is_marked(entry.pid, f"{RUN_DIR_VARIABLE}={run_dir.path}")
        with contextlib.suppress(OSError):
            fd = _open(run_dir.rank(attempt, entry.local_rank, entry.node).stacks)
            try:
                ours = ours or stack_signal.holder(fd, stack_signal.RANK) == entry.pid
            finally:
                os.close(fd)
        if ours:
            known[entry.rank] = entry.pid
    return known


def _own_stacks() -> str:
    """The stacks of this process, for a rank that collects its own.

    It must not open its own stacks file, since closing that would drop its locks.
    """
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _open(path: Path) -> int:
    """Opens a rank's stacks file for reading.

    Raises:
        OSError: There is no such file, or it isn't a regular file with one name.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(fd)
        raise OSError(f"{path} is no plain file")
    return fd


def _send_signal(entry: RankEntry, fd: int) -> bool:
    """Sends a rank the signal if its handler is set. Returns whether the signal was sent."""
    pid = entry.pid
    if stack_signal.holder(fd, stack_signal.HANDLER) != pid or not stack_signal.handles_signal(pid):
        return False
    return entry.process.send(stack_signal.SIGNUM)


def _newest(text: str) -> str:
    """The last dump in a text. It may hold several: others may collect stacks at the same time."""
    blocks = text.strip("\n").split("\n\n")
    threads = [found[1] if (found := _THREAD.match(block)) else None for block in blocks]
    # A dump ends with the main thread.
    ends = [number for number, thread in enumerate(threads) if thread == threads[-1]]
    return "\n\n".join(blocks[ends[-2] + 1 :] if len(ends) > 1 else blocks) + "\n" if text else ""


def user_location(text: str, names: Mapping[str, str]) -> str:
    """The location of a rank in the user's code: ``cell 5, line 7``.

    Args:
        text: The rank's stacks, as `collect` returns them.
        names: The names of cells, by code filename.

    Returns:
        The location. Empty if there is none.
    """
    # faulthandler writes the newest thread first, so the main thread is the last.
    main = text.strip("\n").split("\n\n")[-1]
    frames = [
        (found["file"], int(found["line"]))
        for found in map(_FRAME.fullmatch, main.split("\n"))
        if found
    ]
    users = [frame for frame in frames if not source_locations.is_library(frame[0])] or frames
    return source_locations.format_location(*users[0], names) if users else ""


def readable(text: str, names: Mapping[str, str]) -> str:
    """Makes stacks readable.

    Cells get their names, installed packages short paths, and the frames below the user's function
    are left out.

    Args:
        text: Stacks, as `collect` returns them.
        names: The names of cells, by code filename.
    """
    blocks = []
    for block in text.strip("\n").split("\n\n"):
        lines = block.split("\n")
        below = next(
            (number for number, line in enumerate(lines) if _WORKER_MAIN in line), len(lines)
        )
        blocks.append("\n".join(lines[: below if below > 1 else len(lines)]))
    text = "\n\n".join(blocks) + "\n" if text else ""
    text = _INSTALLED.sub('File "', text)
    for filename, name in names.items():
        text = text.replace(f'File "{filename}"', name).replace(
            f"({os.path.basename(filename)}:", f"({name}:"
        )
    return text


class Stacks(dict[int, str]):
    """The stacks of each rank, by global rank. Empty for a rank that wrote none.

    The repr shows equal stacks once, and those of the smallest group of ranks first.

    Args:
        found: The stacks.
        program: Whether the ranks run a program.
    """

    def __init__(self, found: Mapping[int, str], *, program: bool = False) -> None:
        super().__init__(found)
        self._program = program

    @property
    def groups(self) -> list[tuple[list[int], str]]:
        """The ranks with equal stacks, the smallest group first.

        Each group is its global ranks, and their stacks or why there are none.
        """
        same: dict[str, tuple[list[int], str]] = {}
        no_answer = _NO_ANSWER_PROGRAM if self._program else _NO_ANSWER
        for rank, text in sorted(self.items()):
            same.setdefault(_grouping_key(text), ([], text or no_answer))[0].append(rank)
        return sorted(same.values(), key=lambda group: (len(group[0]), group[0]))

    @property
    def representatives(self) -> list[int]:
        """One rank of each group with equal stacks, and every rank without stacks."""
        return sorted(
            rank for ranks, _ in self.groups for rank in (ranks[:1] if self[ranks[0]] else ranks)
        )

    def with_native(self, native: Mapping[int, str]) -> Stacks:
        """Adds what `dump_native` returned for some of the ranks."""
        more = {
            rank: (self[rank] + _PY_SPY_TITLE if self[rank] else _PY_SPY_TITLE.lstrip()) + text
            for rank, text in native.items()
        }
        return Stacks(self | more, program=self._program)

    def __repr__(self) -> str:
        return in_lines("\n".join(f"{format_ranks(ranks)}:\n{text}" for ranks, text in self.groups))

    def _repr_html_(self) -> str:
        import html

        # Jupyter would take a key that is pressed with the focus on a summary for a shortcut.
        return "".join(
            '<details open><summary data-lm-suppress-shortcuts="true">'
            f"{html.escape(format_ranks(ranks))}</summary>"
            f"<pre>{html.escape(in_lines(text))}</pre></details>"
            for ranks, text in self.groups
        )


def _grouping_key(text: str) -> str:
    """The part of a rank's stacks that is equal within a group.

    It is Python's frames. For a rank that wrote none, it is py-spy's.
    """
    own, _, native = text.partition(_PY_SPY_TITLE.lstrip())
    return _ADDRESS.sub("0x…", own.rstrip("\n") or _PY_SPY_THREAD.sub("Thread", native))


def dump_native(pids: Mapping[int, int], timeout: float) -> dict[int, str]:
    """Lets py-spy dump the ranks' stacks, C and C++ frames included.

    Args:
        pids: Pids by global rank.
        timeout: Seconds to wait at most.

    Returns:
        The stacks by global rank, of the ranks that py-spy may look into and finished in time.
    """
    program = shutil.which("py-spy") or shutil.which("py-spy", path=os.path.dirname(sys.executable))
    if program is None or timeout < _MIN_PY_SPY_TIME:
        return {}
    deadline, found = time.monotonic() + timeout - _PY_SPY_KILL_TIME, {}
    processes = {
        rank: subprocess.Popen(
            [program, "dump", "--native", "--pid", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank, pid in pids.items()
    }
    late = []
    for rank, process in processes.items():
        try:
            text, _ = process.communicate(timeout=max(0, deadline - time.monotonic()))
            if process.returncode == 0:
                found[rank] = _without_preface(text)
        except subprocess.TimeoutExpired:
            # Linux then detaches py-spy from the rank, which continues.
            process.kill()
            late.append(process)
    for process in late:
        process.communicate()
    return found


def _without_preface(text: str) -> str:
    """py-spy's text without colours and without the command line, its lines clipped (C++ names)."""
    lines = [
        line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + "…"
        for line in _COLOR.sub("", text).split("\n")
    ]
    first = next((number for number, line in enumerate(lines) if line.startswith("Thread ")), 0)
    return "\n".join(lines[first:])
