"""The board by which the ranks of an attempt agree on a step. `worker.steps` explains the protocol.

The board is a file of 8-byte words. Words 1 to 4 are the head, words 8 to 23 keep the last
decisions, and from word 32 on each rank has a slot of its own. The agent makes the board, or the
first rank that needs it. Other processes read there how many steps were made, and which ranks read
the stop flag themselves.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from icelaunch_nb.system import safe_open
from icelaunch_nb.system.files import Draft

# Words of the head: the newest decision, and numbers of decisions.
CONTROL, RELEASED, FINISHED, CHECKPOINT = 1, 2, 3, 4
RING, RING_SIZE = 8, 16
SLOTS, SLOT = 32, 16
# Words of a rank's slot.
PASSED, PID, LISTENS, ACTED, SAVED, SKIPPED, STOPPED, OVER, NO_STEPS = range(9)
# On one machine. Each rank beyond acts for itself.
MAX_RANKS = 512
_WORDS = SLOTS + SLOT * MAX_RANKS


def mark_listening(path: Path, local_rank: int) -> None:
    """Marks that this rank reads the stop flag itself."""
    # The run directory may be gone.
    with contextlib.suppress(OSError):
        if local_rank < MAX_RANKS:
            open_board(path)[SLOTS + SLOT * local_rank + LISTENS] = 1


def make_board(path: Path) -> None:
    """Makes an attempt's board. If the disk is full, its ranks have to make it."""
    with contextlib.suppress(OSError):
        open_board(path)


def mark_over(path: Path, local_rank: int, ranks: int) -> bool:
    """Marks that this rank, whose code never used steps, is over.

    Args:
        path: The attempt's board.
        local_rank: The rank's number on this machine.
        ranks: Number of ranks that share the board.

    Returns:
        Whether no other rank waits for this one. A rank that decides something later holds all
        ranks for a millisecond first, and sees the mark.
    """
    if max(local_rank + 1, ranks) > MAX_RANKS:
        return True
    words, slot = open_board(path), SLOTS + SLOT * local_rank
    words[slot + PID] = words[slot + PID] or os.getpid()
    # A child of the rank uses its slot.
    if words[slot + PID] != os.getpid():
        return True
    words[slot + OVER] = 1
    return not words[CONTROL]


def steps_made(path: Path, ranks: int) -> dict[int, int]:
    """How many steps of their innermost loops the ranks have made.

    Args:
        path: The attempt's board.
        ranks: Number of ranks.

    Returns:
        The number of steps by local rank, of the ranks that have begun one.
    """
    if not path.exists():
        return {}
    words = open_board(path)
    slots = {rank: SLOTS + SLOT * rank for rank in range(min(ranks, MAX_RANKS))}
    return {
        rank: max(0, words[slot + PASSED] - words[slot + NO_STEPS])
        for rank, slot in slots.items()
        if words[slot + PASSED]
    }


def listening_ranks(path: Path) -> set[int]:
    """The local ranks of an attempt that read the stop flag themselves."""
    return _ranks_with(path, LISTENS)


def stopped_ranks(path: Path) -> set[int]:
    """The local ranks of an attempt whose loops ended because of a stop."""
    return _ranks_with(path, STOPPED)


def unfinished_checkpoint(path: Path) -> bool:
    """Whether a checkpoint was requested in an attempt, and some rank hasn't continued after it."""
    if not path.exists():
        return False
    words = open_board(path)
    return bool(words[FINISHED] < words[CHECKPOINT])


def _ranks_with(path: Path, mark: int) -> set[int]:
    """The local ranks in whose slots a word isn't 0."""
    if not path.exists():
        return set()
    words = open_board(path)
    return {rank for rank in range(MAX_RANKS) if words[SLOTS + SLOT * rank + mark]}


def open_board(path: Path) -> memoryview:
    """Opens an attempt's board, and makes it if there is none.

    Returns:
        The board's words.

    Raises:
        OSError: The board can't be made or opened, or isn't a regular file.
        ValueError: The file is no such board.
    """
    if not path.exists():
        with Draft(path) as draft:
            draft.file.write(bytes(8 * _WORDS))
            # Another rank may be faster.
            with contextlib.suppress(FileExistsError):
                draft.link()
    with open(safe_open.open_file(path, os.O_RDWR), "r+b") as file:
        if os.fstat(file.fileno()).st_size != 8 * _WORDS:
            raise ValueError(f"{path} is no board of steps")
        return memoryview(mmap.mmap(file.fileno(), 8 * _WORDS)).cast("q")
