"""Detached runs, `attach`, and what is left when a process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import psutil
import pytest
from waiting import wait_for

import icelaunch_nb as ice
from icelaunch_nb.client.host_pool import hosts
from icelaunch_nb.launching.launch_environment import LaunchEnvironment
from icelaunch_nb.launching.launch_messages import AgentLaunch
from icelaunch_nb.system.processes import Process

LAUNCHER = """
import os, sys, time
import icelaunch_nb as ice

def work():
    print("first line")
    ice.get_context().events.resume.wait(100)
    return ice.get_context().rank

detach = sys.argv[2] == "at launch"
run = ice.launch(work, nproc_per_node=2, run_id="left", log_dir=sys.argv[1], detach=detach)
while run.state != "RUNNING":
    time.sleep(0.01)
if sys.argv[2] == "later":
    run.detach()
print(run.log_dir, flush=True)
os.kill(os.getpid(), int(sys.argv[3]))
"""


def launch_elsewhere(folder: Path, detach: str, signum: int = signal.SIGKILL) -> Path:
    """Launches from another process, which then dies. Returns the run directory."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(folder), detach, str(int(signum))],
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
    )
    return Path(done.stdout.strip())


@pytest.mark.parametrize("detach", ["at launch", "later"])
def test_a_detached_run_outlives_its_kernel_and_is_found_again(detach: str, runs: Path) -> None:
    launch_elsewhere(runs / "logs", detach)
    run = ice.attach("left")
    wait_for(lambda: run.logs(0) == "first line\n", 20)
    assert run.state == "RUNNING"
    run.resume()
    assert run.result(30) == {0: 0, 1: 1}
    assert ice.attach(run.log_dir).state == "SUCCEEDED"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_not_detached_ends_with_its_kernel(signum: int, runs: Path) -> None:
    folder = launch_elsewhere(runs / "logs", "no", signum)
    run = ice.Run(folder)
    assert run.wait(5)
    assert run.state == "STOPPED"


def test_attach_without_a_name_finds_the_newest_that_lives(runs: Path) -> None:
    run = ice.launch(lambda: ice.get_context().events.resume.wait(60), run_id="living")
    wait_for(lambda: run.state == "RUNNING", 20)
    ice.launch(jobs.environment, run_id="over").result(60)
    assert ice.attach().run_id == "living"
    assert ice.attach("over").state == "SUCCEEDED"
    run.resume()
    assert run.wait(30)


def test_runs_lists_and_cleans_but_never_a_living_one(runs: Path) -> None:
    living = ice.launch(lambda: ice.get_context().events.resume.wait(60), run_id="<b>living")
    for number in range(3):
        ice.launch(jobs.environment, run_id=f"old{number}").result(60)
    wait_for(lambda: living.state == "RUNNING", 20)
    listed = ice.runs()
    assert [run.run_id for run in listed][:4] == ["old2", "old1", "old0", "<b>living"]
    assert "&lt;b&gt;living" in listed._repr_html_()
    assert "RUNNING" in repr(listed)
    listed.clean(keep=1)
    left = [run.run_id for run in ice.runs()]
    assert {"old2", "<b>living"} <= set(left)
    assert not {"old0", "old1"} & set(left)
    living.resume()
    assert living.wait(30)


def test_a_run_whose_agent_vanished_is_lost_and_its_ranks_are_gone(runs: Path) -> None:
    run = ice.launch(jobs.leave_children_and_wait, (str(runs / "child"),), nproc_per_node=1)
    wait_for((runs / "child").exists, 20)
    ranks = [Process.of(pid) for pid in run.pids.values()]
    child = Process.of(int((runs / "child").read_text()))
    os.kill(run._run_state.agent.pid, signal.SIGKILL)
    wait_for(lambda: not any(process and process.alive() for process in [*ranks, child]))
    wait_for(lambda: run.state == "LOST")
    with pytest.raises(ice.RunLost):
        run.result(1)
    assert not {"call.pkl", "disk.reserve"} & set(os.listdir(run.log_dir)), (
        "only a living run needs them"
    )
    assert ice.launch(jobs.all_reduce, nproc_per_node=2).result(60) == {0: 1.0, 1: 1.0}


@pytest.mark.parametrize("victim", ["host", "forkserver"])
def test_when_host_or_forkserver_is_killed_nothing_stays_and_the_next_launch_works(
    victim: str, runs: Path
) -> None:
    run = ice.launch(jobs.leave_children_and_wait, (str(runs / "child"),), nproc_per_node=1)
    wait_for((runs / "child").exists, 20)
    host = psutil.Process(hosts.for_environ(os.environ).process.pid)
    servers = [child for child in host.children() if "forkserver" in " ".join(child.cmdline())]
    watched = [Process.of(pid) for pid in (*run.pids.values(), int((runs / "child").read_text()))]
    (host if victim == "host" else servers[0]).kill()
    wait_for(lambda: run.state.over)
    wait_for(lambda: not any(process and process.alive() for process in watched))
    assert ice.launch(jobs.all_reduce, nproc_per_node=2).result(60) == {0: 1.0, 1: 1.0}


def test_a_process_with_similar_arguments_is_never_killed(runs: Path) -> None:
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "icelaunch_nb.host", "worker.py"]
    )
    try:
        run = ice.launch(time.sleep, (60,), nproc_per_node=2)
        wait_for(lambda: run.state == "RUNNING", 20)
        run.kill()
        assert run.wait(30)
        with pytest.raises(ice.RunFailed):
            ice.launch(jobs.end_by, ("SIGKILL",), nproc_per_node=2).result(60)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_agent_that_finds_no_directory_ends_and_takes_its_spare_ranks_along(runs: Path) -> None:
    ice.launch(jobs.environment, nproc_per_node=2).result(60)
    host = psutil.Process(hosts.for_environ(os.environ).process.pid)
    # Forkserver and resource tracker, and the next agent with its two ranks.
    wait_for(lambda: len(host.children(recursive=True)) >= 2 + 3, 20)
    for _ in range(3):
        agents = set(host.children(recursive=True))
        reader, writer = os.pipe()  # in place of a control FIFO
        hosts.launch(
            AgentLaunch(
                run_dir=str(runs / "gone"), environment=LaunchEnvironment.capture(), ranks=2
            ),
            reader,
        )
        os.close(reader)
        os.close(writer)
        # The forkserver and its resource tracker stay.
        wait_for(lambda: len(agents & set(host.children(recursive=True))) <= 2, 20)
        wait_for(lambda: len(host.children(recursive=True)) >= 2 + 3, 20)
