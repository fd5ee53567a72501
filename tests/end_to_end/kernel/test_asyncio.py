"""asyncio's rules hold for ``await run``.

A cancelled task is cancelled, a time-out is a TimeoutError, and only Interrupt stops the run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

SETUP = """
import asyncio, threading
from icelaunch_nb.client import running_cell

def touch_when_it_waits(name, *, blocks=False):
    # Called by a cell that will wait. A wait that blocks can be interrupted once Python's own
    # handler of SIGINT is there.
    cell = running_cell.running()
    def interruptible():
        return not blocks or signal.getsignal(signal.SIGINT) is signal.default_int_handler
    def touch():
        until(lambda: cell.waits and interruptible())
        (HOME / f"waits-{name}").touch()
    threading.Thread(target=touch).start()

async def waits(run):
    return await run

def until_released(name):
    (HOME / f"up-{name}").touch()
    while not (HOME / name).exists():
        time.sleep(0.005)
    return name

def stubborn(name):
    signal.signal(signal.SIGTERM, lambda *_: (HOME / f"refused-{name}").touch())
    (HOME / f"up-{name}").touch()
    while True:
        time.sleep(0.05)

def up(fn, name):
    run = launch(fn, name, ranks=1)
    until((HOME / f"up-{name}").exists)
    return run

def release(run, name):
    (HOME / name).touch()
    return run.result(60)
"""

since_311 = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.timeout and TaskGroup came with Python 3.11"
)


@pytest.fixture(scope="module", autouse=True)
def ready(kernel: Any) -> None:
    kernel.does(SETUP)


@pytest.fixture(scope="module")
def goes_on(kernel: Any, ready: None) -> Iterator[None]:
    """Checks that `run` goes on, whatever the tests do to the waits for it."""
    kernel.does("run = up(until_released, 'at-the-end')\npids = run.pids")
    yield
    assert kernel.value("str(run.state), run.pids == pids") == ("RUNNING", True)
    assert kernel.value("release(run, 'at-the-end')") == {0: "at-the-end"}


# Whatever ends a wait, the run and the kernel go on.

TIMED_OUT = {
    "wait_for a coroutine": "await asyncio.wait_for(waits(run), 0.1)",
    "wait_for the run": "await asyncio.wait_for(run, 0.1)",
    "wait_for a task": "await asyncio.wait_for(asyncio.create_task(waits(run)), 0.1)",
    "wait_for gather": "await asyncio.wait_for(asyncio.gather(run, waits(run)), 0.1)",
    "wait_for shield": "await asyncio.wait_for(asyncio.shield(run), 0.1)",
    "wait_for to_thread": "await asyncio.wait_for(asyncio.to_thread(run.wait, 0.5), 0.1)",
    "to_thread": "await asyncio.to_thread(run.result, 0.1)",
    "as_completed": "for one in asyncio.as_completed([run, waits(run)], timeout=0.1): await one",
}
TIMED_OUT_311 = {
    "timeout": "async with asyncio.timeout(0.1): await run",
    "timeout around a coroutine": "async with asyncio.timeout(0.1): await waits(run)",
    "timeout around gather": "async with asyncio.timeout(0.1): await asyncio.gather(run, run)",
    "timeout around a group": "async with asyncio.timeout(0.1), asyncio.TaskGroup() as group: "
    "group.create_task(waits(run))",
    "timeout in a task": "async def limited():\n    async with asyncio.timeout(0.1): await run\n"
    "await asyncio.create_task(limited())",
    "a wait in a group": "async with asyncio.timeout(0.1), asyncio.TaskGroup(): await run",
}


@pytest.mark.parametrize(
    "code",
    [
        *TIMED_OUT.values(),
        *(pytest.param(code, marks=since_311) for code in TIMED_OUT_311.values()),
    ],
    ids=[*TIMED_OUT, *TIMED_OUT_311],
)
def test_a_timeout_is_a_timeout_error(kernel: Any, goes_on: None, code: str) -> None:
    assert kernel.run(code).ename == "TimeoutError"
    assert kernel.value("str(run.state), run.pids == pids") == ("RUNNING", True)


def test_a_cancelled_task_is_cancelled_at_once(kernel: Any, goes_on: None) -> None:
    assert kernel.value("""
