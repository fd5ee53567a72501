"""However a kernel ends, no process of its runs is left within `GONE_WITHIN` seconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

# Functions whose ranks are hard to end. Each rank makes a file once it is in its loop or call.
TROUBLEMAKERS = {
    "plain": "def plain():\n    here('plain')\n    while True:\n        time.sleep(0.05)",
    "a C call that holds the GIL": (
        "def gil():\n    import ctypes\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    here('gil')\n    ctypes.PyDLL(None).sleep(1000)"
    ),
    "children": (
        "def children():\n    import subprocess\n    subprocess.Popen(['sleep', '999'])\n"
        "    subprocess.Popen(['sh', '-c', 'trap \"\" TERM INT HUP; sleep 999; sleep 999'])\n"
        "    here('children')\n    time.sleep(999)"
    ),
    "DataLoader workers": (
        "def loading():\n    import torch\n    class Endless(torch.utils.data.IterableDataset):\n"
        "        def __iter__(self):\n"
        "            while True:\n                yield 1\n"
        "    for _ in torch.utils.data.DataLoader(Endless(), num_workers=2):\n"
        "        here('loading')\n        time.sleep(0.05)"
    ),
}
HERE = "def here(what):\n    (HOME / f'here-{what}-{os.environ[\"RANK\"]}').touch()"


def start_troublemakers(kernel: Any) -> None:
    kernel.does("\n".join([HERE, *TROUBLEMAKERS.values()]))
    kernel.does(
        "runs = [launch(plain), launch(gil), launch(children, ranks=1), launch(loading, ranks=1)]"
    )
    expected = ["plain-0", "plain-1", "gil-0", "gil-1", "children-0", "loading-0"]
    kernel.until(
        lambda: all((kernel.home / f"here-{name}").exists() for name in expected),
        "all troublemakers are up",
    )
    assert len(kernel.leftovers()) >= 1 + 1 + 4 + 6 + 2 + 2, (
        "host, forkserver, agents, ranks, subprocesses, DataLoader workers"
    )


def agent_of(kernel: Any, run: str) -> int:
    """The pid of a run's agent, from its journal."""
    journal = Path(kernel.value(f"{run}.log_dir")) / "journal.jsonl"
    return next(
        event["pid"]
        for event in map(json.loads, journal.read_text().splitlines())
        if event["event"] == "agent"
    )


@pytest.mark.parametrize("end", ["kill", "restart", "shutdown"])
def test_nothing_is_left(fresh_kernel: Any, end: str) -> None:
    start_troublemakers(fresh_kernel)
    before = fresh_kernel.leftovers()
    path = fresh_kernel.value("runs[1].log_dir")
    if end == "kill":
        fresh_kernel.start("print('waiting', flush=True); runs[0].result()").wait_for("waiting")
    getattr(fresh_kernel, end)()
    fresh_kernel.leaves_nobody(seen=before)
    if end == "restart":
        fresh_kernel.does("import icelaunch_nb as ice\ndef fn():\n    return 'again'")
        assert fresh_kernel.value("ice.launch(fn, nproc_per_node=2).result()") == {
            0: "again",
            1: "again",
        }
        the_run_says_why_it_ended(fresh_kernel, path)


def the_run_says_why_it_ended(fresh_kernel: Any, path: str) -> None:
    fresh_kernel.does(f"from icelaunch_nb.client.run import attach_to\nrun = attach_to({path!r})")
    assert fresh_kernel.value("str(run.state), run.pids") == ("STOPPED", {})
    assert "its kernel ended" in fresh_kernel.run("run.result()").evalue


def test_a_kernel_killed_while_its_host_is_cold(fresh_kernel: Any) -> None:
    fresh_kernel.does(
        "def fn():\n    (HOME / 'ran').touch()\n    time.sleep(999)\nrun = launch(fn)"
    )
    assert len(fresh_kernel.leftovers()) >= 1
    fresh_kernel.kill()
    fresh_kernel.leaves_nobody()


def test_a_kernel_killed_in_the_midst_of_its_launches(fresh_kernel: Any) -> None:
    fresh_kernel.does("results(lambda: 'warm')")
    fresh_kernel.start(
        "for _ in range(4): launch(lambda: time.sleep(999))\n"
        "time.sleep(0.05); os.kill(os.getpid(), signal.SIGKILL)"
    )
    fresh_kernel.until(
        lambda: (
            not psutil.pid_exists(fresh_kernel.pid)
            or (psutil.Process(fresh_kernel.pid).status() == psutil.STATUS_ZOMBIE)
        ),
        "the kernel is gone",
    )
    fresh_kernel.leaves_nobody()


