"""The protocol of `worker.steps` with simulated ranks, and the loops of one process."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelaunch_nb.rundir import step_board
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.worker.steps import CHECKPOINT, PAUSE, STOP, Protocol, Steps, steps_of

KINDS = {PAUSE: "pause", STOP: "stop", CHECKPOINT: "checkpoint"}


class Logged(Protocol):
    """Records at which boundary it acts. Other ranks move before it publishes a decision."""

    log: list[tuple[int, str, int]]
    before_publish = staticmethod(lambda: None)

    def _publish(self, target: int, number: int, kind: int) -> None:
        self.before_publish()
        super()._publish(target, number, kind)

    def _act(self, entry: int, count: int) -> Iterator[float]:
        self.log.append((entry >> 2 & 0xFFFFF, KINDS[entry & 3], count))
        yield from super()._act(entry, count)


def wait_for(flags: Board, name: str) -> None:
    while not flags.is_set(name):
        time.sleep(0.001)


class World:
    """Simulated ranks that can be interleaved between any two accesses to shared memory.

    Args:
        ranks: Number of ranks.
        loop: Steps of each rank's loop.
        ahead: How many steps a rank may be ahead of the last one; None: any number.
        seed: Of the order in which others move while the leader decides.
    """

    def __init__(self, ranks: int, loop: int, ahead: int | None, seed: int = 0) -> None:
        self.flags = Board()
        self.words = [0] * (step_board.SLOTS + step_board.SLOT * ranks)
        self.protocols = [
            Logged(self.words, self.flags, rank, ranks, contextlib.nullcontext)
            for rank in range(ranks)
        ]
        for protocol in self.protocols:
            protocol.log = []
        self.protocols[0].before_publish = self._move_others
        self._order = random.Random(seed)
        self.made = [0] * ranks
        self.saved: list[list[int]] = [[] for _ in range(ranks)]
        self.over = [False] * ranks
        self.ahead = ahead
        self.actors = [self._rank(rank, loop) for rank in range(ranks)]

    def _rank(self, rank: int, loop: int) -> Iterator[None]:
        protocol, words = self.protocols[rank], self.words
        for _ in range(loop):
            count = words[protocol.passed] + 1
            words[protocol.passed] = count
            yield
            if protocol.has_requests():
                for _pause in protocol.apply_requests(count):
                    yield
            if protocol.stopped:
                break
            yield
            if protocol.claim_checkpoint():
                self.saved[rank].append(count)
            self.made[rank] += 1
            while (
                self.ahead is not None
                and self.made[rank]
                - min(made for made, over in zip(self.made, self.over) if not over)
                > self.ahead
            ):
                yield
            yield
        self.over[rank] = True
        protocol.finish()

    def move(self, rank: int) -> None:
        if not self.over[rank]:
            next(self.actors[rank], None)

    def _move_others(self) -> None:
        for _ in range(self._order.choice([0, 3, 20])):
            if len(self.over) > 1:
                self.move(self._order.randrange(1, len(self.over)))

    def request(self, what: str) -> None:
        flags = self.flags
        if what == "pause":
            flags.clear("resume")
            flags.set("pause")
        elif what == "resume":
            flags.clear("pause")
            flags.set("resume")
        elif what == "checkpoint":
            flags.clear("finished_save_checkpoint")
            flags.set("trigger_save_checkpoint")
        elif what == "pause flag":
            flags.set("pause")
        elif what == "resume flag":
            flags.set("resume")
        elif what == "no checkpoint":
            flags.clear("trigger_save_checkpoint")
        else:
            flags.set("stop_all_tasks")

    def finish(self, order: random.Random) -> None:
        """Runs all ranks to the end. None may wait for ever."""
        for _ in range(200_000):
            if all(self.over):
                return
            if self.flags.is_set("paused") or order.random() < 0.01:
                self.request("resume")
            self.move(order.randrange(len(self.over)))
        pytest.fail(f"hangs: {[p.log for p in self.protocols]} {self.made} {self!r}")

    def check(self) -> None:
        for protocol in self.protocols:
            assert protocol.log == self.protocols[0].log
        assert all(made == self.made[0] for made in self.made), "a rank went a step further"
        assert all(saved == self.saved[0] for saved in self.saved)
        assert not self.flags.is_set("paused")


request_names = st.sampled_from(
    ["pause", "resume", "pause flag", "resume flag", "checkpoint", "no checkpoint", "stop"]
)
moves = st.lists(st.one_of(st.integers(0, 7), request_names), max_size=400)


@settings(max_examples=300, deadline=None)
@given(
    ranks=st.sampled_from([1, 2, 3, 8]),
    ahead=st.sampled_from([0, 1, 5, None]),
    moves=moves,
    seed=st.integers(0, 2**32),
)
def test_in_any_order_all_ranks_act_at_the_same_step(ranks, ahead, moves, seed):
    world = World(ranks, loop=60, ahead=ahead, seed=seed)
    for move in moves:
        if isinstance(move, str):
            world.request(move)
        else:
            world.move(move % ranks)
    world.finish(random.Random(seed))
    world.check()


@pytest.mark.parametrize("ahead", [0, 1, 5, None])
def test_a_thousand_requests_in_random_orders(ahead):
    """Long loops, with bursts of one rank and several requests at once."""
    requested = acted = seed = 0
    while requested < 1000:
        seed += 1
        order = random.Random(seed)
        world = World(order.choice([1, 2, 3, 8]), loop=400, ahead=ahead, seed=seed)
        while not all(world.over):
            if order.random() < 0.02:
                for _ in range(order.choice([1, 1, 2])):
                    world.request(
                        order.choice(
                            [
                                "pause",
                                "checkpoint",
                                "resume",
                                "pause flag",
                                "checkpoint",
                                "no checkpoint",
                                "resume flag",
                            ]
                        )
                    )
                    requested += 1
            rank = order.randrange(len(world.over))
            for _ in range(order.choice([1, 1, 1, 5, 50])):
                world.move(rank)
            if world.flags.is_set("paused") and order.random() < 0.2:
                world.request("resume")
            if order.random() < 0.0001:
                world.request("stop")
        world.finish(order)
        world.check()
        acted += len(world.protocols[0].log)
    assert acted > requested / 10


def two_ranks() -> World:
    return World(2, loop=1000, ahead=1)


def run_until(world: World, condition, moves: int = 10_000) -> None:
    for number in range(moves):
        if condition():
            return
        world.move(number % len(world.over))
    pytest.fail("it never came")


def test_paused_is_set_when_the_last_rank_waits_and_cleared_by_the_resume():
    world = two_ranks()
    world.request("pause")
    run_until(world, lambda: world.flags.is_set("paused"))
    assert [len(protocol.log) for protocol in world.protocols] == [1, 1]
    made = list(world.made)
    for number in range(100):
        world.move(number % 2)
    assert world.made == made
    world.request("resume")
    run_until(world, lambda: world.made[0] > made[0] + 5)
    assert not world.flags.is_set("paused")


def test_a_new_pause_before_a_rank_saw_the_resume_pauses_all_ranks():
    world = two_ranks()
    world.request("pause")
    run_until(world, lambda: world.flags.is_set("paused"))
    world.request("resume")
    for _ in range(3):
        world.move(0)  # the leader goes on alone
    world.request("pause")
    run_until(
        world,
        lambda: world.flags.is_set("paused") and [len(p.log) for p in world.protocols] == [2, 2],
    )
    assert world.protocols[0].log == world.protocols[1].log


def test_a_new_pause_during_the_resume_keeps_all_ranks_paused():
    world = two_ranks()
    world.request("pause")
    run_until(world, lambda: world.flags.is_set("paused"))
    leader, stopping = world.protocols[0], world.protocols[0]._stop_requested

    def stopping_late() -> bool:
        if not world.flags.is_set("pause"):
            world.request("pause")
        return stopping()

    leader._stop_requested = stopping_late
    world.request("resume")
    made = list(world.made)
    for number in range(100):
        world.move(number % 2)
        assert world.flags.is_set("paused")
    assert world.made == made and len(leader.log) == 1


def test_a_stop_acts_where_the_ranks_are_paused():
    world = two_ranks()
    world.request("pause")
    run_until(world, lambda: world.flags.is_set("paused"))
    made = list(world.made)
    world.request("stop")
    run_until(world, lambda: all(world.over))
    assert world.made == made
    assert not world.flags.is_set("paused")


def test_a_checkpoint_and_a_stop_requested_together_both_act():
    world = two_ranks()
    world.request("stop")
    world.request("checkpoint")
    run_until(world, lambda: all(world.over))
    assert [kind for _, kind, _ in world.protocols[1].log] == ["checkpoint", "stop"]
    assert world.saved[0] == world.saved[1] and len(world.saved[0]) == 1


def test_finished_is_set_when_the_last_rank_has_gone_on():
    world = two_ranks()
    world.request("checkpoint")
    run_until(world, lambda: world.saved[0] and world.saved[1])
    assert not world.flags.is_set("finished_save_checkpoint")
    run_until(world, lambda: world.flags.is_set("finished_save_checkpoint"))
    assert abs(world.flags.checkpoint_finished - time.time()) < 60
    assert world.saved[0] == world.saved[1] and len(world.saved[0]) == 1


def test_flags_set_without_a_run_work_again_and_again():
    """As the seed's code does it: pause.set(), resume.set() and so on, and nothing is cleared."""
    world = two_ranks()
    for _ in range(3):
        world.flags.set("pause")
        run_until(world, lambda: world.flags.is_set("paused"))
        made = world.made[0]
        world.flags.set("resume")
        run_until(world, lambda: world.made[0] > made + 3)
    assert len(world.protocols[0].log) == 3