task = asyncio.create_task(waits(run))
await asyncio.sleep(0.05)
_ = task.cancel()
for _ in range(2): await asyncio.sleep(0)
task.cancelled(), str(run.state)
""") == (True, "RUNNING")
    assert kernel.run("asyncio.current_task().cancel()\nawait run").ename == "CancelledError"
    assert kernel.value("str(run.state), run.pids == pids") == ("RUNNING", True)


def test_asyncio_wait_leaves_its_tasks_alone(kernel: Any, goes_on: None) -> None:
    assert kernel.value("""
tasks = [asyncio.ensure_future(run), asyncio.create_task(waits(run))]
done, pending = await asyncio.wait(tasks, timeout=0.1)
left = len(done), len(pending)
for task in tasks: task.cancel()
await asyncio.wait(tasks)
left, [task.cancelled() for task in tasks]
""") == ((0, 2), [True, True])


@since_311
def test_a_group_whose_other_task_fails_ends_the_wait_and_not_the_run(
    kernel: Any, goes_on: None
) -> None:
    assert kernel.value("""
async def fails():
    raise LookupError("the other one")
try:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(waits(run))
        _ = group.create_task(fails())
except ExceptionGroup as error:
    caught = [str(one) for one in error.exceptions]
caught, waiting.cancelled(), str(run.state)
""") == (["the other one"], True, "RUNNING")


def test_runs_come_as_they_are_completed(kernel: Any) -> None:
    assert kernel.value("""
slow, quick = launch(until_released, "slow", ranks=1), launch(lambda: "quick", ranks=1)
found = []
for one in asyncio.as_completed([slow, quick]):
    found.append(await one)
    (HOME / "slow").touch()
found, await asyncio.to_thread(slow.result)
""") == ([{0: "quick"}, {0: "slow"}], {0: "slow"})


# Interrupt.


def test_ipykernels_private_names_are_there(kernel: Any) -> None:
    assert kernel.value("running_cell.running() is None")
    assert kernel.value(
        "await asyncio.sleep(0)\nrunning_cell.running().interrupted, running_cell.in_cell_task()"
    ) == (False, True)
    assert (
        kernel.value(
            "async def ask(): return running_cell.in_cell_task()\nawait asyncio.create_task(ask())"
        )
        is False
    )


INTERRUPTED = {
    "await": ("await {run}", "KeyboardInterrupt"),
    "a coroutine": ("await waits({run})", "KeyboardInterrupt"),
    "a task": ("await asyncio.create_task(waits({run}))", "CancelledError"),
    "gather": ("await asyncio.gather({run}, waits({run}))", "CancelledError"),
    "wait": ("await asyncio.wait([asyncio.ensure_future({run})])", "CancelledError"),
    "wait_for": (
        "await asyncio.wait_for({run}, 1000)",
        None,
    ),  # a task of its own before Python 3.12
    "as_completed": ("for one in asyncio.as_completed([{run}]): await one", "CancelledError"),
    "shield": ("await asyncio.shield({run})", "CancelledError"),
    "to_thread": ("await asyncio.to_thread({run}.result)", "CancelledError"),
    "a wait that blocks": ("await asyncio.sleep(0)\n{run}.result()", "KeyboardInterrupt"),
    "a task that blocks": (
        "async def blocks(): {run}.result()\nawait asyncio.create_task(blocks())",
        "CancelledError",
    ),
}
INTERRUPTED_311 = {
    "timeout": ("async with asyncio.timeout(1000): await {run}", "KeyboardInterrupt"),
    "a group": (
        "async with asyncio.TaskGroup() as group: group.create_task(waits({run}))",
        "CancelledError",
    ),
}


@pytest.mark.parametrize(
    ("code", "ename"),
    [
        *INTERRUPTED.values(),
        *(pytest.param(*case, marks=since_311) for case in INTERRUPTED_311.values()),
    ],
    ids=[*INTERRUPTED, *INTERRUPTED_311],
)
def test_interrupt_stops_the_run_that_a_cell_waits_for(
    kernel: Any, code: str, ename: str | None, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.replace(" ", "-")
    blocks = "block" in name
    cell = kernel.start(
        f"mine = up(until_released, {name!r})\ntouch_when_it_waits({name!r}, blocks={blocks})\n"
        f"{code.format(run='mine')}"
    )
    kernel.until((kernel.home / f"waits-{name}").exists, "the cell waits")
    kernel.interrupt()
    assert cell.wait().ename in ([ename] if ename else ["KeyboardInterrupt", "CancelledError"])
    assert kernel.value("until(lambda: mine.state.over)\nstr(mine.state)") == "STOPPED"


@pytest.mark.parametrize("code", ["await mine", "await asyncio.gather(mine)"])
def test_the_loop_goes_on_until_a_second_interrupt_kills_the_run(kernel: Any, code: str) -> None:
    name = f"stubborn-{len(code)}"
    cell = kernel.start(f"""
