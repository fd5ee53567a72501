"""Steps: how the loops of all ranks act on pause, stop and checkpoint requests at one and the same step.

Every rank counts the boundaries between its steps and publishes the count before it passes one. The first rank of the machine,
the leader, looks at the flags. Where one is set, it decides at its next boundary:

1. It raises *hold* on the board. Whoever comes to a boundary and sees it waits there, a millisecond or so.
2. It waits for that millisecond, then reads the counts of all ranks. A rank that passed a boundary without seeing hold had
   published the count before; the wait is far longer than a store takes to be seen. So no rank has passed more boundaries than
   the greatest count says, and whoever comes to the next one sees hold, or what is decided.
3. It writes target = greatest count + 1, in one 8-byte store together with what is to be done. Every rank goes on to the boundary
   of that number and acts there, the leader too.

Nobody has passed the target when it is written, and nobody passes it unseeing afterwards: all act at the same boundary. The
leader waits for no other rank while it holds them, so nothing can be dead-locked by it, and between two boundaries of one number
all ranks have entered the same collectives, so none is left half entered. It doesn't lean on collectives: where a loop has one
per step the ranks are a step apart at most and act within two steps; with asynchronous ones (CUDA) or none at all, the ranks
that are behind make the steps that the foremost one has made, and act at the same number too. What it does need is that all
ranks go through the same loops: a loop that only one rank counts shifts its numbers, and a rank whose loop ends before the target
goes on without acting.

Only the ranks of one machine share a board. With several nodes, each machine's first rank leads its own: a request on that
machine's board acts at one step on its ranks, and not at the same one elsewhere.

The board of an attempt is a file of 8-byte words in the attempt's folder, made by the agent, or by the first rank that needs it; a restart so
begins with a clean one, while the flags (a pending stop, say) stay. Words 8 to 23 keep the last decisions, since a rank may be
several behind; from word 32 on each rank has a line of its own. That line tells onlookers the rank's step too: boundaries passed,
less those that were no step of its innermost loops.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, MutableSequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from icelaunch_nb.rundir import board, step_board
from icelaunch_nb.rundir.board import Board

T = TypeVar("T")

PAUSE, STOP, CHECKPOINT = 1, 2, 3

_NEVER = -1  # no control word: look again at every boundary
_HOLD = 0.001  # seconds; a store is seen by the other cores within microseconds
_LOOK = 0.0002  # between two looks of a rank that is held
_PAUSED_LOOK = 0.002  # and of one that is paused


def _decision(target: int, number: int, kind: int) -> int:
    """A decision as one word; target 0 is hold."""
    return target << 22 | number << 2 | kind


def _target(word: int) -> int:
    return word >> 22


def _number(word: int) -> int:
    return word >> 2 & 0xFFFFF


class Protocol:
    """One rank's part in it. Whatever waits is a generator of seconds to wait, so that tests can interleave ranks at will.

    Args:
        words: The attempt's board.
        flags: The run's board.
        local_rank: This rank's line; 0 leads.
        ranks: Number of ranks that share the board.
        locked: A lock between them.

    Attributes:
        seen: What the control word is while nothing is to be done at a boundary.
        stopped: Whether a stop was acted on: no loop of this rank goes on.
        due: Number of the checkpoint request that `take_checkpoint` hasn't handed out yet.
    """

    def __init__(
        self,
        words: MutableSequence[int] | memoryview,
        flags: Board,
        local_rank: int,
        ranks: int,
        locked: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.words, self.flags, self.leads = words, flags, local_rank == 0
        self.slot = step_board.SLOTS + step_board.SLOT * local_rank
        self.passed = self.slot + step_board.PASSED
        self.mask = (
            board.flags_mask("pause", "resume", "stop_all_tasks", "trigger_save_checkpoint")
            if self.leads
            else 0
        )
        self.seen = 0
        self.stopped = False
        self.due = 0
        self._lines = range(
            step_board.SLOTS, step_board.SLOTS + step_board.SLOT * ranks, step_board.SLOT
        )
        self._locked = locked
        self._done = 0  # number of the last decision that this rank has acted on
        self._taken = 0
        self._skipped = 0
        self._asks = False

    def asked(self) -> bool:
        """The look at a boundary; `Steps.loop` spells it out, since a call costs as much again."""
        return self.words[step_board.CONTROL] != self.seen or bool(
            self.flags.words[board.FLAGS_WORD] & self.mask
        )

    def apply_requests(self, count: int) -> Iterator[float]:
        """What is done at boundary `count`, once its number is published, where `asked` says that there may be something."""
        words = self.words
        if self._taken:
            self._gone_on(step_board.SAVED, self._taken)
            self._taken = 0
        while not self.stopped:
            control = words[step_board.CONTROL]
            if control and not _target(control):
                yield _LOOK
                continue
            if self._done < _number(control):
                entry = words[step_board.RING + (self._done + 1) % step_board.RING_SIZE]
                if _number(entry) < self._done + 1:
                    yield 0.0  # on some processors a later store can be seen first
                elif _number(entry) > self._done + 1:
                    self._done += (
                        1  # so far behind that it was overwritten: this rank had left the loops
                    )
                elif count < _target(entry):
                    break
                else:
                    yield from self._act(entry, count)
                    self._done += 1
            elif self.leads and (kind := self._wanted()):
                yield from self._decide(kind, count)
            else:
                break
        if self.due > self._skipped and not self._asks:
            self._skipped = self.due
            self._gone_on(step_board.SKIPPED, self.due)
        self.seen = _NEVER if self.stopped or self._done < _number(control) else control

    def is_due(self) -> bool:
        """Whether a checkpoint is due, as it is until it is taken."""
        self._asks = True
        return bool(self.due)

    def take_checkpoint(self) -> bool:
        """Whether a checkpoint is due; true once per request."""
        if not self.is_due():
            return False
        self._taken, self.due = self.due, 0
        self.seen = _NEVER  # the next boundary tells that it is saved
        return True

    def finish(self) -> None:
        """This rank's function is over: nobody needs to wait for it."""
        with self._locked():
            if self._taken:
                self.words[self.slot + step_board.SAVED] = self._taken
            self.words[self.slot + step_board.OVER] = 1
            self._tell_paused()
            self._tell_finished()

    # The leader.

    def _wanted(self) -> int:
        """What to decide next: a checkpoint comes before a stop or a pause that was asked for as well."""
        flags = self.flags
        if flags.is_set("trigger_save_checkpoint"):
            return CHECKPOINT
        if self._stopping():
            return STOP
        if not flags.is_set("resume"):
            return PAUSE if flags.is_set("pause") else 0
        with self._locked():
            if flags.is_set("resume"):
                if flags.is_set("pause"):  # resumed before it was paused
                    flags.clear("pause")
                flags.clear(
                    "resume"
                )  # where nothing is paused, too: the next pause is not resumed yet
        return 0

    def _decide(self, kind: int, count: int) -> Iterator[float]:
        number, words = self._done + 1, self.words
        self._begin(kind, number)
        if len(self._lines) == 1:
            # A step lies between a checkpoint and a stop, so that the loop's body can save.
            self._publish(count + 1 if kind == STOP and self.due else count, number, kind)
            return
        words[step_board.CONTROL] = _decision(0, number, kind)
        try:
            yield _HOLD
        finally:  # an interrupt in that moment must not leave the others held
            self._publish(
                1 + max(words[line + step_board.PASSED] for line in self._lines), number, kind
            )

    def _begin(self, kind: int, number: int) -> None:
        if kind == CHECKPOINT:
            with self._locked():
                self.flags.clear("trigger_save_checkpoint")
                self.flags.clear("finished_save_checkpoint")
                self.words[step_board.CHECKPOINT] = number

    def _publish(self, target: int, number: int, kind: int) -> None:
        word = _decision(target, number, kind)
        self.words[step_board.RING + number % step_board.RING_SIZE] = word
        self.words[step_board.CONTROL] = word

    # Every rank.

    def _act(self, entry: int, count: int) -> Iterator[float]:
        kind = entry & 3
        if kind == CHECKPOINT:
            self.due = _number(entry)
        elif kind == STOP:
            self.stopped = True
            self.words[self.slot + step_board.STOPPED] = 1
        else:
            yield from self._pause(_number(entry), count)

    def _pause(self, number: int, count: int) -> Iterator[float]:
        words, flags = self.words, self.flags
        with self._locked():
            words[self.slot + step_board.ACTED] = number
            self._tell_paused()
        if not self.leads:
            while words[step_board.RELEASED] < number and not self._abandoned():
                yield _PAUSED_LOOK
            return
        released = False
        while not released:
            while self._paused() and not self._stopping():
                yield _PAUSED_LOOK
            if self._stopping():
                # Nobody passes this boundary before the release: what is decided now is acted on here.
                kind = CHECKPOINT if flags.is_set("trigger_save_checkpoint") else STOP
                self._begin(kind, number + 1)
                self._publish(count, number + 1, kind)
                released = True
            with self._locked():
                # Whoever pauses again before this moment stays paused; whoever does so later finds `paused` cleared.
                released = released or not self._paused()
                if released:
                    words[step_board.RELEASED] = number
                    flags.clear("paused")
                    if not self._paused() and flags.is_set("resume"):
                        flags.clear("pause")
                        flags.clear("resume")

    def _paused(self) -> bool:
        return self.flags.is_set("pause") and not self.flags.is_set("resume")

    def _stopping(self) -> bool:
        return self.flags.is_set("stop_all_tasks")

    def _abandoned(self) -> bool:
        """Whether the leader has returned, and can't release anybody, and nothing keeps this rank."""
        return bool(self.words[step_board.SLOTS + step_board.OVER]) and (
            not self._paused() or self._stopping()
        )

    def _tell_paused(self) -> None:
        words = self.words
        number = max(words[line + step_board.ACTED] for line in self._lines)
        if words[step_board.RELEASED] < number and all(
            words[line + step_board.ACTED] == number or words[line + step_board.OVER]
            for line in self._lines
        ):
            self.flags.set("paused")

    def _gone_on(self, what: int, number: int) -> None:
        with self._locked():
            self.words[self.slot + what] = number
            self._tell_finished()

    def _tell_finished(self) -> None:
        """The last rank to go on says so. Ranks whose code never asks for checkpoints don't count, as long as one does."""
        words, number = self.words, self.words[step_board.CHECKPOINT]
        if words[step_board.FINISHED] >= number or self.flags.is_set("trigger_save_checkpoint"):
            return
        saved = [words[line + step_board.SAVED] >= number for line in self._lines]
        if any(saved) and all(
            done or words[line + step_board.SKIPPED] >= number or words[line + step_board.OVER]
            for line, done in zip(self._lines, saved, strict=True)
        ):
            words[step_board.FINISHED] = number
            self.flags.words[board.CHECKPOINT_TIME_WORD] = int(time.time() * 1e6)
            self.flags.set("finished_save_checkpoint")


