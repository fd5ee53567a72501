"""The agreement on a step, with simulated ranks in every legal order, and the loops of one process."""

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
from icelaunch_nb.rundir.board import Board
from icelaunch_nb.worker.steps import CHECKPOINT, PAUSE, STOP, Protocol, Steps, steps_of

KINDS = {PAUSE: "pause", STOP: "stop", CHECKPOINT: "checkpoint"}


class Logged(Protocol):
    """Notes at which boundary it acts; while it makes up its mind, others move."""

    log: list[tuple[int, str, int]]
    meanwhile = staticmethod(lambda: None)

    def _publish(self, target: int, number: int, kind: int) -> None:
        self.meanwhile()
        super()._publish(target, number, kind)

    def _act(self, entry: int, count: int) -> Iterator[float]:
        self.log.append((entry >> 2 & 0xFFFFF, KINDS[entry & 3], count))
        yield from super()._act(entry, count)


def wait_for(flags: Board, name: str) -> None:
    while not flags.is_set(name):
        time.sleep(0.001)


class World:
    """Ranks whose every look at shared memory is a moment of its own. `ahead`: how many steps a rank may be before the last one."""

    def __init__(self, ranks: int, loop: int, ahead: int | None, seed: int = 0) -> None:
        self.flags = Board()
        self.words = [0] * (step_board.SLOTS + step_board.SLOT * ranks)
        self.protocols = [
            Logged(self.words, self.flags, rank, ranks, contextlib.nullcontext)
            for rank in range(ranks)
        ]
        for protocol in self.protocols:
            protocol.log = []
        self.protocols[0].meanwhile = self._meanwhile
        self._order = random.Random(seed)
        self.made = [0] * ranks
        self.taken: list[list[int]] = [[] for _ in range(ranks)]
        self.over = [False] * ranks
        self.ahead = ahead
        self.actors = [self._rank(rank, loop) for rank in range(ranks)]

    def _rank(self, rank: int, loop: int) -> Iterator[None]:
        protocol, words = self.protocols[rank], self.words
        for _ in range(loop):
            count = words[protocol.passed] + 1
            words[protocol.passed] = count
            yield
            if protocol.asked():
                for _pause in protocol.apply_requests(count):
                    yield
            if protocol.stopped:
                break
            yield
            if protocol.take_checkpoint():
                self.taken[rank].append(count)
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

    def _meanwhile(self) -> None:
        for _ in range(self._order.choice([0, 3, 20])):
            if len(self.over) > 1:
                self.move(self._order.randrange(1, len(self.over)))

    def ask(self, what: str) -> None:
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
        """Lets everybody run to the end; nobody may wait for ever."""
        for _ in range(200_000):
            if all(self.over):
                return
            if self.flags.is_set("paused") or order.random() < 0.01:
                self.ask("resume")
            self.move(order.randrange(len(self.over)))
        pytest.fail(f"hangs: {[p.log for p in self.protocols]} {self.made} {self!r}")

    def check(self) -> None:
        for protocol in self.protocols:
            assert protocol.log == self.protocols[0].log
        assert all(made == self.made[0] for made in self.made), "a rank went a step further"
        assert all(taken == self.taken[0] for taken in self.taken)
        assert not self.flags.is_set("paused")


asks = st.sampled_from(
    ["pause", "resume", "pause flag", "resume flag", "checkpoint", "no checkpoint", "stop"]
)
moves = st.lists(st.one_of(st.integers(0, 7), asks), max_size=400)


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
            world.ask(move)
        else:
            world.move(move % ranks)
    world.finish(random.Random(seed))
    world.check()


