"""The error of a run names the rank that failed, at once, with the likely cause."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import jobs
import pytest

import icelaunch_nb as ice
from icelaunch_nb.system.processes import Process


def fails(fn, *args, nproc: int = 2, **kwargs) -> ice.RunFailed:
    with pytest.raises(ice.RunFailed) as caught:
        ice.launch(fn, args, nproc_per_node=nproc, **kwargs).result(60)
    return caught.value


def test_the_error_arrives_while_the_others_wait_in_a_barrier(runs: Path) -> None:
    error = fails(jobs.raise_while_others_wait, ZeroDivisionError, 1, str(runs / "raised"))
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert error.rank == 1
    assert str(error).splitlines()[-1] == "ZeroDivisionError: boom"
    assert "# the marker of this line" in str(error)
    assert "/torch/" not in str(error).split("logs:")[1]
    assert "multiprocessing" not in str(error)


def test_all_ranks_that_failed_are_listed_and_equal_ones_folded(runs: Path) -> None:
    def all_fail(here: Path) -> None:
        rank = ice.get_context().rank
        (here / f"up-{rank}").touch()
        # They start one after the other, and should fail together.
        while len(list(here.glob("up-*"))) < 4:
            time.sleep(0.0005)
        if rank == 3:
            time.sleep(0.005)
            raise KeyError("other")
        raise ValueError("same")

    # On a busy machine a rank may raise only after the others were ended for the first one.
    for number in range(10):
        (here := runs / str(number)).mkdir()
        error = fails(all_fail, here, nproc=4)
        if len(error.failures) == 4:
            break
    assert sorted(f.rank for f in error.failures) == [0, 1, 2, 3]
    assert [f.time for f in error.failures] == sorted(f.time for f in error.failures)
    assert "the same way" in str(error)
    assert str(error).count("ValueError: same") == 1
    assert "KeyError: 'other'" in str(error)


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("exit 0", "exited", "SystemExit: 0"),
        ("exit 3", "exited", "SystemExit: 3"),
        ("os._exit 0", "exited", "exited with code 0 before it returned"),
        ("interrupt", "raised", "KeyboardInterrupt"),
        ("SIGKILL", "killed", "killed by SIGKILL"),
        ("SIGTERM", "killed", "killed by SIGTERM"),
        ("SIGBUS", "killed", "killed by SIGBUS"),
        ("SIGABRT", "killed", "killed by SIGABRT"),
    ],
)
def test_a_rank_that_ends_without_returning_has_failed(how: str, kind: str, text: str) -> None:
    error = fails(jobs.end_by, how, 1)
    assert [(f.rank, f.kind) for f in error.failures] == [(1, kind)]
    assert text in str(error).splitlines()[-1]
    if how.startswith("SIG"):
        assert error.failures[0].exitcode == -getattr(signal, how)
        assert error.failures[0].signal == how
        assert "likely cause: " in error.failures[0].hint


def test_a_crash_in_c_shows_the_python_stack() -> None:
    def crash() -> None:
        import ctypes

        ctypes.string_at(0)  # reads address 0

    error = fails(crash, nproc=1)
    assert "Fatal Python error: Segmentation fault" in str(error)
    assert "in crash" in str(error)
    assert "icelaunch_nb/worker" not in str(error)


def test_a_killed_ranks_peer_is_not_taken_for_the_cause() -> None:
    def killed_in_a_collective() -> None:
        import os

        import torch.distributed as dist

        dist.init_process_group("gloo")
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()

    for _ in range(5):
        assert fails(killed_in_a_collective).rank == 1


def test_the_others_values_are_kept_where_one_cant_be_pickled() -> None:
    def unpicklable_on_one() -> object:
        import threading

        if ice.get_context().rank == 1:
            return {"state": [threading.Lock()]}
        time.sleep(0.3)
        return "fine"

    error = fails(unpicklable_on_one, nproc=3)
    assert error.results == {0: "fine", 2: "fine"}
    assert error.rank == 1
    assert "rank 1's result['state'][0] (a _thread.lock) can't be pickled" in str(error)


def test_nothing_survives_a_rank_that_cant_be_asked_to_go(runs: Path) -> None:
    """Rank 1 fails while rank 0 has a child, ignores SIGTERM, and holds the GIL in C code."""

    def one_fails(note: str) -> None:
        if ice.get_context().rank == 0:
            jobs.leave_children_and_wait(note)
        deadline = time.monotonic() + 120
        while not Path(note).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise RuntimeError("boom")

    note = runs / "child"
    assert fails(one_fails, str(note)).rank == 1
    child = Process.of(int(note.read_text()))
    assert child is None or not child.alive()


def test_frames_of_others_are_left_out_but_users_helpers_stay(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "my_helper.py").write_text(
        "import torch\n\ndef go():\n    torch.nn.Linear(2, 3)(torch.ones(5))  # wrong shape\n"
    )
    monkeypatch.syspath_prepend(str(runs))

    def use() -> None:
        import my_helper

        my_helper.go()

    message = str(fails(use, nproc=1))
    assert "my_helper.py:4, in go" in message
    assert "# wrong shape" in message
    assert "torch/nn/modules" not in message


def test_the_causes_of_an_exception_are_shown_too() -> None:
    def chained() -> None:
        try:
            {}["x"]
        except KeyError as error:
            raise ValueError("outer") from error

    message = str(fails(chained, nproc=1))
    assert (
        message.index("KeyError: 'x'")
        < message.index("direct cause")
        < message.index("ValueError: outer")
    )


def test_an_exception_that_cant_be_rebuilt_is_shown_as_text() -> None:
    def odd() -> None:
        class Odd(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__(f"{a} and {b}")

        raise Odd(1, 2)

    error = fails(odd, nproc=1)
    assert str(error).splitlines()[-1].endswith("Odd: 1 and 2")


def test_a_module_that_the_rank_cant_import_is_named(runs: Path) -> None:
    """The rank loads it from the file that it came from, which has changed since."""
    import importlib.util
    import sys

    file = runs / "off_the_path.py"
    file.write_text("def work():\n    return 1")
    spec = importlib.util.spec_from_file_location("off_the_path", file)
    module = sys.modules["off_the_path"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        assert ice.launch(module.work, nproc_per_node=1).result(60) == {0: 1}
        file.write_text("import surely_not_there")
        error = fails(module.work, nproc=1, max_restarts=3)
    finally:
        del sys.modules["off_the_path"]
    assert error.failures[0].kind == "loading"
    assert "ModuleNotFoundError: No module named 'surely_not_there'" in str(error)
    assert error.attempt == 0


@pytest.mark.parametrize(
    ("name", "source"), [("types.py", "import surely_not_there"), ("signal.py", "SIGNALS = 5")]
)
def test_a_file_that_stands_in_for_the_standard_library_is_named(
    runs: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    """A spawned rank fails before any line of ours runs there; a forked one never imports it."""
    (runs / name).write_text(source)
    monkeypatch.chdir(runs)
    with pytest.raises(ice.RunFailed) as raised:
        ice.launch(jobs.all_reduce, nproc_per_node=1, devices="cpu", start_method="spawn").result(
            60
        )
    assert (
        f"{runs / name} was imported in place of the standard library's module {name[:-3]!r}"
        in str(raised.value)
    )
    assert "Error: " in str(raised.value), "the text of what failed"
    assert ice.launch(jobs.all_reduce, nproc_per_node=1, devices="cpu").result(60) == {0: 0.0}
