"""Where the ranks are now: a signal makes faulthandler write their stacks, without ptrace and while a rank sits in a C call.

Where py-spy is installed and may look into the ranks, the frames of C and C++ code between Python's are added.
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

_LOOK = 0.02  # seconds between two looks at what was written
_TOO_SHORT = 0.5  # seconds in which py-spy can't even start
_LETTING_GO = 0.4  # seconds that it may take to end it
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in .*')
_THREAD = re.compile(r"(?:Current t|T)hread (0x[0-9a-f]+)")
_BELOW = os.path.join("icelaunch_nb", "worker", "main.py")  # what calls the user's function
_LINE = 160  # characters
_INSTALLED = re.compile(r'File "[^"\n]*/(?:site|dist)-packages/')
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_SPIED_THREAD = re.compile(r"^Thread \d+ \(\w+\)", re.MULTILINE)  # its id, and whether it was idle
_NATIVE = "\nwith native frames, by py-spy:\n"
_LONGEST = (
    8 << 20
)  # bytes of an answer; faulthandler writes at most 100 threads with 100 frames each
_SILENT = (
    "no answer: the rank is not ready yet, or is stopped, or its code blocks or handles the signal that asks for stacks "
    f"({stack_signal.SIGNUM.name}), or has become another program\n"
)
_SILENT_PROGRAM = (
    "no answer: nothing in a program's ranks listens to the signal that asks for stacks; py-spy tells where they are, where it is "
    "installed and allowed to look into them\n"
)


def collect(
    run_dir: RunDir,
    attempt: int,
    ranks: Sequence[RankEntry],
    timeout: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[int, str]:
    """The stacks of all threads of ranks of an attempt, by global rank; empty for a rank that didn't answer.

    Args:
        run_dir: The run directory.
        attempt: Number of the attempt.
        ranks: Its ranks.
        timeout: Seconds to wait at most.
        cancelled: Asked now and then whether nobody wants to know any more.
    """
    found, asked = {entry.rank: "" for entry in ranks}, dict[int, tuple[int, int]]()
    deadline = time.monotonic() + timeout
    try:
        for entry in ranks:
            if entry.pid == os.getpid():
                found[entry.rank] = _own()
                continue
            with contextlib.suppress(OSError):
                fd = _open(run_dir.rank(attempt, entry.local_rank, entry.node).stacks)
                asked[entry.rank] = fd, os.fstat(fd).st_size
                if not _send(entry, fd):
                    os.close(asked.pop(entry.rank)[0])
        while asked and time.monotonic() < deadline and not cancelled():
            for rank, (fd, before) in list(asked.items()):
                text = os.pread(fd, _LONGEST, before).decode(errors="replace")
                if text.endswith("\n") and text == found[rank]:
                    os.close(asked.pop(rank)[0])
                found[rank] = text
            time.sleep(_LOOK)
    finally:
        for fd, _ in asked.values():
            os.close(fd)
    return {rank: _newest(text) for rank, text in found.items()}


def known_pids(run_dir: RunDir, attempt: int, ranks: Sequence[RankEntry]) -> dict[int, int]:
    """Pid by global rank, of those processes that prove to be the run's; a journal that somebody sent may name any.

    Args:
        run_dir: The run directory.
        attempt: Number of the attempt.
        ranks: Its ranks.
    """
    known = {}
    for entry in ranks:
        if entry.pid == os.getpid() or not entry.process.alive():
            continue
        ours = is_marked(entry.pid, f"{RUN_DIR_VARIABLE}={run_dir.path}")  # a program's rank
        with contextlib.suppress(OSError):
            fd = _open(run_dir.rank(attempt, entry.local_rank, entry.node).stacks)
            try:
                ours = ours or stack_signal.holder(fd, stack_signal.RANK) == entry.pid
            finally:
                os.close(fd)
        if ours:
            known[entry.rank] = entry.pid
    return known


def _own() -> str:
    """The stacks of a rank that asks for itself. It must not open its file: closing that would drop its locks."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _open(path: Path) -> int:
    """A rank's file, for reading.

    Raises:
        OSError: There is none, or it is no plain file of the user's.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(fd)
        raise OSError(f"{path} is no plain file")
    return fd


def _send(entry: RankEntry, fd: int) -> bool:
    """Asks a rank where its handler is in place; whether it was asked."""
    pid = entry.pid
    if stack_signal.holder(fd, stack_signal.HANDLER) != pid or not stack_signal.handles_signal(pid):
        return False
    return entry.process.send(stack_signal.SIGNUM)


def _newest(text: str) -> str:
    """The last answer in a text: somebody else may have asked at the same time."""
    blocks = text.strip("\n").split("\n\n")
    threads = [found[1] if (found := _THREAD.match(block)) else None for block in blocks]
    ends = [
        number for number, thread in enumerate(threads) if thread == threads[-1]
    ]  # an answer ends with the main thread
    return "\n\n".join(blocks[ends[-2] + 1 :] if len(ends) > 1 else blocks) + "\n" if text else ""


def user_location(text: str, names: Mapping[str, str]) -> str:
    """Where a rank stands in its user's code: ``cell 5, line 7``; empty where that can't be told.

    Args:
        text: Its stacks, as `collect` gives them.
        names: Name to show by code filename.
    """
    main = text.strip("\n").split("\n\n")[-1]  # faulthandler writes the newest thread first
    frames = [
        (found["file"], int(found["line"]))
        for found in map(_FRAME.fullmatch, main.split("\n"))
        if found
    ]
    users = [frame for frame in frames if not source_locations.is_library(frame[0])] or frames
    return source_locations.format_location(*users[0], names) if users else ""


def readable(text: str, names: Mapping[str, str]) -> str:
    """The same stacks with the cells' own names, short names of installed packages, and without what lies below the user's function.

    Args:
        text: Stacks, as `collect` gives them.
        names: Name to show by code filename.
    """
    blocks = []
    for block in text.strip("\n").split("\n\n"):
        lines = block.split("\n")
        below = next((number for number, line in enumerate(lines) if _BELOW in line), len(lines))
        blocks.append("\n".join(lines[: below if below > 1 else len(lines)]))
    text = "\n\n".join(blocks) + "\n" if text else ""
    text = _INSTALLED.sub('File "', text)
    for filename, name in names.items():
        text = text.replace(f'File "{filename}"', name).replace(
            f"({os.path.basename(filename)}:", f"({name}:"
        )
    return text


class Stacks(dict[int, str]):
    """The stacks of each rank by global rank, empty for one that didn't answer; shown, equal ones are told once, the odd one out first.

    Args:
        found: The stacks.
        program: Whether the ranks are a program.
    """

    def __init__(self, found: Mapping[int, str], *, program: bool = False) -> None:
        super().__init__(found)
        self._program = program

    @property
    def groups(self) -> list[tuple[list[int], str]]:
        """Ranks that stand at the same place, with their stacks, or why there are none: the fewest ranks first."""
        same: dict[str, tuple[list[int], str]] = {}
        no_answer = _SILENT_PROGRAM if self._program else _SILENT
        for rank, text in sorted(self.items()):
            same.setdefault(_place(text), ([], text or no_answer))[0].append(rank)
        return sorted(same.values(), key=lambda group: (len(group[0]), group[0]))

    @property
    def representatives(self) -> list[int]:
        """One of those that stand together speaks for all; of those that didn't answer, each for itself."""
        return sorted(
            rank for ranks, _ in self.groups for rank in (ranks[:1] if self[ranks[0]] else ranks)
        )

    def with_native(self, spied: Mapping[int, str]) -> Stacks:
        """The same with what `dump_native` saw of some of them."""
        more = {
            rank: (self[rank] + _NATIVE if self[rank] else _NATIVE.lstrip()) + text
            for rank, text in spied.items()
        }
        return Stacks(self | more, program=self._program)

    def __repr__(self) -> str:
        return in_lines("\n".join(f"{format_ranks(ranks)}:\n{text}" for ranks, text in self.groups))

    def _repr_html_(self) -> str:
        import html

        # Jupyter would take a key that is pressed with the focus on a summary for a shortcut.
        return "".join(
            f'<details open><summary data-lm-suppress-shortcuts="true">{html.escape(format_ranks(ranks))}</summary>'
            f"<pre>{html.escape(in_lines(text))}</pre></details>"
            for ranks, text in self.groups
        )