def test_a_pause_that_is_resumed_at_once_does_nothing():
    world = two_ranks()
    run_until(world, lambda: world.made[0] > 3)
    world.request("pause")
    world.request("resume")
    made = world.made[0]
    run_until(world, lambda: world.made[0] > made + 20)
    assert world.protocols[0].log == []


def test_a_resume_without_a_pause_ends_no_later_pause():
    world = two_ranks()
    world.flags.set("resume")
    run_until(world, lambda: world.made[0] > 3)
    assert not world.flags.is_set("resume")
    world.flags.set("pause")
    run_until(world, lambda: world.flags.is_set("paused"))
    world.flags.set("resume")
    made = world.made[0]
    run_until(world, lambda: world.made[0] > made + 20)
    assert not world.flags.is_set("pause") and not world.flags.is_set("resume")


def test_a_rank_that_never_made_a_step_is_not_waited_for(tmp_path):
    board, flags = tmp_path / "steps.board", Board()
    steps_of(board, flags, 1, 2, writes_bars=False).protocol.finish()
    loops = steps_of(board, flags, 0, 2, writes_bars=False)
    made = []
    flags.set("pause")
    worker = threading.Thread(target=lambda: made.extend(loops.loop(range(3))), daemon=True)
    worker.start()
    wait_for(flags, "paused")
    flags.set("resume")
    worker.join(20)
    assert made == [0, 1, 2]


