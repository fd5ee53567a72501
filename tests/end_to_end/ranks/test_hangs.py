"""Ranks that hang are marked with where they are. The odd one's stack comes first."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from test_debugger import line_of as line_in
from test_events import wait_for

import icelaunch_nb as ice
from icelaunch_nb.rundir import stacks
from icelaunch_nb.rundir.journal import read_events
from icelaunch_nb.system.processes import Process

HERE = Path(__file__).name


def line_at(marker: str) -> str:
    """The line with this comment, as a run names it."""
    return f"{HERE}, line {line_in(marker, __file__)}"


def events_of(run: ice.Run, kind: str) -> list[str]:
    return [
        event.text
        for event in read_events(run._dir.journal, 0)[0]
        if getattr(event, "kind", None) == kind
    ]


def hang_together() -> str:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    events = ice.get_context().events
    if dist.get_rank() == 2:
        events.resume.wait()  # the culprit
    dist.barrier()  # the victims
    print("spoke")
    events.pause.wait()
    return "whole"


def test_silent_ranks_are_marked_with_where_they_stand_and_the_mark_goes() -> None:
    run = ice.launch(hang_together, nproc_per_node=4, hang_after=0.6)
    expected = {
        0: line_at("the victims"),
        1: line_at("the victims"),
        2: line_at("the culprit"),
        3: line_at("the victims"),
    }
    # On a busy machine a rank may be silent on its way there, too.
    wait_for(lambda: run.silent == expected)
    shown = repr(run)
    assert shown.index(f"rank 2 silent at {line_at('the culprit')}") < shown.index(
        f"ranks 0, 1, 3 silent at {line_at('the victims')}"
    )
    assert any(
        text.startswith("rank 2 silent for ") and text.endswith(line_at("the culprit"))
        for text in events_of(run, "silent")
    )
    run.events.resume.set()
    wait_for(lambda: events_of(run, "recovered"))
    wait_for(lambda: len(run.silent) == 4)  # and again, at another line
    run.events.pause.set()
    assert run.result(30) == dict.fromkeys(range(4), "whole")
    assert run.silent == {}


def test_a_rank_that_steps_or_prints_is_not_silent_and_none_means_never() -> None:
    def steps_and_prints() -> None:
        ctx = ice.get_context()
        deadline = time.monotonic() + 4
        for step in ctx.steps(iter(lambda: time.monotonic() > deadline, True)):
            time.sleep(0.1)
            if ctx.rank == 1 and step:
                break
        while time.monotonic() < deadline:
            time.sleep(0.1)
            print("." if ctx.rank == 1 else "", end="")

    # Two seconds are twenty times what a step or a line takes.
    run = ice.launch(steps_and_prints, nproc_per_node=2, hang_after=2)
    run.result(60)
    assert events_of(run, "silent") == []
    run = ice.launch(time.sleep, (1.5,), hang_after=None)
    run.result(30)
    assert events_of(run, "silent") == []


def test_the_default_of_hang_after_is_sixty_seconds() -> None:
    run = ice.launch(time.sleep, (0,))
    run.result(30)
    assert run._spec.hang_after == 60


def test_no_rank_is_silent_while_one_is_in_the_debugger_or_the_run_is_paused() -> None:
    def stops() -> int:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        made = 0
        for _ in ice.get_context().steps(range(10**9)):
            made += 1
            dist.barrier()
            if made == 5 and ice.get_context().rank == 0:
                breakpoint()
        return made

    run = ice.launch(stops, nproc_per_node=2, hang_after=0.4)
    wait_for(lambda: run.in_debugger)
    time.sleep(1.5)
    assert run.silent == {}
    run.pause()
    run.debug(0, ["c"])
    wait_for(run.events.paused.is_set)
    time.sleep(1.5)
    assert run.silent == {} and events_of(run, "silent") == []
    run.stop()
    run.result(30)


@pytest.mark.parametrize("wrong", [0, -1, "60", True, float("nan")])
def test_a_wrong_hang_after_is_refused(wrong: object) -> None:
    with pytest.raises(ice.ConfigError, match="hang_after"):
        ice.launch(hang_together, hang_after=wrong)


def test_a_child_that_dies_in_the_debugger_does_not_leave_its_rank_there() -> None:
    def forks() -> str:
        child = os.fork()
        if child == 0:
            breakpoint()
            os._exit(0)
        ice.get_context().events.progress_bar_iter.value = child
        os.waitpid(child, 0)
        ice.get_context().events.resume.wait()
        return "whole"

    run = ice.launch(forks)
    wait_for(lambda: run.in_debugger and run.events.progress_bar_iter.value)
    Process.of(run.events.progress_bar_iter.value).send(signal.SIGKILL)
    wait_for(lambda: not run.in_debugger)
    assert run.events.debugger_end.is_set() and not run.events.debugger_start.is_set()
    run.events.resume.set()
    assert run.result(30) == {0: "whole"}


def test_stacks_come_from_c_calls_too_and_equal_ones_are_folded() -> None:
    def sits() -> None:
        print("sits")
        if ice.get_context().rank == 1:
            while True:
                ctypes.PyDLL(None).sleep(100)  # holds the GIL; a signal ends it
        time.sleep(100)

    run = ice.launch(sits, nproc_per_node=3)
    wait_for(lambda: all(run.logs(rank) for rank in range(3)) if run.pids else False)
    time.sleep(0.2)
    found = run.stacks()
    assert [ranks for ranks, _ in found.groups] == [[1], [0, 2]]
    assert (
        f"line {line_in('holds the GIL; a signal ends it', __file__)} in sits" in found[1]
        and "worker/main.py" not in found[1]
    )
    assert repr(found).startswith("rank 1:\n") and "\nranks 0, 2:\n" in repr(found)
    assert found._repr_html_().count("<details") == 2
    run.kill()
    run.wait(20)
    assert run.stacks() == {}


def test_a_rank_survives_a_request_for_stacks_that_comes_too_early() -> None:
    run = ice.launch(time.sleep, (0.3,), nproc_per_node=4)
    while not run.state.over:
        run.stacks(0)
    assert run.state == "SUCCEEDED"


def test_stacks_of_a_program_come_from_py_spy_or_say_why_not(monkeypatch, runs) -> None:
    script = runs / "script.py"
    script.write_text("""
