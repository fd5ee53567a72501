"""Where the ranks are now: a signal makes faulthandler write their stacks, without ptrace and while a rank sits in a C call.

Where py-spy is installed and may look into the ranks, the frames of C and C++ code between Python's are added.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from icelaunch_nb import places
from icelaunch_nb.moments import in_words
from icelaunch_nb.processes import Process
from icelaunch_nb.rundir import RunDir

_LOOK = 0.02  # seconds between two looks at what was written
_TOO_SHORT = 0.5  # seconds in which py-spy can't even start
_LETTING_GO = 0.4  # seconds that it may take to end it
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in .*')
_BELOW = os.path.join("icelaunch_nb", "worker", "main.py")  # what calls the user's function
_LINE = 160  # characters
_INSTALLED = re.compile(r'File "[^"\n]*/(?:site|dist)-packages/')
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_SPIED_THREAD = re.compile(r"^Thread \d+ \(\w+\)", re.MULTILINE)  # its id, and whether it was idle
_NATIVE = "\nwith native frames, by py-spy:\n"
_SILENT = "no answer: the rank was not ready for the signal, or is stopped\n"
_SILENT_PROGRAM = (
    "no answer: nothing in a program's ranks listens to the signal that asks for stacks; py-spy tells where they are, where it is "
    "installed and allowed to look into them\n"
)


def ask(
    run_dir: RunDir,
    attempt: Mapping[str, Any],
    timeout: float,
    given_up: Callable[[], bool] = lambda: False,
) -> dict[int, str]:
    """The stacks of all threads of every rank of an attempt, by global rank; empty for a rank that didn't answer.

    Args:
        run_dir: The run directory.
        attempt: The journal's ``attempt`` event.
        timeout: Seconds to wait at most.
        given_up: Asked now and then whether nobody wants to know any more.
    """
    asked: dict[int, tuple[Path, int]] = {}
    for entry in attempt["ranks"]:
        path = run_dir.rank(attempt["attempt"], entry["local_rank"]).stacks
        with contextlib.suppress(OSError):
            # The file is there once the rank has a handler for the signal; before that, it would end the rank.
            size = path.stat().st_size
            if Process(entry["pid"], entry["started"]).send(signal.SIGUSR1):
                asked[entry["rank"]] = (path, size)
    found, deadline = {entry["rank"]: "" for entry in attempt["ranks"]}, time.monotonic() + timeout
    while asked and time.monotonic() < deadline and not given_up():
        for rank, (path, before) in list(asked.items()):
            text = path.read_bytes()[before:].decode(errors="replace")
            if text.endswith("\n") and text == found[rank]:
                del asked[rank]
            found[rank] = text
        time.sleep(_LOOK)
    return {rank: _newest(text) for rank, text in found.items()}


def _newest(text: str) -> str:
    """The last answer in a text: somebody else may have asked at the same time."""
    blocks = text.strip("\n").split("\n\n")
    current = [number for number, block in enumerate(blocks) if block.startswith("Current thread")]
    return (
        "\n\n".join(blocks[current[-2] + 1 :] if len(current) > 1 else blocks) + "\n"
        if text
        else ""
    )


def stands(text: str, names: Mapping[str, str]) -> str:
    """Where a rank stands in its user's code: ``cell 5, line 7``; empty where that can't be told.

    Args:
        text: Its stacks, as `ask` gives them.
        names: Name to show by code filename.
    """
    main = text.strip("\n").split("\n\n")[-1]  # faulthandler writes the newest thread first
    frames = [
        (found["file"], int(found["line"]))
        for found in map(_FRAME.fullmatch, main.split("\n"))
        if found
    ]
    users = [frame for frame in frames if not places.is_library(frame[0])] or frames
    return places.place(*users[0], names) if users else ""


def readable(text: str, names: Mapping[str, str]) -> str:
    """The same stacks with the cells' own names, short names of installed packages, and without what lies below the user's function.

    Args:
        text: Stacks, as `ask` gives them.
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
    def folded(self) -> list[tuple[list[int], str]]:
        """Ranks that stand at the same place, with their stacks, or why there are none: the fewest ranks first."""
        same: dict[str, tuple[list[int], str]] = {}
        no_answer = _SILENT_PROGRAM if self._program else _SILENT
        for rank, text in sorted(self.items()):
            same.setdefault(_place(text), ([], text or no_answer))[0].append(rank)
        return sorted(same.values(), key=lambda group: (len(group[0]), group[0]))

    @property
    def speakers(self) -> list[int]:
        """One of those that stand together speaks for all; of those that didn't answer, each for itself."""
        return sorted(
            rank for ranks, _ in self.folded for rank in (ranks[:1] if self[ranks[0]] else ranks)
        )

    def with_native(self, spied: Mapping[int, str]) -> Stacks:
        """The same with what `native` saw of some of them."""
        more = {
            rank: (self[rank] + _NATIVE if self[rank] else _NATIVE.lstrip()) + text
            for rank, text in spied.items()
        }
        return Stacks(self | more, program=self._program)

    def __repr__(self) -> str:
        return "\n".join(f"{in_words(ranks)}:\n{text}" for ranks, text in self.folded)

    def _repr_html_(self) -> str:
        return "".join(
            f"<details open><summary>{in_words(ranks)}</summary><pre>{html.escape(text)}</pre></details>"
            for ranks, text in self.folded
        )


def _place(text: str) -> str:
    """What is equal for ranks that stand together: Python's frames, and py-spy's of a rank that didn't answer itself."""
    own, _, spied = text.partition(_NATIVE.lstrip())
    return _ADDRESS.sub("0x…", own.rstrip("\n") or _SPIED_THREAD.sub("Thread", spied))


def native(pids: Mapping[int, int], timeout: float) -> dict[int, str]:
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