def test_a_rank_that_never_used_steps_is_not_waited_for(tmp_path):
    board, flags = tmp_path / "steps.board", Board()
    assert step_board.mark_over(board, 1, 2)
    loops = steps_of(board, flags, 0, 2, writes_bars=False)
    made = []
    flags.set("pause")
    worker = threading.Thread(target=lambda: made.extend(loops.loop(range(3))), daemon=True)
    worker.start()
    wait_for(flags, "paused")
    flags.set("resume")
    worker.join(20)
    assert made == [0, 1, 2]
    assert not step_board.mark_over(board, 1, 2)  # there was a decision: a rank may wait


# The loops of one process.


@pytest.fixture
def single() -> Steps:
    return make_single(Board())


def make_single(flags: Board) -> Steps:
    return steps_of(None, flags, 0, 1, writes_bars=True)


def flags_of(loops: Steps) -> Board:
    return loops.protocol.flags


def test_a_loop_gives_the_items_and_counts(single):
    seen = [(item, *flags_of(single).bars[0]) for item in single.loop("abc")]
    assert seen == [("a", 0, 3), ("b", 1, 3), ("c", 2, 3)]
    assert flags_of(single).bars == [(3, 3)]


def test_a_loop_without_a_length_uses_the_given_total(single):
    assert list(single.loop(iter("ab"), total=7)) == ["a", "b"]
    assert flags_of(single).bars == [(2, 7)]
    assert list(single.loop(iter("ab"))) == ["a", "b"]
    assert flags_of(single).bars == [(2, 0)]


@pytest.mark.parametrize(
    ("total", "shown"),
    [(2.0, 2), (2.5, 2), (float("inf"), 0), (float("nan"), 0), (-1, 0), (10**20, 0), (True, 1)],
)
def test_a_total_is_shown_as_far_as_a_bar_can_hold_it(single, total, shown):
    assert list(single.loop("ab", total=total)) == ["a", "b"]
    assert flags_of(single).bars == [(2, shown)]


