"""A run is left, and attached to in another kernel: all of it is there, and all of it works."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from typing import Any

import psutil
import pytest

WORK = """
def work(fail):
    context = ice.get_context()
    print("first line of rank", context.rank)
    for step in context.steps(iter(int, 1)):
        context.report(loss=1 / (1 + context.rank))
        if context.should_checkpoint():
            context.checkpoint_saved(f"step of rank {context.rank}")
        if (HOME / "go").exists():
            break
        time.sleep(0.005)
    if fail and context.rank == 1:
        raise ValueError("the end of it")
    return f"rank {context.rank} is back"
"""


def end_kernel(kernel: Any, how: str) -> None:
    """Ends the kernel in this way."""
    {"restart": kernel.restart, "shutdown": kernel.shutdown, "crash": kernel.kill}[how]()


@pytest.mark.parametrize("how", ["restart", "shutdown", "crash"])
@pytest.mark.parametrize("detach", ["at launch", "later"])
def test_a_detached_run_is_all_there_in_another_kernel(
    how: str, detach: str, fresh_kernel: Any, another: Any
) -> None:
    fresh_kernel.does(WORK)
    fresh_kernel.does(
        f"run = launch(work, False, detach={detach == 'at launch'}, "
        f"run_id='left-{os.getpid()}-{how}-{len(detach)}')"
    )
    fresh_kernel.does("until(lambda: run.state == 'RUNNING' and 'first line' in run.logs(1))")
    if detach == "later":
        fresh_kernel.does("run.detach()")
    end_kernel(fresh_kernel, how)

    another.does(f"run = ice.attach('left-{os.getpid()}-{how}-{len(detach)}')")
    assert another.value("str(run.state), sorted(run.pids), run.log_dir") == (
        "RUNNING",
        [0, 1],
        another.value("run.log_dir"),
    )
    assert another.value("[run.logs(rank).splitlines()[0] for rank in (0, 1)]") == [
        "first line of rank 0",
        "first line of rank 1",
    ]
    assert another.value(
        "run.panel().run_state['state'], len(run.panel().run_state['attempts'][-1]['ranks'])"
    ) == ("RUNNING", 2)
    assert sorted(another.value("list(run.stacks())")) == [0, 1]
    another.does("run.pause()")
    another.until(lambda: another.value("str(run.state)") == "PAUSED", "it pauses")
    another.does("run.resume()\nrun.save_checkpoint()")
    another.until(
        lambda: "step of rank" in another.value("str(run.last_checkpoint)"),
        "the checkpoint is there",
    )
    assert another.value("len(run.metrics()) > 0")
    (fresh_kernel.home / "go").touch()
    done = another.run("run.result(30)")
    assert done.literal == {0: "rank 0 is back", 1: "rank 1 is back"}
    assert "first line of rank 0" in done.out and "first line of rank 1" in done.out, (
        "whoever waits is shown the logs from the first line on"
    )
    fresh_kernel.leaves_nobody()


def test_failures_are_raised_in_another_kernel(fresh_kernel: Any, another: Any) -> None:
    fresh_kernel.does(WORK)
    path = fresh_kernel.value(
        "run = launch(work, True, detach=True); until(lambda: run.state == 'RUNNING'); run.log_dir"
    )
    fresh_kernel.kill()
    (fresh_kernel.home / "go").touch()
    cell = another.run(f"run = ice.attach({path!r}); run.result(30)")
    assert cell.ename == "RunFailed"
    assert re.search(
        r"rank 1 of 2 failed.*Cell In\[\d+\].*ValueError: the end of it", cell.error, re.S
    )
    assert another.value("[(f.rank, f.title) for f in run.failures], str(run.state)") == (
        [(1, "ValueError: the end of it")],
        "FAILED",
    )


@pytest.mark.parametrize("call", ["stop(5)", "kill()"])
def test_controls_work_from_another_kernel(call: str, fresh_kernel: Any, another: Any) -> None:
    fresh_kernel.does(WORK)
    path = fresh_kernel.value(
        "run = launch(work, False, detach=True); until(lambda: run.state == 'RUNNING'); run.log_dir"
    )
    fresh_kernel.shutdown()
    another.does(f"run = ice.attach({path!r}); run.{call}; run.wait(30)")
    assert another.value("str(run.state)") == "STOPPED"
    fresh_kernel.leaves_nobody()


def test_two_kernels_watch_one_run(fresh_kernel: Any, another: Any) -> None:
    fresh_kernel.does(WORK)
    path = fresh_kernel.value(
        "run = launch(work, False); until(lambda: run.state == 'RUNNING'); run.log_dir"
    )
    another.does(f"run = ice.attach({path!r}); run.pause()")
    for kernel in (fresh_kernel, another):
        kernel.until(
            lambda: kernel.value("str(run.state), run.panel().run is run") == ("PAUSED", True),
            "both see the pause",
        )
    fresh_kernel.does("run.resume()")
    another.until(lambda: another.value("str(run.state)") == "RUNNING", "and its end")
    (fresh_kernel.home / "go").touch()
    results = [kernel.value("run.result(30)") for kernel in (fresh_kernel, another)]
    assert results == [{0: "rank 0 is back", 1: "rank 1 is back"}] * 2
    assert [
        kernel.value("(run.logs(0), run.failures, run.restarts)")
        for kernel in (fresh_kernel, another)
    ] == [("first line of rank 0\n", [], 0)] * 2


def test_an_attached_kernel_sees_the_end_of_the_launching_one(
    fresh_kernel: Any, another: Any
) -> None:
    fresh_kernel.does(WORK)
    path = fresh_kernel.value(
        "run = launch(work, False); until(lambda: run.state == 'RUNNING'); run.log_dir"
    )
    another.does(f"run = ice.attach({path!r})")
    fresh_kernel.kill()
    another.until(lambda: another.value("str(run.state)") == "STOPPED", "the run has ended")
    assert another.value("run._run_state.end.note") == "its kernel ended"
    fresh_kernel.leaves_nobody()


def test_after_a_power_cut_the_run_is_lost_and_its_logs_are_kept(
    fresh_kernel: Any, another: Any
) -> None:
    """SIGKILL of every process at once, so that none can write how the run ended."""
    fresh_kernel.does(WORK)
    path = fresh_kernel.value(
        "run = launch(work, False, detach=True); until(lambda: 'first line' in run.logs(1)); "
        "run.log_dir"
    )
    everybody = [psutil.Process(fresh_kernel.pid), *fresh_kernel.leftovers()]
    for process in everybody:
        process.suspend()
    for process in everybody:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    fresh_kernel.leaves_nobody()
    another.until(
        lambda: another.value(f"run = ice.attach({path!r}); str(run.state)") == "LOST", "it is lost"
    )
    assert another.value("run.logs(0)") == "first line of rank 0\n"
    shown = another.value("from icelaunch_nb.notebook.panel import summary; summary.text(run)")
    assert "a power cut" in shown and "first line of rank 0" in shown
    assert "LOST" in another.value("repr(run)") and another.run("run.result()").ename == "RunLost"
    listed = another.value(
        "next(line for line in repr(ice.runs()).splitlines() if run.log_dir in line)"
    )
    assert "LOST" in listed


def test_the_list_of_runs_shows_all_columns(fresh_kernel: Any) -> None:
    fresh_kernel.does("""
def flaky():
    if ice.get_context().restart_count == 0:
        raise OSError("not yet")
    return bytes(3_000_000)
launch(flaky, run_id="over-and-done", max_restarts=2, ranks=3).result()
living = launch(lambda: ice.get_context().events.resume.wait(60), run_id="still-here")
until(lambda: living.state == "RUNNING")
""")
    head, *rows = fresh_kernel.value(
        "[line for line in repr(ice.runs()).splitlines() if line.startswith(('run_id', "
        "'over-and', 'still-'))]"
    )
    assert re.split(r" {2,}", head) == [
        "run_id",
        "function",
        "state",
        "ranks",
        "restarts",
        "started",
        "took",
        "on disk",
        "log_dir",
    ]
    living, over = [re.split(r" {2,}", row) for row in rows]
    assert living[:5] == ["still-here", "<lambda>", "RUNNING", "2", "0"]
    assert over[:5] == ["over-and-done", "flaky", "SUCCEEDED", "3", "1"]
    assert re.fullmatch(r"\d+\.\d (s|min) ago", over[5]) and re.fullmatch(r"9\.\d MB", over[7])
    fresh_kernel.does("living.resume(); living.result()")