@pytest.mark.parametrize("ahead", [0, 1, 5, None])
def test_a_thousand_requests_in_random_orders(ahead):
    """Long runs, with bursts of one rank and requests on top of each other."""
    asked = acted = seed = 0
    while asked < 1000:
        seed += 1
        order = random.Random(seed)
        world = World(order.choice([1, 2, 3, 8]), loop=400, ahead=ahead, seed=seed)
        while not all(world.over):
            if order.random() < 0.02:
                for _ in range(order.choice([1, 1, 2])):
                    world.ask(
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
                    asked += 1
            rank = order.randrange(len(world.over))
            for _ in range(order.choice([1, 1, 1, 5, 50])):
                world.move(rank)
            if world.flags.is_set("paused") and order.random() < 0.2:
                world.ask("resume")
            if order.random() < 0.0001:
                world.ask("stop")
        world.finish(order)
        world.check()
        acted += len(world.protocols[0].log)
    assert acted > asked / 10


def two() -> World:
    return World(2, loop=1000, ahead=1)


def run_until(world: World, condition, moves: int = 10_000) -> None:
    for number in range(moves):
        if condition():
            return
        world.move(number % len(world.over))
    pytest.fail("it never came")


def test_paused_is_set_when_the_last_rank_has_stopped_and_cleared_by_the_release():
    world = two()
    world.ask("pause")
    run_until(world, lambda: world.flags.is_set("paused"))
    assert [len(protocol.log) for protocol in world.protocols] == [1, 1]
    made = list(world.made)
    for number in range(100):
        world.move(number % 2)
    assert world.made == made
    world.ask("resume")
    run_until(world, lambda: world.made[0] > made[0] + 5)
    assert not world.flags.is_set("paused")


def test_pausing_again_while_a_rank_has_not_looked_yet_leaves_nobody_behind():
    world = two()
    world.ask("pause")
    run_until(world, lambda: world.flags.is_set("paused"))
    world.ask("resume")
    for _ in range(3):
        world.move(0)  # the leader goes on alone
    world.ask("pause")
    run_until(
        world,
        lambda: world.flags.is_set("paused") and [len(p.log) for p in world.protocols] == [2, 2],
    )
    assert world.protocols[0].log == world.protocols[1].log


def test_pausing_again_in_the_moment_of_the_release_is_staying_paused():
    world = two()
    world.ask("pause")
    run_until(world, lambda: world.flags.is_set("paused"))
    leader, stopping = world.protocols[0], world.protocols[0]._stopping

    def stopping_late() -> bool:
        if not world.flags.is_set("pause"):
            world.ask("pause")
        return stopping()

    leader._stopping = stopping_late
    world.ask("resume")
    made = list(world.made)
    for number in range(100):
        world.move(number % 2)
        assert world.flags.is_set("paused")
    assert world.made == made and len(leader.log) == 1


def test_a_stop_acts_where_the_ranks_are_paused():
    world = two()
    world.ask("pause")
    run_until(world, lambda: world.flags.is_set("paused"))
    made = list(world.made)
    world.ask("stop")
    run_until(world, lambda: all(world.over))
    assert world.made == made
    assert not world.flags.is_set("paused")


def test_a_checkpoint_and_a_stop_asked_for_at_once_are_both_had():
    world = two()
    world.ask("stop")
    world.ask("checkpoint")
    run_until(world, lambda: all(world.over))
    assert [kind for _, kind, _ in world.protocols[1].log] == ["checkpoint", "stop"]
    assert world.taken[0] == world.taken[1] and len(world.taken[0]) == 1


def test_finished_is_set_when_the_last_rank_has_gone_on():
    world = two()
    world.ask("checkpoint")
    run_until(world, lambda: world.taken[0] and world.taken[1])
    assert not world.flags.is_set("finished_save_checkpoint")
    run_until(world, lambda: world.flags.is_set("finished_save_checkpoint"))
    assert abs(world.flags.checkpoint_finished - time.time()) < 60
    assert world.taken[0] == world.taken[1] and len(world.taken[0]) == 1


def test_flags_set_without_a_run_work_again_and_again():
    """The seed's way: pause.set(), resume.set(), and so on, without clearing anything."""
    world = two()
    for _ in range(3):
        world.flags.set("pause")
        run_until(world, lambda: world.flags.is_set("paused"))
        made = world.made[0]
        world.flags.set("resume")
        run_until(world, lambda: world.made[0] > made + 3)
    assert len(world.protocols[0].log) == 3


def test_a_pause_that_was_taken_back_at_once_is_none():
    world = two()
    run_until(world, lambda: world.made[0] > 3)
    world.ask("pause")
    world.ask("resume")
    made = world.made[0]
    run_until(world, lambda: world.made[0] > made + 20)
    assert world.protocols[0].log == []


def test_a_resume_that_resumes_nothing_takes_no_later_pause_back():
    world = two()
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
    steps_of(board, flags, 1, 2, shows=False).protocol.finish()
    loops = steps_of(board, flags, 0, 2, shows=False)
    made = []
    flags.set("pause")
    worker = threading.Thread(target=lambda: made.extend(loops.loop(range(3))), daemon=True)
    worker.start()
    wait_for(flags, "paused")
    flags.set("resume")
    worker.join(20)
    assert made == [0, 1, 2]


def test_a_rank_that_never_asked_for_steps_is_not_waited_for(tmp_path):
    board, flags = tmp_path / "steps.board", Board()
    assert step_board.mark_over(board, 1, 2)
    loops = steps_of(board, flags, 0, 2, shows=False)
    made = []
    flags.set("pause")
    worker = threading.Thread(target=lambda: made.extend(loops.loop(range(3))), daemon=True)
    worker.start()
    wait_for(flags, "paused")
    flags.set("resume")
    worker.join(20)
    assert made == [0, 1, 2]
    assert not step_board.mark_over(board, 1, 2)  # something was decided: somebody may wait


# The loops of one process.


@pytest.fixture
def one() -> Steps:
    return alone(Board())


def alone(flags: Board) -> Steps:
    return steps_of(None, flags, 0, 1, shows=True)


def flags_of(loops: Steps) -> Board:
    return loops.protocol.flags


def test_a_loop_gives_the_items_and_counts(one):
    seen = [(item, *flags_of(one).bars[0]) for item in one.loop("abc")]
    assert seen == [("a", 0, 3), ("b", 1, 3), ("c", 2, 3)]
    assert flags_of(one).bars == [(3, 3)]


def test_a_loop_without_a_length_takes_the_total_that_is_given(one):
    assert list(one.loop(iter("ab"), total=7)) == ["a", "b"]
    assert flags_of(one).bars == [(2, 7)]
    assert list(one.loop(iter("ab"))) == ["a", "b"]
    assert flags_of(one).bars == [(2, 0)]


@pytest.mark.parametrize(
    ("total", "shown"),
    [(2.0, 2), (2.5, 2), (float("inf"), 0), (float("nan"), 0), (-1, 0), (10**20, 0), (True, 1)],
)
def test_a_total_is_what_a_bar_can_show_of_it(one, total, shown):
    assert list(one.loop("ab", total=total)) == ["a", "b"]
    assert flags_of(one).bars == [(2, shown)]


def test_an_iterable_that_is_too_long_for_len_has_no_total(one):
    for _ in one.loop(range(10**20)):
        break
    assert flags_of(one).bars == [(0, 0)]


def test_nested_loops_have_bars_of_their_own(one):
    bars = []
    for _epoch in one.loop(range(2)):
        for _batch in one.loop(range(3)):
            bars.append((flags_of(one).bars, one.step))
        bars.append((flags_of(one).bars, one.step))
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
    assert flags_of(one).bars == [(2, 2)]


def test_leaving_a_loop_early_closes_it(one):
    for _ in one.loop(range(5)):
        for _ in one.loop(range(5)):
            break
        with contextlib.suppress(ValueError):
            for _ in one.loop(range(5)):
                raise ValueError
        break
    assert one._open == []
    assert flags_of(one).bars == [(0, 5)]
    assert list(one.loop(range(2))) == [0, 1]


def test_more_levels_than_there_are_bars(one):
    def dive(depth: int) -> int:
        return sum(dive(depth - 1) for _ in one.loop(range(2))) if depth else 1

    assert dive(10) == 2**10


def test_a_stop_ends_all_loops_and_later_ones(one):
    made = 0
    for _epoch in one.loop(range(3)):
        for batch in one.loop(range(10)):
            made += 1
            if batch == 4:
                flags_of(one).set("stop_all_tasks")
    assert made == 5
    assert list(one.loop(range(3))) == []


def test_one_rank_alone_pauses_before_its_first_step(one):
    flags = flags_of(one)
    flags.set("pause")
    made = []
    worker = threading.Thread(target=lambda: made.extend(one.loop(range(3))), daemon=True)
    worker.start()
    wait_for(flags, "paused")
    assert made == []
    flags.set("resume")
    worker.join(20)
    assert made == [0, 1, 2]
    assert not flags.is_set("paused")


def test_a_checkpoint_is_due_once_per_request(one):
    due = []
    for batch in one.loop(range(8)):
        if batch in (1, 4):
            flags_of(one).set("trigger_save_checkpoint")
        if one.should_checkpoint():
            due.append(batch)
        assert not one.should_checkpoint()
        assert flags_of(one).is_set("finished_save_checkpoint") == (batch in (3, 4, 6, 7))
    assert due == [2, 5]


@pytest.mark.parametrize("paused", [False, True])
def test_a_checkpoint_that_was_asked_for_before_a_stop_is_saved(one, paused):
    saved, flags = [], flags_of(one)

    def clicks():
        wait_for(flags, "paused")
        flags.set("trigger_save_checkpoint")
        flags.set("stop_all_tasks")

    clicker = threading.Thread(target=clicks, daemon=True)
    for batch in one.loop(range(100)):
        if one.should_checkpoint():
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


def test_a_checkpoint_stays_due_until_the_code_asks(one):
    due = []
    for batch in one.loop(range(20)):
        if batch == 3:
            flags_of(one).set("trigger_save_checkpoint")
        if batch % 5 == 0:
            due.append(one.should_checkpoint())
        assert not (flags_of(one).is_set("finished_save_checkpoint") and batch < 6)
    assert due == [False, True, False, False]
    assert flags_of(one).is_set("finished_save_checkpoint")


def test_a_checkpoint_that_the_code_never_asks_for_costs_its_steps_nothing(one):
    looks, apply_requests = [], one.apply_requests
    one.apply_requests = lambda count: looks.append(count) or apply_requests(count)
    for batch in one.loop(range(100)):
        if batch == 10:
            flags_of(one).set("trigger_save_checkpoint")
    assert looks == [12]
    assert one.should_checkpoint()


def test_without_a_loop_of_ours_the_question_is_the_boundary(one):
    answers = []
    for step in range(5):
        if step == 2:
            flags_of(one).set("trigger_save_checkpoint")
        answers.append(one.should_checkpoint())
    assert answers == [False, False, True, False, False]
    assert flags_of(one).is_set("finished_save_checkpoint")


def test_a_stop_is_pending_for_the_next_attempt(tmp_path):
    flags = Board()
    flags.move_to(tmp_path / "events.board")
    first = steps_of(tmp_path / "0", flags, 0, 1, shows=True)
    flags.set("stop_all_tasks")
    assert list(first.loop(range(3))) == []
    assert step_board.stopped_ranks(tmp_path / "0") == {0}
    second = steps_of(tmp_path / "1", flags, 0, 1, shows=True)
    assert list(second.loop(range(3))) == []


def test_who_listens_is_on_the_board(tmp_path):
    board, flags = tmp_path / "steps.board", Board()
    assert step_board.listening_ranks(board) == step_board.stopped_ranks(board) == set()
    assert not board.exists()
    list(steps_of(board, flags, 3, 8, shows=False).loop(range(2)))
    step_board.mark_listening(board, 5)
    assert step_board.listening_ranks(board) == {3, 5}
    assert board.stat().st_mode & 0o777 == 0o600


def test_whoever_asks_again_gets_the_same_loops_and_a_forked_child_its_own(tmp_path):
    board, flags = tmp_path / "steps.board", Board()
    first = steps_of(board, flags, 0, 2, shows=False)
    assert steps_of(board, flags, 0, 2, shows=False) is first
    assert steps_of(board, flags, 1, 2, shows=False) is not first
    pid = os.fork()
    if not pid:
        own = steps_of(board, flags, 0, 2, shows=False)
        os._exit(own is first or len(list(own.loop(range(9)))) != 9)
    assert os.waitpid(pid, 0)[1] == 0
    assert first.protocol.words[first.protocol.passed] == 0


def test_a_rank_of_the_same_number_in_another_process_counts_for_itself(tmp_path):
    import subprocess
    import sys

    board, flags = tmp_path / "steps.board", Board()
    rank = steps_of(board, flags, 0, 1, shows=False)
    code = f"""
from pathlib import Path
from icelaunch_nb.rundir.board import Board; from icelaunch_nb.worker import steps
print(len(list(steps.steps_of(Path({str(board)!r}), Board(), 0, 1, shows=True).loop(range(9)))))
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
        loops = steps_of(tmp_path / "steps.board", flags, rank, 2, shows=rank == 0)
        plain = best = float("inf")
        for _ in range(20):
            plain = min(plain, seconds_of(range(count)))
            best = min(best, seconds_of(loops.loop(range(count))))
        assert best < 100 * plain  # 10 to 20 times: 0.3 µs on an idle machine


def test_asking_for_checkpoints_alone_is_no_looking_for_a_stop(tmp_path):
    loops = steps_of(tmp_path / "steps.board", Board(), 0, 1, shows=True)
    flags_of(loops).set("pause")
    flags_of(loops).set("resume")
    flags_of(loops).set("trigger_save_checkpoint")
    assert [loops.should_checkpoint() for _ in range(3)] == [True, False, False]
    assert step_board.listening_ranks(tmp_path / "steps.board") == set()


def test_onlookers_see_the_step_of_each_rank_in_nested_loops_too(tmp_path):
    flags, board = Board(), tmp_path / "steps.board"
    loops = steps_of(board, flags, 0, 2, shows=False)
    assert step_board.steps_made(board, 2) == {}
    for epoch in loops.loop(range(3)):
        for batch in loops.loop(range(4)):
            assert step_board.steps_made(board, 2) == {0: 4 * epoch + batch} == {0: loops.step}
    assert step_board.steps_made(board, 2) == {0: 12}