def test_an_iterable_that_is_too_long_for_len_has_no_total(single):
    for _ in single.loop(range(10**20)):
        break
    assert flags_of(single).bars == [(0, 0)]


def test_nested_loops_have_bars_of_their_own(single):
    bars = []
    for _epoch in single.loop(range(2)):
        for _batch in single.loop(range(3)):
            bars.append((flags_of(single).bars, single.step))
        bars.append((flags_of(single).bars, single.step))
    assert bars == [
        ([(0, 2), (0, 3)], 0),
        ([(0, 2), (1, 3)], 1),
        ([(0, 2), (2, 3)], 2),
        ([(0, 2), (3, 3)], 3),
        ([(1, 2), (0, 3)], 3),
        ([(1, 2), (1, 3)], 4),
        ([(1, 2), (2, 3)], 5),
        ([(1, 2), (3, 3)], 6),
    ]
    assert flags_of(single).bars == [(2, 2)]


def test_leaving_a_loop_early_closes_it(single):
    for _ in single.loop(range(5)):
        for _ in single.loop(range(5)):
            break
        with contextlib.suppress(ValueError):
            for _ in single.loop(range(5)):
                raise ValueError
        break
    assert single._open_loops == []
    assert flags_of(single).bars == [(0, 5)]
    assert list(single.loop(range(2))) == [0, 1]


def test_more_levels_than_there_are_bars(single):
    def dive(depth: int) -> int:
        return sum(dive(depth - 1) for _ in single.loop(range(2))) if depth else 1

    assert dive(10) == 2**10


def test_a_stop_ends_all_loops_and_later_ones(single):
    made = 0
    for _epoch in single.loop(range(3)):
        for batch in single.loop(range(10)):
            made += 1
            if batch == 4:
                flags_of(single).set("stop_all_tasks")
    assert made == 5
    assert list(single.loop(range(3))) == []


def test_one_rank_alone_pauses_before_its_first_step(single):
    flags = flags_of(single)
    flags.set("pause")
    made = []
    worker = threading.Thread(target=lambda: made.extend(single.loop(range(3))), daemon=True)
    worker.start()
    wait_for(flags, "paused")
    assert made == []
    flags.set("resume")
    worker.join(20)
    assert made == [0, 1, 2]
    assert not flags.is_set("paused")


def test_a_checkpoint_is_due_once_per_request(single):
    due = []
    for batch in single.loop(range(8)):
        if batch in (1, 4):
            flags_of(single).set("trigger_save_checkpoint")
        if single.should_checkpoint():
            due.append(batch)
        assert not single.should_checkpoint()
        assert flags_of(single).is_set("finished_save_checkpoint") == (batch in (3, 4, 6, 7))
    assert due == [2, 5]


@pytest.mark.parametrize("paused", [False, True])
def test_a_checkpoint_requested_before_a_stop_is_saved(single, paused):
    saved, flags = [], flags_of(single)

    def clicks():
        wait_for(flags, "paused")
        flags.set("trigger_save_checkpoint")
        flags.set("stop_all_tasks")

    clicker = threading.Thread(target=clicks, daemon=True)
    for batch in single.loop(range(100)):
        if single.should_checkpoint():
            saved.append(batch)
        if batch == 10 and paused:
            flags.set("pause")
            clicker.start()
        elif batch == 10:
            flags.set("trigger_save_checkpoint")
            flags.set("stop_all_tasks")
    assert saved == [batch] and batch < 14
    if paused:
        clicker.join(20)


def test_a_checkpoint_stays_due_until_the_code_asks(single):
    due = []
    for batch in single.loop(range(20)):
        if batch == 3:
            flags_of(single).set("trigger_save_checkpoint")
        if batch % 5 == 0:
            due.append(single.should_checkpoint())
        assert not (flags_of(single).is_set("finished_save_checkpoint") and batch < 6)
    assert due == [False, True, False, False]
    assert flags_of(single).is_set("finished_save_checkpoint")


def test_a_checkpoint_that_the_code_never_uses_costs_no_step_anything(single):
    boundaries, apply_requests = [], single.apply_requests
    single.apply_requests = lambda count: boundaries.append(count) or apply_requests(count)
    for batch in single.loop(range(100)):
        if batch == 10:
            flags_of(single).set("trigger_save_checkpoint")
    assert boundaries == [12]
    assert single.should_checkpoint()