import os, time
def odd(): time.sleep(100)
def even(): time.sleep(100)
print("sits", flush=True)
odd() if os.environ["RANK"] == "1" else even()
""")
    run = ice.launch(str(script), nproc_per_node=3)
    wait_for(lambda: all(run.logs(rank) for rank in range(3)) if run.pids else False)
    seen = run.stacks(20)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)  # as where py-spy isn't installed
    unseen = run.stacks(20)
    run.kill()
    run.wait(20)
    assert unseen == dict.fromkeys(range(3), "")
    ((ranks, reason),) = unseen.groups
    assert ranks == [0, 1, 2] and "a program's ranks" in reason and "py-spy" in reason
    if not any(seen.values()):
        pytest.skip("py-spy is not installed, or may not look into the ranks here")
    assert [ranks for ranks, _ in seen.groups] == [[1], [0, 2]]
    assert (
        "odd (script.py:3)" in seen[1]
        and "even (script.py:4)" in seen[0]
        and "even (script.py:4)" in seen[2]
    )


def test_py_spy_adds_native_frames_where_it_may(monkeypatch, tmp_path) -> None:
    if not shutil.which("py-spy", path=os.path.dirname(sys.executable)):
        pytest.skip("py-spy is not installed")

    def sits() -> str:
        ice.get_context().events.resume.wait()
        return "whole"

    run = ice.launch(sits, nproc_per_node=2)
    wait_for(
        lambda: (
            all(
                "sits" in text
                for text in stacks.collect(run._dir, run.attempt, run._run_state.ranks, 3).values()
            )
            if run.pids
            else False
        )
    )
    started = time.monotonic()
    seen = stacks.dump_native(run.pids, 20)
    if not seen:
        run.kill()
        run.wait(20)
        pytest.skip("py-spy may not look into the ranks here")
    assert "sits" in seen[0] and ("libc" in seen[0] or "libpython" in seen[0])
    # One that takes too long is left, and its rank goes on.
    assert stacks.dump_native(run.pids, 0.6) is not None
    slow = tmp_path / "py-spy"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    started = time.monotonic()
    assert "sits" in run.stacks(1)[0]
    assert time.monotonic() - started < 50, "it waits for py-spy"
    run.events.resume.set()
    assert run.result(30) == {0: "whole", 1: "whole"}
