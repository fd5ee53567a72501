"""Tests of `processes`: a process is its pid and start time, and no other is signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from icelaunch_nb.system.processes import Process, kill_marked, kill_sessions


@pytest.fixture
def child() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def gone(process: subprocess.Popen, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return process.poll() is not None


def test_process_is_alive_until_it_is_killed(child):
    me = Process.of(child.pid)
    assert me.alive() and me == Process.of(child.pid)
    assert me.send(signal.SIGKILL)
    assert gone(child) and not me.alive() and not me.send(signal.SIGKILL)
    assert Process.of(child.pid) is None


@pytest.mark.parametrize("seconds", [-1000.0, -0.01, 0.01, 1000.0])
def test_later_process_with_the_same_pid_is_not_signalled(seconds, child):
    earlier = Process(child.pid, Process.of(child.pid).started + seconds)
    assert not earlier.alive() and not earlier.send(signal.SIGKILL)
    assert kill_sessions([earlier]) == []
    assert child.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="by Linux' schedstat")
def test_idle_cpu_time_is_constant_asleep_and_none_at_work():
    code = "print(flush=True); input(); print(flush=True)\nwhile True: pass"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        me = Process.of(process.pid)
        while (ran := me.idle_cpu_time()) is None or ran != me.idle_cpu_time():
            time.sleep(0.01)  # it doesn't wait for its input yet
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        assert me.idle_cpu_time() is None
        process.kill()
    assert me.idle_cpu_time() is None


def test_zombie_is_not_alive_and_not_signalled(child):
    me = Process.of(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while me.alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not me.alive() and not me.send(signal.SIGTERM)


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 10**12])
def test_unused_pid_has_no_process(pid):
    assert Process.of(pid) is None
    assert not Process(pid, 0.0).alive() and not Process(pid, 0.0).send(signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="by Linux' prctl")
def test_process_name_may_contain_anything():
    code = (
        "import ctypes, time; ctypes.CDLL(None).prctl(15, b') Z 1 (2 3)'); "
        "print('named', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        before = Process.of(process.pid)
        assert process.stdout.readline() == b"named\n"
        assert b") Z 1" in Path(f"/proc/{process.pid}/stat").read_bytes()
        assert before.alive() and Process.of(process.pid) == before
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it counts from the epoch")
def test_start_time_counts_from_boot(child):
    """psutil computes start times from the clock, so setting the clock changes all of them."""
    assert 0 < Process.of(child.pid).started <= time.clock_gettime(time.CLOCK_BOOTTIME) + 0.02


def test_whole_sessions_are_killed_and_others_live(child):
    leader = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; sleep 601 & sleep 602"], start_new_session=True
    )
    identity = Process.of(leader.pid)
    try:
        deadline = time.monotonic() + 30
        while (
            len(list(Path(f"/proc/{leader.pid}/task/{leader.pid}/children").read_text().split()))
            < 2
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        members = [
            Process.of(int(pid))
            for pid in Path(f"/proc/{leader.pid}/task/{leader.pid}/children").read_text().split()
        ]
        assert {identity, *members} == set(kill_sessions([identity]))
        assert gone(leader)
        # SIGKILL doesn't end them at once.
        while any(member.alive() for member in members) and time.monotonic() < deadline + 5:
            time.sleep(0.01)
        assert not any(member.alive() for member in members)
        assert child.poll() is None
    finally:
        leader.kill()
        leader.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="by Linux' schedstat")
def test_resource_tracker_that_is_slow_at_its_work_finishes_it(tmp_path):
    """On a busy machine its start alone took longer than the second that an idle one gets."""
    work = "import time; start = time.process_time()\nwhile time.process_time() < start + 2: pass"
    done = f"from pathlib import Path; Path({str(tmp_path / 'done')!r}).touch()"
    code = f"from multiprocessing.resource_tracker import main\n{work}\n{done}"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        kill_sessions([Process.of(process.pid)])
        assert process.wait(30) == 0
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="by Linux' schedstat")
def test_resource_tracker_that_idles_is_killed():
    code = "from multiprocessing.resource_tracker import main; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        kill_sessions([Process.of(process.pid)])
        assert process.wait(30) == -signal.SIGKILL


def test_only_marked_processes_are_killed(child):
    def start(**extra):
        return subprocess.Popen(
            ["sleep", "603"], env={**os.environ, **extra}, start_new_session=True
        )

    others = [
        start(MARK="x/1"),
        start(MARK="/run/1"),
        start(MARKED="/run/12"),
        start(OTHER="MARK=/run/12"),
    ]
    marked = start(MARK="/run/12")
    try:
        deadline = time.monotonic() + 30
        # Until it execs, a child has its parent's environment.
        while not (found := kill_marked("MARK=/run/12")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [process.pid for process in found] == [marked.pid]
        assert gone(marked) and all(process.poll() is None for process in [*others, child])
    finally:
        for process in [*others, marked]:
            process.kill()
            process.wait()