class Steps:
    """The loops of one rank.

    Args:
        protocol: Its part in the agreement.
        shows: Whether it writes the progress bars.
    """

    def __init__(self, protocol: Protocol, *, shows: bool) -> None:
        self.protocol = protocol
        self._shows = shows
        self._counts = [0] * board.BARS  # steps made by the loops of each level, all together
        self._deepest = 0
        self._open: list[object] = []

    @property
    def step(self) -> int:
        """Number of the step, from 0, counted through all of the innermost loops."""
        return self._counts[self._deepest]

    def loop(self, iterable: Iterable[T], total: float | None = None) -> Generator[T, None, None]:
        """The items, with a boundary before the first and after each."""
        protocol, level = self.protocol, min(len(self._open), board.BARS - 1)
        if level == 0:
            protocol.words[protocol.slot + step_board.LISTENS] = 1
        token = object()
        self._open.append(token)
        self._deepest = max(self._deepest, level)
        made = 0
        # Local names throughout: this is what a step costs.
        words, passed, mask, counts = protocol.words, protocol.passed, protocol.mask, self._counts
        flag_words, flags_word, control = protocol.flags.words, board.FLAGS_WORD, step_board.CONTROL
        bars: MutableSequence[int] | memoryview = (
            flag_words if self._shows else [0] * (board.DEPTH_WORD + 1)
        )
        bar, no_steps = board.BARS_WORD + 2 * level, protocol.slot + step_board.NO_STEPS
        try:
            if protocol.stopped:
                return
            bars[bar], bars[bar + 1], bars[board.DEPTH_WORD] = 0, _total(iterable, total), level + 1
            count = words[passed] + 1
            words[passed] = count
            words[no_steps] = count - counts[self._deepest]
            if words[control] != protocol.seen or flag_words[flags_word] & mask:
                self.apply_requests(count)
                if protocol.stopped:
                    return
            for item in iterable:
                yield item
                made += 1
                bars[bar] = made
                counts[level] += 1
                count = words[passed] + 1
                words[passed] = count
                if words[control] != protocol.seen or flag_words[flags_word] & mask:
                    self.apply_requests(count)
                    if protocol.stopped:
                        return
        finally:
            if token in self._open:
                del self._open[self._open.index(token) :]
                words[no_steps] = words[passed] - counts[self._deepest]
                bars[board.DEPTH_WORD] = (
                    level + 1
                )  # its own bar stays until the outer loop ends, at what was reached

    def apply_requests(self, count: int) -> None:
        """Boundary `count`, waiting where it has to."""
        for pause in self.protocol.apply_requests(count):
            time.sleep(pause)

    def should_checkpoint(self) -> bool:
        """Whether a checkpoint is due; outside of a loop of ours the call itself is the boundary."""
        protocol = self.protocol
        if not self._open and not protocol.due:
            count = protocol.words[protocol.passed] = protocol.words[protocol.passed] + 1
            if protocol.asked():
                self.apply_requests(count)
        return protocol.take_checkpoint()


