"""The board by which the ranks of one attempt agree on a step: a file of 8-byte words, whose protocol `worker.steps` explains.

Words 1 to 4 are the head, words 8 to 23 keep the last decisions, and from word 32 on each rank has a line of its own. The agent makes
the board, or the first rank that needs it. Onlookers read there which steps were made, and who looks for a stop by itself.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from icelaunch_nb.system import safe_open
from icelaunch_nb.system.files import Draft

CONTROL, RELEASED, FINISHED, CHECKPOINT = (
    1,
    2,
    3,
    4,
)  # words of the head: the newest decision, and numbers of decisions
RING, RING_SIZE = 8, 16
SLOTS, SLOT = 32, 16
PASSED, PID, LISTENS, ACTED, SAVED, SKIPPED, STOPPED, OVER, NO_STEPS = range(
    9
)  # words of a rank's line
MAX_RANKS = 512  # of one machine; ranks beyond act each for itself
_WORDS = SLOTS + SLOT * MAX_RANKS


def mark_listening(path: Path, local_rank: int) -> None:
    """This rank looks for a stop by itself."""
    with contextlib.suppress(OSError):  # the run directory is gone
        if local_rank < MAX_RANKS:
            open_board(path)[SLOTS + SLOT * local_rank + LISTENS] = 1


def make_board(path: Path) -> None:
    """Makes an attempt's board, so that its ranks needn't; a full disk leaves that to them."""
    with contextlib.suppress(OSError):
        open_board(path)


def mark_over(path: Path, local_rank: int, ranks: int) -> bool:
    """This rank, whose code never asked for steps, is over.

    Args:
        path: The attempt's board.
        local_rank: Its rank on this machine.
        ranks: Number of ranks that share the board.

    Returns:
        Whether nobody waits for it. Whoever decides something later holds all ranks for a millisecond first, and sees the mark.
    """
    if max(local_rank + 1, ranks) > MAX_RANKS:
        return True
    words, line = open_board(path), SLOTS + SLOT * local_rank
    words[line + PID] = words[line + PID] or os.getpid()
    if words[line + PID] != os.getpid():  # a child has its place
        return True
    words[line + OVER] = 1
    return not words[CONTROL]


def steps_made(path: Path, ranks: int) -> dict[int, int]:
    """Steps made in the innermost loops, by local rank, for those of the first `ranks` that have begun one."""
    if not path.exists():
        return {}
    words = open_board(path)
    lines = {rank: SLOTS + SLOT * rank for rank in range(min(ranks, MAX_RANKS))}
    return {
        rank: max(0, words[line + PASSED] - words[line + NO_STEPS])
        for rank, line in lines.items()
        if words[line + PASSED]
    }


def listening_ranks(path: Path) -> set[int]:
    """Local ranks of an attempt that look for a stop by themselves."""
    return _with(path, LISTENS)


def stopped_ranks(path: Path) -> set[int]:
    """Local ranks of an attempt whose loops ended because of a stop."""
    return _with(path, STOPPED)


def unfinished_checkpoint(path: Path) -> bool:
    """Whether a checkpoint was asked for in an attempt that not all of its ranks went on from."""
    if not path.exists():
        return False
    words = open_board(path)
    return bool(words[FINISHED] < words[CHECKPOINT])


def _with(path: Path, what: int) -> set[int]:
    if not path.exists():
        return set()
    words = open_board(path)
    return {rank for rank in range(MAX_RANKS) if words[SLOTS + SLOT * rank + what]}


def open_board(path: Path) -> memoryview:
    """The words of an attempt's board, which is made where there is none."""
    if not path.exists():
        with Draft(path) as draft:
            draft.file.write(bytes(8 * _WORDS))
            with contextlib.suppress(FileExistsError):  # another rank was faster
                draft.link()
    with open(safe_open.open_file(path, os.O_RDWR), "r+b") as file:
        if os.fstat(file.fileno()).st_size != 8 * _WORDS:
            raise ValueError(f"{path} is no board of steps")
        return memoryview(mmap.mmap(file.fileno(), 8 * _WORDS)).cast("q")