def _place(text: str) -> str:
    """What is equal for ranks that stand together: Python's frames, and py-spy's of a rank that didn't answer itself."""
    own, _, spied = text.partition(_NATIVE.lstrip())
    return _ADDRESS.sub("0x…", own.rstrip("\n") or _SPIED_THREAD.sub("Thread", spied))


def dump_native(pids: Mapping[int, int], timeout: float) -> dict[int, str]:
    """What py-spy sees of each rank, C and C++ frames included; only of those that it may and can look into in time.

    Args:
        pids: Pid by rank.
        timeout: Seconds.
    """
    program = shutil.which("py-spy") or shutil.which("py-spy", path=os.path.dirname(sys.executable))
    if program is None or timeout < _TOO_SHORT:
        return {}
    deadline, found = time.monotonic() + timeout - _LETTING_GO, {}
    spies = {
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
    for rank, spy in spies.items():
        try:
            text, _ = spy.communicate(timeout=max(0, deadline - time.monotonic()))
            if spy.returncode == 0:
                found[rank] = _without_preface(text)
        except subprocess.TimeoutExpired:
            spy.kill()  # Linux lets go whom it looked into
            late.append(spy)
    for spy in late:
        spy.communicate()
    return found


def _without_preface(text: str) -> str:
    """What py-spy says, in black and white, without the command line, and with C++ names as long as a line may be."""
    lines = [
        line if len(line) <= _LINE else line[: _LINE - 1] + "…"
        for line in _COLOR.sub("", text).split("\n")
    ]
    first = next((number for number, line in enumerate(lines) if line.startswith("Thread ")), 0)
    return "\n".join(lines[first:])