class Loop(Iterator[T]):
    """The items of `Steps.loop`, and how many: so a `tqdm` around it has a total. Going through it costs what the generator costs."""

    def __init__(
        self, items: Generator[T, None, None], iterable: Iterable[T], total: float | None
    ) -> None:
        self._items, self._iterable, self._given = items, iterable, total

    def __iter__(self) -> Iterator[T]:
        return self._items

    def __next__(self) -> T:
        return next(self._items)

    def close(self) -> None:
        """Ends the loop, as the generator's own `close`: for whoever makes the steps by `next` and may leave before the last."""
        self._items.close()

    def __len__(self) -> int:
        return len(self._iterable) if self._given is None else _total(self._iterable, self._given)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True


_made: weakref.WeakValueDictionary[tuple[int, Path | None, int], Steps] = (
    weakref.WeakValueDictionary()
)  # by pid, board and rank


def steps_of(
    path: Path | None, flags: Board, local_rank: int, local_world_size: int, *, shows: bool
) -> Steps:
    """The loops of this process; the same ones for whoever asks again, since each acts on a request once.

    Args:
        path: The attempt's board; None: this process belongs to no run of ours and acts for itself.
        flags: The run's board.
        local_rank: Its rank on this machine.
        local_world_size: Number of ranks on this machine.
        shows: Whether it writes the progress bars.
    """
    key = os.getpid(), path, local_rank
    if (loops := _made.get(key)) is not None:
        return loops
    if path is not None and max(local_rank + 1, local_world_size) <= step_board.MAX_RANKS:
        words = step_board.open_board(path)
        pid = step_board.SLOTS + step_board.SLOT * local_rank + step_board.PID
        # A child of a rank (a DataLoader worker) looks like its rank; it must not count in its place.
        words[pid] = words[pid] or os.getpid()
        if words[pid] == os.getpid():
            _made[key] = loops = Steps(
                Protocol(words, flags, local_rank, local_world_size, flags.locked), shows=shows
            )
            return loops
    alone = Protocol(
        [0] * (step_board.SLOTS + step_board.SLOT),
        flags if path is None else Board(),
        0,
        1,
        contextlib.nullcontext,
    )
    return Steps(alone, shows=shows and path is None)


def _total(iterable: Iterable[object], given: float | None) -> int:
    """How many items there are, as a bar can hold it; 0: not known."""
    try:
        number = int(len(iterable) if given is None else given)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, ValueError, OverflowError):
        return 0
    return number if 0 <= number < 1 << 63 else 0
