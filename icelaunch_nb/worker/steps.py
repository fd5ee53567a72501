"""How the loops of all ranks act on pause, stop and checkpoint requests at the same step.

Each rank counts the boundaries between its steps, and publishes the count before it passes one. The
first rank of the machine, the leader, reads the flags. Where one is set, it decides at its next
boundary:

1. It writes *hold* to the board. A rank that comes to a boundary and sees hold waits there, about a
   millisecond.
2. It waits for that millisecond, then reads the counts of all ranks. A rank that passed a boundary
   without seeing hold had published its count before, and the wait is far longer than other cores
   need to see a store. So no rank has passed more boundaries than the greatest count says, and
   each rank that comes to the next boundary sees hold or the decision.
3. It writes target = greatest count + 1, in one 8-byte store together with what to do. Each rank,
   the leader too, goes on to the boundary of that number and acts there.

No rank has passed the target when it is written, and none passes it later without seeing it. So all
act at the same boundary.

The leader waits for no other rank while it holds them, so it can't cause a deadlock. Between two
boundaries of the same number all ranks have entered the same collectives, so none is left half
entered.

The protocol doesn't rely on collectives. Where a loop has one per step, the ranks are at most a
step apart and act within two steps. With asynchronous collectives (CUDA) or none at all, the ranks
that are behind make the steps that the foremost one has made, and act at the same number too.

All ranks must go through the same loops. A loop that only one rank counts shifts its numbers, and a
rank whose loop ends before the target goes on without acting.

Only the ranks of one machine share a board. With several nodes, the first rank of each machine
leads its own: a request on one machine's board acts at one step on that machine's ranks, and not at
the same step elsewhere.

The board of an attempt is a file of 8-byte words in the attempt's folder. The agent makes it, or
the first rank that needs it. So a restart begins with a fresh one, while the flags (a pending stop,
for example) stay. Words 8 to 23 keep the last decisions, since a rank may be several behind. From
word 32 on each rank has a slot of its own. The slot also writes_bars the rank's step to readers:
boundaries passed, minus those that were no step of its innermost loops.
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

from icelaunch_nb.rundir import events_board, step_board
from icelaunch_nb.rundir.events_board import Board

T = TypeVar("T")

PAUSE, STOP, CHECKPOINT = 1, 2, 3

_NO_CONTROL_WORD = -1  # differs from each control word: check at every boundary
_HOLD = 0.001  # seconds; the other cores see a store within microseconds
_HELD_POLL = 0.0002  # seconds between two reads of a rank that is held
_PAUSED_POLL = 0.002  # seconds between two reads of a rank that is paused


def _decision(target: int, number: int, kind: int) -> int:
    """A decision as one word; target 0 means hold."""
    return target << 22 | number << 2 | kind


def _target(word: int) -> int:
    """The boundary at which to act on a decision; 0 means hold."""
    return word >> 22


def _number(word: int) -> int:
    """The number of a decision, from 1; 0 where there is none."""
    return word >> 2 & 0xFFFFF


class Protocol:
    """One rank's part in the protocol.

    Methods that wait are generators of seconds to wait, so that tests can interleave ranks at will.

    Args:
        words: The attempt's board.
        flags: The run's board.
        local_rank: The rank's number on this machine; 0 leads.
        ranks: Number of ranks that share the board.
        locked: Returns a lock between these ranks.

    Attributes:
        words: The attempt's board.
        flags: The run's board.
        is_leader: Whether this rank decides.
        slot: Index of the first word of this rank's slot.
        passed: Index of the word that counts the boundaries that this rank has passed.
        mask: The flags that this rank reads at a boundary; 0 for those that don't lead.
        idle_control: The control word while there is nothing to do at a boundary.
        stopped: Whether this rank has acted on a stop: none of its loops goes on.
        due_checkpoint: Number of the checkpoint request that `claim_checkpoint` hasn't returned
            yet, or 0.
    """

    def __init__(
        self,
        words: MutableSequence[int] | memoryview,
        flags: Board,
        local_rank: int,
        ranks: int,
        locked: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.words, self.flags, self.is_leader = words, flags, local_rank == 0
        self.slot = step_board.SLOTS + step_board.SLOT * local_rank
        self.passed = self.slot + step_board.PASSED
        self.mask = (
            events_board.flags_mask("pause", "resume", "stop_all_tasks", "trigger_save_checkpoint")
            if self.is_leader
            else 0
        )
        self.idle_control = 0
        self.stopped = False
        self.due_checkpoint = 0
        self._slots = range(
            step_board.SLOTS, step_board.SLOTS + step_board.SLOT * ranks, step_board.SLOT
        )
        self._locked = locked
        self._acted = 0  # number of the last decision that this rank has acted on
        self._saving = 0  # number of the checkpoint that the code saves in this step, or 0
        self._skipped = 0  # number of the last checkpoint that the code passed without asking
        self._code_saves = False  # whether the code ever asks whether a checkpoint is due

    def has_requests(self) -> bool:
        """Whether there may be something to do at a boundary.

        `Steps.loop` has a copy of this inline, since a call would double the cost.
        """
        return self.words[step_board.CONTROL] != self.idle_control or bool(
            self.flags.words[events_board.FLAGS_WORD] & self.mask
        )

    def apply_requests(self, count: int) -> Iterator[float]:
        """Acts at a boundary where `has_requests` is true.

        Args:
            count: Number of the boundary, which is published already.

        Yields:
            Seconds to wait before the next step of the generator.
        """
        words = self.words
        if self._saving:
            self._record_checkpoint(step_board.SAVED, self._saving)
            self._saving = 0
        while not self.stopped:
            control = words[step_board.CONTROL]
            if control and not _target(control):
                yield _HELD_POLL
                continue
            if self._acted < _number(control):
                entry = words[step_board.RING + (self._acted + 1) % step_board.RING_SIZE]
                if _number(entry) < self._acted + 1:
                    yield 0.0  # some processors may show a later store first
                elif _number(entry) > self._acted + 1:
                    # Overwritten, since this rank is so far behind: it had left the loops.
                    self._acted += 1
                elif count < _target(entry):
                    break
                else:
                    yield from self._act(entry, count)
                    self._acted += 1
            elif self.is_leader and (kind := self._next_kind()):
                yield from self._decide(kind, count)
            else:
                break
        if self.due_checkpoint > self._skipped and not self._code_saves:
            self._skipped = self.due_checkpoint
            self._record_checkpoint(step_board.SKIPPED, self.due_checkpoint)
        self.idle_control = (
            _NO_CONTROL_WORD if self.stopped or self._acted < _number(control) else control
        )

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due, which it is until `claim_checkpoint` returns it."""
        self._code_saves = True
        return bool(self.due_checkpoint)

    def claim_checkpoint(self) -> bool:
        """Whether to save a checkpoint now: true once per request."""
        if not self.checkpoint_due():
            return False
        self._saving, self.due_checkpoint = self.due_checkpoint, 0
        self.idle_control = _NO_CONTROL_WORD  # the next boundary records that it is saved
        return True

    def finish(self) -> None:
        """Records that this rank's function is over, so that no rank waits for it."""
        with self._locked():
            if self._saving:
                self.words[self.slot + step_board.SAVED] = self._saving
            self.words[self.slot + step_board.OVER] = 1
            self._update_paused()
            self._update_finished()

    # What the leader does.

    def _next_kind(self) -> int:
        """What to decide next, or 0.

        A checkpoint comes before a stop or a pause that is requested too.
        """
        flags = self.flags
        if flags.is_set("trigger_save_checkpoint"):
            return CHECKPOINT
        if self._stop_requested():
            return STOP
        if not flags.is_set("resume"):
            return PAUSE if flags.is_set("pause") else 0
        with self._locked():
            if flags.is_set("resume"):
                if flags.is_set("pause"):  # resumed before it was paused
                    flags.clear("pause")
                # Where nothing is paused, too: this resume must not end the next pause.
                flags.clear("resume")
        return 0

    def _decide(self, kind: int, count: int) -> Iterator[float]:
        number, words = self._acted + 1, self.words
        self._begin(kind, number)
        if len(self._slots) == 1:
            # A step lies between a checkpoint and a stop, so that the loop's body can save.
            self._publish(
                count + 1 if kind == STOP and self.due_checkpoint else count, number, kind
            )
            return
        words[step_board.CONTROL] = _decision(0, number, kind)
        try:
            yield _HOLD
        finally:  # an interrupt during the wait must not leave the others held
            self._publish(
                1 + max(words[slot + step_board.PASSED] for slot in self._slots), number, kind
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

    # What every rank does.

    def _act(self, entry: int, count: int) -> Iterator[float]:
        kind = entry & 3
        if kind == CHECKPOINT:
            self.due_checkpoint = _number(entry)
        elif kind == STOP:
            self.stopped = True
            self.words[self.slot + step_board.STOPPED] = 1
        else:
            yield from self._pause(_number(entry), count)

    def _pause(self, number: int, count: int) -> Iterator[float]:
        words, flags = self.words, self.flags
        with self._locked():
            words[self.slot + step_board.ACTED] = number
            self._update_paused()
        if not self.is_leader:
            while words[step_board.RELEASED] < number and not self._abandoned():
                yield _PAUSED_POLL
            return
        released = False
        while not released:
            while self._pause_requested() and not self._stop_requested():
                yield _PAUSED_POLL
            if self._stop_requested():
                # No rank passes this boundary before the release: all act on this decision here.
                kind = CHECKPOINT if flags.is_set("trigger_save_checkpoint") else STOP
                self._begin(kind, number + 1)
                self._publish(count, number + 1, kind)
                released = True
            with self._locked():
                # A pause that was requested again before this lock keeps the ranks paused. One that
                # is requested later finds `paused` cleared.
                released = released or not self._pause_requested()
                if released:
                    words[step_board.RELEASED] = number
                    flags.clear("paused")
                    if not self._pause_requested() and flags.is_set("resume"):
                        flags.clear("pause")
                        flags.clear("resume")

    def _pause_requested(self) -> bool:
        return self.flags.is_set("pause") and not self.flags.is_set("resume")

    def _stop_requested(self) -> bool:
        return self.flags.is_set("stop_all_tasks")

    def _abandoned(self) -> bool:
        """Whether the leader has returned, so that it can't release this rank, and no pause holds.

        A stop ends each pause.
        """
        return bool(self.words[step_board.SLOTS + step_board.OVER]) and (
            not self._pause_requested() or self._stop_requested()
        )

    def _update_paused(self) -> None:
        """Sets `paused` once each rank is paused or over."""
        words = self.words
        number = max(words[slot + step_board.ACTED] for slot in self._slots)
        if words[step_board.RELEASED] < number and all(
            words[slot + step_board.ACTED] == number or words[slot + step_board.OVER]
            for slot in self._slots
        ):
            self.flags.set("paused")

    def _record_checkpoint(self, word: int, number: int) -> None:
        """Records that this rank has gone on from a checkpoint request.

        Args:
            word: The word of its slot: `step_board.SAVED` or `step_board.SKIPPED`.
            number: Number of the request.
        """
        with self._locked():
            self.words[self.slot + word] = number
            self._update_finished()

    def _update_finished(self) -> None:
        """Sets `finished_save_checkpoint` once the last rank has gone on.

        Ranks whose code never asks for checkpoints don't count, as long as one rank's does.
        """
        words, number = self.words, self.words[step_board.CHECKPOINT]
        if words[step_board.FINISHED] >= number or self.flags.is_set("trigger_save_checkpoint"):
            return
        saved = [words[slot + step_board.SAVED] >= number for slot in self._slots]
        if any(saved) and all(
            done or words[slot + step_board.SKIPPED] >= number or words[slot + step_board.OVER]
            for slot, done in zip(self._slots, saved, strict=True)
        ):
            words[step_board.FINISHED] = number
            self.flags.words[events_board.CHECKPOINT_TIME_WORD] = int(time.time() * 1e6)
            self.flags.set("finished_save_checkpoint")


class Steps:
    """The loops of one rank.

    Args:
        protocol: Its part in the protocol.
        writes_bars: Whether it writes the progress bars.

    Attributes:
        protocol: As given.
    """

    def __init__(self, protocol: Protocol, *, writes_bars: bool) -> None:
        self.protocol = protocol
        self._writes_bars = writes_bars
        self._counts = [0] * events_board.BARS  # steps made by all loops of each level
        self._deepest = 0
        self._open_loops: list[object] = []

    @property
    def step(self) -> int:
        """Number of the step, from 0, counted through all of the innermost loops."""
        return self._counts[self._deepest]

    def loop(self, iterable: Iterable[T], total: float | None = None) -> Generator[T, None, None]:
        """Yields the items, with a boundary before the first and after each.

        Args:
            iterable: The items.
            total: How many there are; None: their `len`, where they have one.
        """
        protocol, level = self.protocol, min(len(self._open_loops), events_board.BARS - 1)
        if level == 0:
            protocol.words[protocol.slot + step_board.LISTENS] = 1
        token = object()
        self._open_loops.append(token)
        self._deepest = max(self._deepest, level)
        made = 0
        # All names are local, since this is what a step costs.
        words, passed, mask, counts = protocol.words, protocol.passed, protocol.mask, self._counts
        flag_words, flags_word, control = (
            protocol.flags.words,
            events_board.FLAGS_WORD,
            step_board.CONTROL,
        )
        bars: MutableSequence[int] | memoryview = (
            flag_words if self._writes_bars else [0] * (events_board.DEPTH_WORD + 1)
        )
        bar, no_steps = events_board.BARS_WORD + 2 * level, protocol.slot + step_board.NO_STEPS
        try:
            if protocol.stopped:
                return
            bars[bar], bars[bar + 1], bars[events_board.DEPTH_WORD] = (
                0,
                _total(iterable, total),
                level + 1,
            )
            count = words[passed] + 1
            words[passed] = count
            words[no_steps] = count - counts[self._deepest]
            if words[control] != protocol.idle_control or flag_words[flags_word] & mask:
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
                if words[control] != protocol.idle_control or flag_words[flags_word] & mask:
                    self.apply_requests(count)
                    if protocol.stopped:
                        return
        finally:
            if token in self._open_loops:
                del self._open_loops[self._open_loops.index(token) :]
                words[no_steps] = words[passed] - counts[self._deepest]
                # Its own bar stays where it is until the outer loop ends.
                bars[events_board.DEPTH_WORD] = level + 1

    def apply_requests(self, count: int) -> None:
        """Acts at a boundary, and waits where it has to.

        Args:
            count: Number of the boundary.
        """
        for pause in self.protocol.apply_requests(count):
            time.sleep(pause)

    def should_checkpoint(self) -> bool:
        """Whether to save a checkpoint now: true once per request.

        Outside of a loop of ours the call itself is the boundary.
        """
        protocol = self.protocol
        if not self._open_loops and not protocol.due_checkpoint:
            count = protocol.words[protocol.passed] = protocol.words[protocol.passed] + 1
            if protocol.has_requests():
                self.apply_requests(count)
        return protocol.claim_checkpoint()


class Loop(Iterator[T]):
    """The items of `Steps.loop`, with their number, so that a `tqdm` around it has a total.

    A step costs what it costs in the generator.

    Args:
        items: The generator.
        iterable: What it goes through.
        total: How many items there are; None: the iterable's `len`.
    """

    def __init__(
        self, items: Generator[T, None, None], iterable: Iterable[T], total: float | None
    ) -> None:
        self._items, self._iterable, self._given_total = items, iterable, total

    def __iter__(self) -> Iterator[T]:
        return self._items

    def __next__(self) -> T:
        return next(self._items)

    def close(self) -> None:
        """Ends the loop, as the generator's own `close` does.

        For code that makes the steps by `next` and may leave before the last one.
        """
        self._items.close()

    def __len__(self) -> int:
        if self._given_total is None:
            return len(self._iterable)  # type: ignore[arg-type]
        return _total(self._iterable, self._given_total)

    def __bool__(self) -> bool:
        return True


# By pid, board and rank.
_cache: weakref.WeakValueDictionary[tuple[int, Path | None, int], Steps] = (
    weakref.WeakValueDictionary()
)


def steps_of(
    path: Path | None, flags: Board, local_rank: int, local_world_size: int, *, writes_bars: bool
) -> Steps:
    """The loops of this process.

    A second call returns the same object, since each object acts on a request once.

    Args:
        path: The attempt's board; None: this process belongs to no run of ours and acts for itself.
        flags: The run's board.
        local_rank: Its rank on this machine.
        local_world_size: Number of ranks on this machine.
        writes_bars: Whether it writes the progress bars.
    """
    key = os.getpid(), path, local_rank
    if (loops := _cache.get(key)) is not None:
        return loops
    if path is not None and max(local_rank + 1, local_world_size) <= step_board.MAX_RANKS:
        words = step_board.open_board(path)
        pid = step_board.SLOTS + step_board.SLOT * local_rank + step_board.PID
        # A child of a rank (a DataLoader worker) has its rank's number, but must not count for it.
        words[pid] = words[pid] or os.getpid()
        if words[pid] == os.getpid():
            _cache[key] = loops = Steps(
                Protocol(words, flags, local_rank, local_world_size, flags.locked),
                writes_bars=writes_bars,
            )
            return loops
    single = Protocol(
        [0] * (step_board.SLOTS + step_board.SLOT),
        flags if path is None else Board(),
        0,
        1,
        contextlib.nullcontext,
    )
    return Steps(single, writes_bars=writes_bars and path is None)


def _total(iterable: Iterable[object], given: float | None) -> int:
    """How many items there are, as far as a bar can hold it; 0: unknown."""
    try:
        number = int(len(iterable) if given is None else given)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, ValueError, OverflowError):
        return 0
    return number if 0 <= number < 1 << 63 else 0