def test_a_detached_run_outlives_its_kernel_and_leaves_nobody_either(fresh_kernel: Any) -> None:
    fresh_kernel.does(
        "go = HOME / 'go'\ndef work():\n    until(go.exists)\n    return 'done'\n"
        "run = launch(work, detach=True)\nuntil(lambda: len(run.pids) == 2)"
    )
    path = fresh_kernel.value("run.log_dir")
    pids = set(fresh_kernel.value("run.pids").values())
    fresh_kernel.restart()
    time.sleep(1)  # by now all that is not detached would be gone
    assert pids <= {process.pid for process in fresh_kernel.leftovers()}
    (fresh_kernel.home / "go").touch()
    fresh_kernel.does(f"from icelaunch_nb.client.run import attach_to\nrun = attach_to({path!r})")
    assert fresh_kernel.value("run.result(30)") == {0: "done", 1: "done"}
    fresh_kernel.leaves_nobody()


def test_a_forked_child_of_the_kernel_does_not_keep_the_host_alive(fresh_kernel: Any) -> None:
    fresh_kernel.does(HERE + "\n" + TROUBLEMAKERS["plain"] + "\nrun = launch(plain)")
    fresh_kernel.until(
        lambda: all((fresh_kernel.home / f"here-plain-{rank}").exists() for rank in (0, 1)),
        "the ranks are up",
    )
    child = fresh_kernel.value("""
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
child.start()
child.pid
""")
    try:
        fresh_kernel.kill()
        fresh_kernel.leaves_nobody(child)
        assert psutil.Process(child).status() != psutil.STATUS_ZOMBIE, "it is not ours to end"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("victim", ["host", "forkserver", "agent"])
def test_a_process_of_ours_that_is_killed_takes_its_ranks_along(
    fresh_kernel: Any, victim: str
) -> None:
    """An out-of-memory killer may kill any of them. The kernel sees it, and can launch again."""
    fresh_kernel.does(HERE + "\n" + TROUBLEMAKERS["children"] + "\nrun = launch(children)")
    fresh_kernel.until(
        lambda: all((fresh_kernel.home / f"here-children-{rank}").exists() for rank in (0, 1)),
        "the ranks are up",
    )
    [host] = fresh_kernel.host()
    ranks = list(fresh_kernel.value("run.pids").values())
    sessions = [process for process in fresh_kernel.leftovers() if os.getsid(process.pid) in ranks]
    assert len(sessions) >= 2 * 3
    if victim == "host":
        host.kill()
    elif victim == "forkserver":
        psutil.Process(ranks[0]).parent().kill()
    else:
        os.kill(agent_of(fresh_kernel, "run"), signal.SIGKILL)
    cell = fresh_kernel.run("run.result(30)")
    assert cell.ename in ("RunLost", "RunStopped", "RunFailed"), cell
    fresh_kernel.until(
        lambda: not fresh_kernel.living(sessions), "the ranks and their children are gone"
    )
    assert fresh_kernel.value("results(lambda: 'next')") == {0: "next", 1: "next"}


def test_a_finished_rank_leaves_none_of_its_children(kernel: Any) -> None:
    kernel.does(
        "def fn():\n    import subprocess\n    return subprocess.Popen(['sleep', '999']).pid\n"
        "r = results(fn)"
    )
    pids = kernel.value("list(r.values())")
    kernel.until(
        lambda: not {process.pid for process in kernel.leftovers()} & set(pids),
        "the children are gone",
    )


def test_stop_ends_whole_sessions(kernel: Any) -> None:
    kernel.does("\n".join([HERE, *TROUBLEMAKERS.values()]))
    kernel.does(
        "runs = [launch(gil, ranks=1), launch(children, ranks=1), launch(loading, ranks=1)]"
    )
    kernel.until(
        lambda: all(
            (kernel.home / f"here-{name}-0").exists() for name in ("gil", "children", "loading")
        ),
        "they are up",
    )
    ranks = kernel.value("[run.pids[0] for run in runs]")
    members = [process for process in kernel.leftovers() if os.getsid(process.pid) in ranks]
    assert len(members) >= 3 + 2 + 2
    kernel.does("for run in runs: run.stop(1)\nfor run in runs: run.wait()")
    assert kernel.value("[str(run.state) for run in runs]") == ["STOPPED"] * 3
    kernel.until(lambda: not kernel.living(members), "their sessions are empty")
