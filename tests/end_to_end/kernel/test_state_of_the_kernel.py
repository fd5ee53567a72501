"""A launch leaves the kernel as it was. The `Run` that it returns says how the run stands."""

from __future__ import annotations

import re
from typing import Any

import pytest

SNAPSHOT = """
import contextlib, gc, multiprocessing, threading, warnings

forks = []
os.register_at_fork(before=lambda: forks.append(os.getpid()))

def snapshot():
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
    signals += [signal.SIGCHLD, signal.SIGUSR1, signal.SIGPIPE, signal.SIGIO]
    return {
        "handlers": [signal.getsignal(signum) for signum in signals],
        "wakeup": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "environment": dict(os.environ),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "children": len(multiprocessing.active_children()),
        "cwd": os.getcwd(), "path": list(sys.path), "argv": list(sys.argv),
        "main": id(sys.modules["__main__"]),
        "streams": (id(sys.stdout), id(sys.stderr), id(sys.stdin)),
        "hooks": (sys.excepthook, threading.excepthook, sys.displayhook),
        "filters": list(warnings.filters),
        "umask": os.umask(0o22) and os.umask(0o22),
    }

def fds():
    gc.collect()
    names = []
    for fd in os.listdir("/proc/self/fd"):
        # The listing's own descriptor is closed by now, and IPython's history closes some.
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum("history.sqlite" not in name for name in names)
"""


def test_the_kernel_has_the_ipykernel_that_the_option_names(
    kernel: Any, request: pytest.FixtureRequest
) -> None:
    assert kernel.value("import ipykernel; ipykernel.__version__").split(".")[
        0
    ] == request.config.getoption("ipykernel")


def test_a_launch_leaves_the_kernel_as_it_was(fresh_kernel: Any) -> None:
    fresh_kernel.does(SNAPSHOT)
    fresh_kernel.does("before, open_before = snapshot(), fds()")
    assert fresh_kernel.value("run = launch(lambda: 1); run.result()") == {0: 1, 1: 1}
    fresh_kernel.does("def fail():\n    raise ValueError")
    assert fresh_kernel.run("results(fail)").ename == "RunFailed"
    fresh_kernel.does("stopped = launch(lambda: time.sleep(99)); stopped.stop(1); stopped.wait()")
    fresh_kernel.does("after = snapshot()")
    assert (
        fresh_kernel.run("[name for name in before if before[name] != after[name]]").value == "[]"
    )
    assert fresh_kernel.value("forks") == []
    assert (
        fresh_kernel.value(
            "[name for name in ('torch', 'numpy', 'ipywidgets') if name in sys.modules]"
        )
        == []
    )
    fresh_kernel.does("until(lambda: fds() <= open_before + 2, 5)  # the host's socket and log")


def test_many_launches_leave_threads_and_files_flat(kernel: Any) -> None:
    kernel.does(SNAPSHOT)
    kernel.does("results(lambda: 0)")
    kernel.does("before, open_before = snapshot(), fds()")
    assert kernel.value("[results(lambda: n)[1] for n in range(20)]", 120) == list(range(20))
    kernel.does("after = snapshot()")
    assert kernel.run("[name for name in before if before[name] != after[name]]").value == "[]"
    kernel.does("until(lambda: fds() <= open_before)")
    assert kernel.value("forks") == []
    kernel.until(
        lambda: len(kernel.leftovers()) <= 1 + 2 + 2 + 2,
        "host, forkserver with its tracker, a spare agent with its tracker and its ranks",
    )


def test_the_launch_returns_at_once_even_when_the_host_is_cold(fresh_kernel: Any) -> None:
    for n in (1, 2):  # each starts a host of its own
        fresh_kernel.does(
            f"os.environ['OMP_NUM_THREADS'] = '{n}'\nrun = launch(lambda: 1)\n"
            f"state = str(run.state)"
        )
        assert fresh_kernel.value("state") == "STARTING"
    assert fresh_kernel.value("run.result()") == {0: 1, 1: 1}


def test_the_repr_is_one_line_with_state_ranks_attempt_and_time(kernel: Any) -> None:
    kernel.does("run = launch(lambda: 1); run.result()")
    shown = kernel.value("repr(run)")
    assert "\n" not in shown
    log_dir = re.escape(kernel.value("run.log_dir"))
    assert re.fullmatch(
        rf"<Run \w+: SUCCEEDED, 2 ranks, attempt 0, 0 restarts, \d+\.\d s, {log_dir}>", shown
    )
    kernel.does(
        "def fail():\n    raise ValueError('several\\nlines')\nfailed = launch(fail); failed.wait()"
    )
    shown = kernel.value("repr(failed)")
    assert "\n" not in shown and "FAILED" in shown and "ValueError" in shown


