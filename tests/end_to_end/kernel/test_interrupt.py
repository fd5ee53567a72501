"""Interrupt ends the run that a cell waits for, and no other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WAITING = """
def forever():
    print("up", os.getpid(), flush=True)
    while True:
        time.sleep(0.05)
"""


def ranks_of(cell: Any, count: int) -> list[int]:
    """The pids that the ranks of `WAITING` printed."""
    cell.wait_until(lambda: cell.out.count("up ") >= count or cell.over, "all ranks are up", 60)
    return [int(line.split()[-1]) for line in cell.out.splitlines() if "up " in line]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "waiting", ["run.result()", "run.wait()", "await run", "launch_agent(run)"]
)
def test_a_waiting_cell_ends_with_keyboard_interrupt_and_the_ranks_are_gone(
    kernel: Any, waiting: str
) -> None:
    kernel.does(WAITING)
    launch = "run = launch(forever)"
    if waiting.startswith("launch_agent"):
        launch = "config = ice.LaunchConfig(1, 1, 2, start_method='forkserver')"
        waiting = "ice.launch_agent(config, forever, ())"
    cell = kernel.start(f"{launch}\n{waiting}")
    pids = ranks_of(cell, 2)
    kernel.interrupt()
    cell.wait()
    assert cell.ename == "KeyboardInterrupt"
    assert not any(map(alive, pids))
    if launch.startswith("run"):
        assert kernel.value("str(run.state)") == "STOPPED"
    assert kernel.value("results(lambda: 'next')") == {0: "next", 1: "next"}


@pytest.fixture
def endless_grace(kernel: Any) -> Iterator[None]:
    """Makes the grace of an interrupted run longer than any test."""
    kernel.does(
        "from icelaunch_nb.client import running_cell\n"
        "usual, running_cell.INTERRUPT_GRACE = running_cell.INTERRUPT_GRACE, 1000"
    )
    yield
    kernel.does("running_cell.INTERRUPT_GRACE = usual")


def test_ranks_that_end_at_sigterm_are_gone_at_once(kernel: Any, endless_grace: None) -> None:
    kernel.does(WAITING)
    cell = kernel.start("launch(forever).result()")
    ranks_of(cell, 2)
    kernel.interrupt()
    assert cell.wait().ename == "KeyboardInterrupt"


def test_a_rank_can_clean_up_at_sigterm(kernel: Any) -> None:
    kernel.does("""
def tidy():
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        print("up", os.getpid(), flush=True)
        while True:
            time.sleep(0.05)
    finally:
        (HOME / f"tidied-{ice.get_context().rank}").touch()
""")
    cell = kernel.start("launch(tidy).result()")
    ranks_of(cell, 2)
    kernel.interrupt()
    assert cell.wait().ename == "KeyboardInterrupt"
    assert (kernel.home / "tidied-0").exists() and (kernel.home / "tidied-1").exists()


STUBBORN = """
def stubborn():
    signal.signal(signal.SIGTERM, lambda *_: (HOME / f"refused-{os.getpid()}").touch())
    print("up", os.getpid(), flush=True)
    while True:
        time.sleep(0.05)
"""


@pytest.mark.parametrize("waiting", ["run.result()", "await run"])
def test_a_second_interrupt_kills_who_ignores_the_first(
    kernel: Any, endless_grace: None, waiting: str
) -> None:
    kernel.does(STUBBORN)
    cell = kernel.start(f"run = launch(stubborn, ranks=1)\n{waiting}")
    [pid] = ranks_of(cell, 1)
    kernel.interrupt()
    kernel.until((kernel.home / f"refused-{pid}").exists, "the rank refuses SIGTERM")
    kernel.interrupt()
    cell.wait()
    assert cell.ename == "KeyboardInterrupt"
    assert not alive(pid)
    assert kernel.value("results(lambda: 'next')") == {0: "next", 1: "next"}


def test_one_interrupt_ends_who_ignores_sigterm_when_the_grace_is_over(kernel: Any) -> None:
    kernel.does(STUBBORN)
    cell = kernel.start("run = launch(stubborn, ranks=1)\nrun.result()")
    [pid] = ranks_of(cell, 1)
    kernel.interrupt()
    cell.wait()
    assert cell.ename == "KeyboardInterrupt"
    assert not alive(pid)


def test_interrupt_of_another_cell_leaves_a_background_run_alone(kernel: Any) -> None:
    kernel.does("""
go = HOME / "go"
def background():
    print("up", flush=True)
    while not go.exists():
        time.sleep(0.01)
    return "done"
run = launch(background)
until(lambda: len(run.pids) == 2 and all("up" in run.logs(rank) for rank in run.pids))
""")
    pids = kernel.value("sorted(run.pids.values())")
    for _ in range(2):
        # The cell doesn't print. An interrupt amid a flush can mix up the frames of ipykernel 7.4's
        # messages, and the error is lost (29 of 508 cells of a plain kernel that always printed).
        cell = kernel.start("(HOME / 'asleep').touch()\nwhile True:\n    time.sleep(0.05)")
        kernel.until((kernel.home / "asleep").exists, "the cell sleeps")
        (kernel.home / "asleep").unlink()
        kernel.interrupt()
        assert cell.wait().ename == "KeyboardInterrupt", cell
    kernel.interrupt()  # an idle kernel's Interrupt, too
    assert kernel.value("str(run.state), sorted(run.pids.values())") == ("RUNNING", pids)
    assert kernel.value("go.touch(); run.result(60)") == {0: "done", 1: "done"}


def test_a_timeout_is_no_interrupt(kernel: Any) -> None:
    kernel.does(
        "go = HOME / 'go-on'\ndef slow():\n    until(go.exists)\n    return 1\nrun = launch(slow)"
    )
    assert kernel.value("run.wait(0.1)") is False
    assert kernel.run("run.result(0.1)").ename == "TimeoutError"
    assert kernel.value("go.touch(); run.result()") == {0: 1, 1: 1}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_one_rank_is_its_failure_not_a_hang(
    kernel: Any, signum: signal.Signals
) -> None:
    kernel.does(WAITING)
    cell = kernel.start("run = launch(forever)\nrun.result()")
    pids = ranks_of(cell, 2)
    os.kill(pids[0], signum)
    cell.wait()
    assert cell.ename == "RunFailed"
    assert ("KeyboardInterrupt" if signum == signal.SIGINT else signum.name) in cell.error
    assert kernel.value("[f.pid for f in run.failures]") == [pids[0]]
    assert not any(map(alive, pids))