def test_without_a_loop_of_ours_should_checkpoint_is_the_boundary(single):
    answers = []
    for step in range(5):
        if step == 2:
            flags_of(single).set("trigger_save_checkpoint")
        answers.append(single.should_checkpoint())
    assert answers == [False, False, True, False, False]
    assert flags_of(single).is_set("finished_save_checkpoint")


def test_a_stop_is_pending_for_the_next_attempt(tmp_path):
    flags = Board()
    flags.move_to(tmp_path / "events.board")
    first = steps_of(tmp_path / "0", flags, 0, 1, writes_bars=True)
    flags.set("stop_all_tasks")
    assert list(first.loop(range(3))) == []
    assert step_board.stopped_ranks(tmp_path / "0") == {0}
    second = steps_of(tmp_path / "1", flags, 0, 1, writes_bars=True)
    assert list(second.loop(range(3))) == []


def test_the_board_shows_which_ranks_listen(tmp_path):
    board, flags = tmp_path / "steps.board", Board()
    assert step_board.listening_ranks(board) == step_board.stopped_ranks(board) == set()
    assert not board.exists()
    list(steps_of(board, flags, 3, 8, writes_bars=False).loop(range(2)))
    step_board.mark_listening(board, 5)
    assert step_board.listening_ranks(board) == {3, 5}
    assert board.stat().st_mode & 0o777 == 0o600


def test_a_second_call_returns_the_same_loops_and_a_forked_child_gets_its_own(tmp_path):
    board, flags = tmp_path / "steps.board", Board()
    first = steps_of(board, flags, 0, 2, writes_bars=False)
    assert steps_of(board, flags, 0, 2, writes_bars=False) is first
    assert steps_of(board, flags, 1, 2, writes_bars=False) is not first
    pid = os.fork()
    if not pid:
        own = steps_of(board, flags, 0, 2, writes_bars=False)
        os._exit(own is first or len(list(own.loop(range(9)))) != 9)
    assert os.waitpid(pid, 0)[1] == 0
    assert first.protocol.words[first.protocol.passed] == 0


def test_a_rank_of_the_same_number_in_another_process_counts_for_itself(tmp_path):
    import subprocess
    import sys

    board, flags = tmp_path / "steps.board", Board()
    rank = steps_of(board, flags, 0, 1, writes_bars=False)
    code = f"""
from pathlib import Path
from icelaunch_nb.rundir.events_board import Board; from icelaunch_nb.worker import steps
loops = steps.steps_of(Path({str(board)!r}), Board(), 0, 1, writes_bars=True)
print(len(list(loops.loop(range(9)))))
"""
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "9\n"
    )
    assert rank.protocol.words[rank.protocol.passed] == 0


def seconds_of(loop: Iterable[int]) -> float:
    started = time.perf_counter()
    for _ in loop:
        pass
    return time.perf_counter() - started


def test_a_step_costs_next_to_nothing(tmp_path: Path):
    flags = Board()
    flags.move_to(tmp_path / "events.board")
    count = 20_000
    for rank in (0, 1):
        loops = steps_of(tmp_path / "steps.board", flags, rank, 2, writes_bars=rank == 0)
        plain = best = float("inf")
        for _ in range(20):
            plain = min(plain, seconds_of(range(count)))
            best = min(best, seconds_of(loops.loop(range(count))))
        assert best < 100 * plain  # 10 to 20 times: 0.3 µs on an idle machine


def test_should_checkpoint_alone_is_not_listening_for_a_stop(tmp_path):
    loops = steps_of(tmp_path / "steps.board", Board(), 0, 1, writes_bars=True)
    flags_of(loops).set("pause")
    flags_of(loops).set("resume")
    flags_of(loops).set("trigger_save_checkpoint")
    assert [loops.should_checkpoint() for _ in range(3)] == [True, False, False]
    assert step_board.listening_ranks(tmp_path / "steps.board") == set()


def test_the_board_shows_the_step_of_each_rank_in_nested_loops_too(tmp_path):
    flags, board = Board(), tmp_path / "steps.board"
    loops = steps_of(board, flags, 0, 2, writes_bars=False)
    assert step_board.steps_made(board, 2) == {}
    for epoch in loops.loop(range(3)):
        for batch in loops.loop(range(4)):
            assert step_board.steps_made(board, 2) == {0: 4 * epoch + batch} == {0: loops.step}
    assert step_board.steps_made(board, 2) == {0: 12}
