"""`launch`, and the `Run` that it returns."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jobs
import numpy as np
import pytest

import icelaunch_nb as ice


def test_the_context_says_who_a_rank_is() -> None:
    run = ice.launch(jobs.everything_of_me, nproc_per_node=2, max_restarts=4, role="trainer")
    assert run.result(60)[1] == {
        "rank": 1,
        "local_rank": 1,
        "world_size": 2,
        "local_world_size": 2,
        "role": "trainer",
        "restart_count": 0,
        "max_restarts": 4,
        "run_id": run.run_id,
        "device": "cpu",
    }
    assert run.devices == {0: "cpu", 1: "cpu"}


def test_the_same_code_runs_under_torchrun(runs: Path) -> None:
    script = runs / "script.py"
    script.write_text("import jobs\nprint(sorted(jobs.everything_of_me().items()))\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=1",
            "--role=tr",
            str(script),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.path.dirname(jobs.__file__),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert (
        "('device', 'cpu'), ('local_rank', 0), ('local_world_size', 1), ('max_restarts', 0), "
        "('rank', 0)" in done.stdout
    )
    assert "('restart_count', 0), ('role', 'tr')" in done.stdout


def test_outside_of_a_rank_there_is_no_context() -> None:
    with pytest.raises(ice.IcelaunchError, match="this process is no rank"):
        ice.get_context()


def test_a_run_from_its_launch_to_its_success() -> None:
    def wait_for_resume() -> int:
        ice.get_context().events.resume.wait(60)
        return ice.get_context().rank

    run = ice.launch(wait_for_resume, nproc_per_node=2)
    assert not run.wait(0.05)
    deadline = time.monotonic() + 30
    while run.state != "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(run.pids) == [0, 1]
    assert repr(run).startswith(f"<Run {run.run_id}: RUNNING, 2 ranks, attempt 0, 0 restarts, ")
    assert repr(run).endswith(f" s, {run.log_dir}>")
    with pytest.raises(TimeoutError, match="goes on"):
        run.result(0.01)
    run.resume()
    assert run.result(60) == {0: 0, 1: 1}
    assert run.pids == {}
    assert run.failures == []


def test_await_gives_the_results() -> None:
    async def main() -> dict:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        values = await ice.launch(lambda: time.sleep(0.2) or 7, nproc_per_node=2)
        ticking.cancel()
        assert ticks > 5, "the event loop must go on"
        return values

    assert asyncio.run(main()) == {0: 7, 1: 7}


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="before Python 3.11, Ctrl+C ends the loop without cancelling its tasks",
)
def test_ctrl_c_stops_the_run_that_a_script_awaits() -> None:
    run = ice.launch(lambda: time.sleep(1000), nproc_per_node=1)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        await run

    # A background job of a shell ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.state == "STOPPED"


def test_stop_gives_grace_and_ends_in_stopped() -> None:
    def save_when_asked() -> None:
        import signal
        import sys

        def on_term(*_: object) -> None:
            print("saved")
            sys.exit(0)

        signal.signal(signal.SIGTERM, on_term)
        print("ready")
        time.sleep(60)

    run = ice.launch(save_when_asked, nproc_per_node=2)
    deadline = time.monotonic() + 30
    while "ready" not in run.logs(0) or "ready" not in run.logs(1):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.stop(grace=20)
    assert run.wait(0) or run.state in ("RUNNING", "STOPPING", "STOPPED")
    with pytest.raises(ice.RunStopped):
        run.result(30)
    assert run.state == "STOPPED"
    assert run.logs(0) == run.logs(1) == "ready\nsaved\n"


def test_kill_ends_ranks_that_ignore_sigterm(runs: Path) -> None:
    run = ice.launch(jobs.leave_children_and_wait, (str(runs / "child"),))
    deadline = time.monotonic() + 30
    while not (runs / "child").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.stop(grace=600)
    run.kill()
    assert run.wait(20)
    assert run.state == "STOPPED"


def test_a_later_stop_with_less_grace_counts(runs: Path) -> None:
    run = ice.launch(jobs.leave_children_and_wait, (str(runs / "child"),))
    deadline = time.monotonic() + 30
    while not (runs / "child").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.stop(grace=600)
    run.stop(grace=0.1)
    assert run.wait(20)
    assert run.state == "STOPPED"


def test_a_stop_before_the_agent_is_there_is_not_lost() -> None:
    run = ice.launch(time.sleep, (60,), nproc_per_node=2)
    run.stop(0)
    assert run.wait(60)
    assert run.state == "STOPPED"


def test_stacks_show_where_every_rank_is() -> None:
    def sit_in_c() -> None:
        import ctypes

        print("ready")
        ctypes.PyDLL(None).sleep(60)  # holds the GIL

    run = ice.launch(sit_in_c, nproc_per_node=2)
    deadline = time.monotonic() + 30
    while "ready" not in run.logs(0) or "ready" not in run.logs(1):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stacks = run.stacks()
    assert sorted(stacks) == [0, 1]
    assert all("in sit_in_c" in stack for stack in stacks.values())
    run.stop(0)
    assert run.wait(30)


def test_events_given_at_the_launch_are_the_ranks_events() -> None:
    events = ice.Events()
    events.progress_bar_total.value = 12

    def count(passed: ice.Events) -> tuple[int, bool]:
        mine = ice.get_context().events
        mine.progress_bar_iter.value = 5
        mine.paused.set()
        return passed.progress_bar_total.value, passed.paused.is_set()

    assert ice.launch(count, (events,), events=events).result(60) == {0: (12, True)}
    assert events.progress_bar_iter.value == 5
    assert events.paused.is_set()


def test_a_launch_from_another_thread() -> None:
    found: list = []
    thread = threading.Thread(
        target=lambda: found.append(ice.launch(jobs.all_reduce, nproc_per_node=2).result(60))
    )
    thread.start()
    thread.join(60)
    assert found == [{0: 1.0, 1: 1.0}]


def test_several_runs_live_side_by_side() -> None:
    running = [ice.launch(jobs.all_reduce, nproc_per_node=2) for _ in range(4)]
    assert [run.result(60) for run in running] == [{0: 1.0, 1: 1.0}] * 4


def test_sixty_four_ranks() -> None:
    assert ice.launch(jobs.all_reduce, nproc_per_node=64).result(100)[63] == sum(range(64))


def test_ranks_share_the_processors_as_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> tuple[int, str | None]:
        import torch

        return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")

    from icelaunch_nb.client.devices import usable_cpus

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for nproc in (1, 2):
        share = max(1, usable_cpus() // nproc)
        assert ice.launch(threads, nproc_per_node=nproc).result(60)[0] == (share, str(share))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert ice.launch(threads, nproc_per_node=1).result(60) == {0: (1, "1")}


def test_ranks_and_launches_draw_different_numbers() -> None:
    def draw() -> tuple[float, ...]:
        import random

        import torch

        return random.random(), float(np.random.rand()), torch.rand(1).item()

    draws = [
        rank for _ in range(2) for rank in ice.launch(draw, nproc_per_node=2).result(60).values()
    ]
    assert [len(set(numbers)) for numbers in zip(*draws, strict=True)] == [4, 4, 4]


def test_a_rank_has_multiprocessings_pipes_whole() -> None:
    def pipes() -> list[bool]:
        import stat
        from multiprocessing import forkserver, resource_tracker

        fds = [resource_tracker._resource_tracker._fd, forkserver._forkserver._forkserver_alive_fd]
        return [stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in fds if fd is not None]

    for _ in range(6):
        for whole in ice.launch(pipes, nproc_per_node=4, devices="cpu").result(60).values():
            assert all(whole) and whole


def test_large_results_arrive_whole_and_can_be_written_to() -> None:
    def large() -> dict:
        import torch

        base = torch.arange(1 << 20)
        return {
            "array": np.arange(3 << 20),
            "tensor": base,
            "view": base[5:],
            "bytes": bytes(2 << 20),
        }

    values = ice.launch(large).result(60)[0]
    assert (values["array"] == np.arange(3 << 20)).all()
    values["array"][0] = 7
    values["tensor"][5] = -1
    assert values["view"][0] == -1, "tensors that shared memory still share it"
    assert len(values["bytes"]) == 2 << 20


def test_a_rank_runs_its_exit_functions_and_joins_its_threads() -> None:
    def register(path: str) -> None:
        import atexit

        atexit.register(lambda: print("at exit"))
        threading.Thread(target=lambda: time.sleep(0.2) or print("thread done")).start()

    run = ice.launch(register, ("x",))
    run.result(60)
    assert run.logs(0) == "thread done\nat exit\n"


def test_another_process_can_read_a_run(runs: Path) -> None:
    run = ice.launch(jobs.all_reduce, nproc_per_node=2)
    run.result(60)
    code = (
        f"from icelaunch_nb import Run; run = Run({run.log_dir!r}); "
        f"print(run.state, run.result(), run.attempt)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "SUCCEEDED {0: 1.0, 1: 1.0} 0\n"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: ice.launch(None), "entrypoint"),
        (lambda: ice.launch(7), "entrypoint"),
        (lambda: ice.launch("no such script.py"), "entrypoint"),
        (lambda: ice.launch("./missing/program"), "entrypoint"),
        (lambda: ice.launch(""), "entrypoint"),
        (lambda: ice.launch(jobs.speak, "hello"), "args"),
        (lambda: ice.launch(jobs.speak, 5), "args"),
        (lambda: ice.launch(jobs.speak, kwargs=[1]), "kwargs"),
        (lambda: ice.launch(jobs.speak, kwargs={1: 2}), "kwargs"),
        (lambda: ice.launch("echo", kwargs={"a": 2}), "kwargs"),
        (lambda: ice.launch(jobs.speak, nproc_per_node=0), "nproc_per_node"),
        (lambda: ice.launch(jobs.speak, nproc_per_node="two"), "nproc_per_node"),
        (lambda: ice.launch(jobs.speak, nproc_per_node=True), "nproc_per_node"),
        (lambda: ice.launch(jobs.speak, devices="gpu"), "devices"),
        (lambda: ice.launch(jobs.speak, devices="cpu:3-1"), "devices"),
        (lambda: ice.launch(jobs.speak, devices="cpu:0-1", nproc_per_node=3), "nproc_per_node"),
        (lambda: ice.launch(jobs.speak, devices=[]), "devices"),
        (lambda: ice.launch(jobs.speak, max_restarts=-1), "max_restarts"),
        (lambda: ice.launch(jobs.speak, max_restart=1), "max_restart"),
        (lambda: ice.launch(jobs.speak, events="pause"), "events"),
        (lambda: ice.launch(jobs.speak, config={"nproc_per_node": 2}), "config"),
        (lambda: ice.launch(jobs.speak, tee="both"), "tee"),
        (lambda: ice.launch(jobs.speak, log_dir="/dev/null"), "log_dir"),
        (lambda: ice.launch(jobs.speak, ("a",), log_dir="/proc/nothing"), "log_dir"),
        (lambda: ice.launch(jobs.speak, inline=True, nproc_per_node=2), "inline"),
        (lambda: ice.launch("echo", inline=True), "inline"),
        (lambda: ice.launch(jobs.speak), "args"),
        (lambda: ice.launch(jobs.speak, ("a", "b")), "args"),
        (lambda: ice.launch(jobs.speak, kwargs={"wrod": "a"}), "kwargs"),
        (lambda: ice.launch(jobs.speak, ("a",), {"word": "b"}), "kwargs"),
        (lambda: ice.launch(jobs.speak, ("a",), detach="no"), "detach"),
        (lambda: ice.launch(jobs.speak, ("a",), inline=1), "inline"),
        (lambda: ice.launch(jobs.speak, ("a",), post_mortem="yes"), "post_mortem"),
        (lambda: ice.launch("echo", post_mortem=True), "post_mortem"),
        (
            lambda: ice.launch(
                jobs.speak, ("a",), rdzv_endpoint="localhost:0", rdzv_configs={"store_type": "nope"}
            ),
            "rdzv_configs",
        ),
        (lambda: ice.launch_agent(ice.LaunchConfig(1, 1, 1), jobs.speak, []), "args"),
        (lambda: ice.launch_agent(None, jobs.speak, []), "config"),
        (lambda: ice.launch_agent(ice.LaunchConfig(1, 1, 1), None, []), "entrypoint"),
        (lambda: ice.launch_agent(ice.LaunchConfig(1, 1, 1), jobs.speak, None), "args"),
    ],
)
def test_bad_input_is_answered_before_any_process_starts(call, field: str, runs: Path) -> None:
    with pytest.raises(ice.ConfigError) as caught:
        call()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}=")
    assert not list(runs.rglob("journal.jsonl"))


def test_what_cant_be_pickled_is_named_by_its_path(runs: Path) -> None:
    lock = threading.Lock()
    with pytest.raises(ice.PackingError, match=r"args\[1\]\['inner'\]\[0\] \(a _thread.lock\)"):
        ice.launch(jobs.raise_while_others_wait, (ValueError, {"inner": [lock]}, "note"))
    with pytest.raises(ice.PackingError, match=r"kwargs\['word'\]"):
        ice.launch(jobs.speak, kwargs={"word": lock})
    with pytest.raises(ice.PackingError, match="<lambda> → lock"):
        ice.launch(lambda: lock)
    assert not list(runs.rglob("spec.json"))


def test_a_decorated_function_takes_what_its_wrapper_takes() -> None:
    import functools

    def with_answer(fn):
        @functools.wraps(fn)
        def wrapper():
            return fn(42)

        return wrapper

    @with_answer
    def give(answer):
        return answer

    assert ice.launch(give).result(60) == {0: 42}
    with pytest.raises(ice.ConfigError, match="too many positional"):
        ice.launch(give, (1,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ice.Run:
    run = ice.launch(jobs.speak, ("word",), log_dir=str(tmp_path_factory.mktemp("runs")))
    run.wait(60)
    return run


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.logs("0"), "rank='0': this machine has 0"),
        (lambda run: run.logs(True), "rank=True: this machine has 0"),
        (lambda run: run.logs(9), "rank=9: this machine has 0"),
        (lambda run: run.logs(stream="out"), "stream='out': must be 'stdout' or 'stderr'"),
        (lambda run: run.logs(attempt=7), "attempt=7: there were 1, from 0"),
        (lambda run: run.logs(attempt="x"), "attempt='x': there were 1, from 0"),
        (lambda run: run.stop("soon"), "grace='soon': must be seconds"),
        (lambda run: run.stop(-1), "grace=-1: must be seconds"),
        (lambda run: run.stop(float("nan")), "grace=nan: must be seconds"),
        (lambda run: run.stop(float("inf")), "grace=inf: must be seconds"),
        (lambda run: run.wait("1"), "timeout='1': must be seconds"),
        (lambda run: run.wait(True), "timeout=True: must be seconds"),
        (lambda run: run.result(-1), "timeout=-1: must be seconds"),
        (lambda run: ice.runs().clean(keep=-1), "keep=-1: must be a number"),
        (lambda run: ice.runs().clean(keep="3"), "keep='3': must be a number"),
        (lambda run: ice.runs().clean(keep_bytes="1 GB"), "keep_bytes='1 GB': must be a number"),
        (lambda run: ice.attach(5), "run_id=5: must be a run's id"),
        (lambda run: ice.attach(["x"]), "must be a run's id"),
        (lambda run: ice.attach("a\n'b\0"), "there is no run"),
        (lambda run: ice.attach("/"), "/ is not the directory of a run"),
        (lambda run: ice.Run("/"), "/ is not the directory of a run"),
        (lambda run: ice.Events("/etc/passwd"), "/etc/passwd is no events board"),
    ],
)
def test_a_run_refuses_bad_input_and_loses_nothing(finished: ice.Run, call, message: str) -> None:
    with pytest.raises((ValueError, ice.IcelaunchError)) as caught:
        call(finished)
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert "print word" in finished.logs()


@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_a_program_inherits_its_streams_and_agent_alive_only(start_method: str) -> None:
    # The listing's own descriptor is closed by then.
    code = (
        "import os; fds = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]; "
        "print([os.path.basename(os.readlink(fd)) for fd in fds if os.path.exists(fd)])"
    )
    for _ in range(5):
        run = ice.launch(sys.executable, ("-c", code), start_method=start_method, devices="cpu")
        assert run.result(60) == {0: None}
        assert eval(run.logs()) == ["null", "stdout.log", "stderr.log", "agent_alive"]