def test_states_pids_and_logs_of_a_run(kernel: Any) -> None:
    kernel.does("""
go = HOME / "go-states"
def work():
    print("rank", os.environ["RANK"], "says hello")
    print("and complains", file=sys.stderr)
    until(go.exists)
run = launch(work)
states = [run.state]
def printed():
    return all("complains" in run.logs(rank, "stderr") for rank in (0, 1))
until(lambda: run.state == "RUNNING" and printed())
states.append(run.state)
""")
    pids = kernel.value("run.pids")
    assert sorted(pids) == [0, 1] and len(set(pids.values())) == 2
    assert set(pids.values()) <= {process.pid for process in kernel.leftovers()}
    assert kernel.value("[run.logs(rank) for rank in (0, 1)]") == [
        "rank 0 says hello\n",
        "rank 1 says hello\n",
    ]
    assert kernel.value("run.logs(1, 'stderr')") == "and complains\n"
    cell = kernel.does(
        "go.touch(); run.wait(); states.append(run.state); [str(state) for state in states]"
    )
    assert cell.literal in (
        ["STARTING", "RUNNING", "SUCCEEDED"],
        ["RUNNING", "RUNNING", "SUCCEEDED"],
    )
    assert (
        "[default_role0]:rank 0 says hello\n" in cell.out
        and "[default_role1]:and complains\n" in cell.err
    )
    assert kernel.value("run.pids, run.failures, run.attempt, run.restarts") == ({}, [], 0, 0)
    assert kernel.value("run.logs(0)") == "rank 0 says hello\n"
    assert kernel.value("(os.stat(run.log_dir).st_mode & 0o777)") == 0o700


def test_a_restarted_run_says_so(kernel: Any) -> None:
    kernel.does("""
def flaky():
    context = ice.get_context()
    print("attempt", context.restart_count)
    if context.rank == 1 and context.restart_count < 2:
        raise OSError("not yet")  # a failure of rank 0 might end rank 1 before it prints
    return context.restart_count, context.max_restarts
run = launch(flaky, max_restarts=3)
run.wait()
""")
    assert kernel.value("run.result()") == {0: (2, 3), 1: (2, 3)}
    assert kernel.value("run.restarts, run.attempt, str(run.state)") == (2, 2, "SUCCEEDED")
    assert kernel.value("[run.logs(1, attempt=n) for n in range(3)]") == [
        f"attempt {n}\n" for n in range(3)
    ]


def test_stop_ends_a_background_run(kernel: Any) -> None:
    kernel.does(
        "def forever():\n    while True:\n        time.sleep(0.02)\nrun = launch(forever)\n"
        "until(lambda: run.state == 'RUNNING')"
    )
    kernel.does("run.stop(5); until(lambda: run.state in ('STOPPING', 'STOPPED'))")
    assert kernel.value("run.wait(30), str(run.state), run.pids") == (True, "STOPPED", {})
    assert kernel.run("run.result()").ename == "RunStopped"
    assert kernel.value("late = launch(forever); late.stop(1); late.wait(30), str(late.state)") == (
        True,
        "STOPPED",
    )


def test_two_runs_at_the_same_time(kernel: Any) -> None:
    kernel.does("""
def meet(mine, other):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    (HOME / f"met-{mine}-{dist.get_rank()}").touch()
    until(lambda: all((HOME / f"met-{other}-{rank}").exists() for rank in (0, 1)))
    x = torch.ones(1)
    dist.all_reduce(x)
    dist.destroy_process_group()
    return x.item()
one, two = launch(meet, "one", "two"), launch(meet, "two", "one")
""")
    assert kernel.value("two.result(), one.result()") == ({0: 2.0, 1: 2.0}, {0: 2.0, 1: 2.0})


def test_runs_awaited_together_do_not_block_the_kernel(kernel: Any) -> None:
    assert kernel.value("""
import asyncio
ticks = 0
async def tick():
    global ticks
    while True:
        ticks += 1
        await asyncio.sleep(0.01)
ticking = asyncio.ensure_future(tick())
def later(value):
    time.sleep(0.5)
    return value
both = await asyncio.gather(launch(later, 1), launch(later, 2))
_ = ticking.cancel()
both, ticks > 10
""") == ([{0: 1, 1: 1}, {0: 2, 1: 2}], True)


def test_a_launch_from_a_thread(kernel: Any) -> None:
    assert kernel.value("""
import threading
found = {}
def launch_and_wait(n):
    found[n] = results(lambda: n)
threads = [threading.Thread(target=launch_and_wait, args=(n,)) for n in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
dict(sorted(found.items()))
""") == {n: {0: n, 1: n} for n in range(3)}


def test_a_run_that_no_cell_waits_for_prints_into_no_cell(kernel: Any) -> None:
    kernel.does("run = launch(lambda: print('from a rank'))")
    cell = kernel.does("until(lambda: run.state.over)")
    assert (cell.out, cell.err) == ("", "")
    assert kernel.value("run.logs()") == "from a rank\n"


def test_loading_the_extension_starts_a_host_and_imports_no_torch(bare_kernel: Any) -> None:
    bare_kernel.does("%load_ext icelaunch_nb")
    bare_kernel.until(lambda: len(bare_kernel.host()) == 1, "the host is there")
    bare_kernel.does("%reload_ext icelaunch_nb")
    assert len(bare_kernel.host()) == 1
    assert bare_kernel.value("import sys; 'torch' in sys.modules") is False