async def ticks():
    while not (HOME / "refused-{name}").exists(): await asyncio.sleep(0.005)
    (HOME / "ticked-{name}").touch()
mine = up(stubborn, {name!r})
ticking = asyncio.create_task(ticks())
touch_when_it_waits({name!r})
{code}
""")
    kernel.until((kernel.home / f"waits-{name}").exists, "the cell waits")
    kernel.interrupt()
    kernel.until(
        (kernel.home / f"ticked-{name}").exists, "the loop sees that the rank refuses SIGTERM"
    )
    assert not cell.over
    kernel.interrupt()
    assert cell.wait().ename in ("KeyboardInterrupt", "CancelledError")
    assert kernel.value(
        "str(mine.state), {failure.signal for failure in mine.failures} <= {'SIGKILL'}"
    ) == ("STOPPED", True)


def test_a_task_of_an_earlier_cell_is_that_cells(kernel: Any) -> None:
    kernel.does("""
async def one_by_one():
    for name in ("first", "second"):
        background = up(until_released, name)
        await background
    return "both"
task = asyncio.create_task(one_by_one())
await asyncio.sleep(0)
""")
    for name in ("first", "second"):
        cell = kernel.start(
            "await asyncio.sleep(0)\n(HOME / 'asleep').touch()\n"
            "while True: await asyncio.sleep(0.01)"
        )
        kernel.until((kernel.home / "asleep").exists, "the cell sleeps")
        kernel.until((kernel.home / f"up-{name}").exists, "the run is up")
        (kernel.home / "asleep").unlink()
        kernel.interrupt()
        assert cell.wait().ename == "CancelledError"
        (kernel.home / name).touch()
    assert kernel.value("await task") == "both"


def test_interrupt_stops_the_run_of_an_earlier_cells_task_that_this_one_awaits(kernel: Any) -> None:
    kernel.does(
        "mine = up(until_released, 'earlier')\ntask = asyncio.create_task(waits(mine))\n"
        "await asyncio.sleep(0)"
    )
    code = "_ = asyncio.get_running_loop().call_soon((HOME / 'waits-earlier').touch)\nawait task"
    assert kernel.interrupted(code, "waits-earlier").ename == "CancelledError"
    assert kernel.value("str(mine.state), task.cancelled()") == ("STOPPED", True)


def test_a_cell_that_caught_an_interrupt_can_wait_again(kernel: Any) -> None:
    cell = kernel.start("""
before = signal.getsignal(signal.SIGINT)
mine = up(until_released, "caught")
touch_when_it_waits("caught")
try:
    await mine
except KeyboardInterrupt:
    after = signal.getsignal(signal.SIGINT)
    (HOME / "again").touch()
    kept = await launch(until_released, "again", ranks=1)
    try:
        await asyncio.wait_for(launch(until_released, "never", ranks=1), 0.1)
    except (TimeoutError, asyncio.TimeoutError):
        print("timed out", flush=True)
    other = up(until_released, "twice")
    touch_when_it_waits("twice")
    await other
""")
    kernel.until((kernel.home / "waits-caught").exists, "the cell waits")
    kernel.interrupt()
    kernel.until((kernel.home / "waits-twice").exists, "the cell waits again")
    kernel.interrupt()
    assert cell.wait().ename == "KeyboardInterrupt"
    assert "timed out" in cell.out
    assert kernel.value("before is after, kept, str(mine.state), str(other.state)") == (
        True,
        {0: "again"},
        "STOPPED",
        "STOPPED",
    )
    kernel.does("(HOME / 'never').touch()")


def test_interrupt_reaches_the_first_cell_of_a_kernel(bare_kernel: Any) -> None:
    cell = bare_kernel.start("""
import asyncio, pathlib, time
import icelaunch_nb as ice
def sleeps():
    print("up", flush=True)
    time.sleep(1000)
async def waits(run):
    return await run
run = ice.launch(sleeps, nproc_per_node=1, devices="cpu")
await asyncio.wait([asyncio.create_task(waits(run))])
""")
    cell.wait_for("up")
    bare_kernel.interrupt()
    assert cell.wait().ename == "CancelledError"
    assert bare_kernel.value("run.wait(30), str(run.state)") == (True, "STOPPED")
