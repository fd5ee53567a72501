"""A bad day: one launch with one fault, and how it must end.

Runs in a kernel, where `test_bad_days` runs many days one after the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

import icelaunch_nb as ice

HOME = Path(os.environ["TMPDIR"])
CGROUP = "/sys/fs/cgroup/memory" if Path("/sys/fs/cgroup/memory").is_dir() else "/sys/fs/cgroup"


class Wrong(Exception):
    """The day did not end as it must."""


def expect(run: ice.Run, state: str, pattern: str, error: type[BaseException] | None) -> None:
    """Checks how the run ends: its state, what `result` raises, and a pattern in its message."""
    message, value = "", None
    try:
        value = run.result(60)
    except BaseException as raised:
        message = f"{type(raised).__name__}: {raised}"
        if error is None or not isinstance(raised, error):
            raise Wrong(f"{run!r}: raised {message}") from raised
    if error is not None and not message:
        raise Wrong(f"{run!r}: raised nothing, but returned {value}")
    if run.state != state:
        raise Wrong(f"{run!r} instead of {state}")
    if not re.search(pattern, message or repr(value), re.S):
        raise Wrong(f"{pattern!r} is not in {message or value!r}")


# The days.


def nothing_happens(dice: random.Random) -> None:
    number = dice.randrange(1000)
    expect(
        ice.launch(lambda: number, nproc_per_node=dice.choice([1, 2, 3])),
        "SUCCEEDED",
        str(number),
        None,
    )


def a_rank_raises(dice: random.Random) -> None:
    culprit, kind = (
        dice.randrange(2),
        dice.choice([ValueError, OSError, AssertionError, KeyboardInterrupt]),
    )

    def fn():
        if ice.get_context().rank == culprit:
            raise kind("bad day")
        time.sleep(60)

    expect(
        ice.launch(fn, nproc_per_node=2),
        "FAILED",
        f"rank {culprit} of 2.*{kind.__name__}.*bad day",
        ice.RunFailed,
    )


def a_rank_raises_once(dice: random.Random) -> None:
    def fn():
        count = ice.get_context().restart_count
        if count == 0:
            raise ValueError("once")
        return count

    run = ice.launch(fn, nproc_per_node=2, max_restarts=2)
    expect(run, "SUCCEEDED", re.escape("{0: 1, 1: 1}"), None)
    if run.restarts != 1:
        raise Wrong(f"{run.restarts} restarts")


def a_rank_exits(dice: random.Random) -> None:
    code, leave = dice.choice([0, 1, 3, 77]), dice.choice([sys.exit, os._exit])

    def fn():
        if ice.get_context().rank == 0:
            leave(code)
        time.sleep(60)

    expect(
        ice.launch(fn, nproc_per_node=2),
        "FAILED",
        f"SystemExit: {code}|exited with code {code}",
        ice.RunFailed,
    )


def a_rank_gets_a_signal(dice: random.Random) -> None:
    name = dice.choice(["SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])

    def fn():
        if ice.get_context().rank == 1:
            os.kill(os.getpid(), getattr(signal, name))
        time.sleep(60)

    expect(
        ice.launch(fn, nproc_per_node=2), "FAILED", f"rank 1 of 2.*killed by {name}", ice.RunFailed
    )


def an_argument_cant_be_pickled(dice: random.Random) -> None:
    before = set(HOME.glob("icelaunch_nb-*/[!.]*"))
    try:
        ice.launch(print, (threading.Lock(),), nproc_per_node=2)
    except ice.PackingError as error:
        if "args[0]" not in str(error):
            raise Wrong(str(error)) from error
    else:
        raise Wrong("it was launched")
    if left := set(HOME.glob("icelaunch_nb-*/[!.]*")) - before:
        raise Wrong(f"directories were left: {left}")


def a_result_cant_be_pickled(dice: random.Random) -> None:
    expect(ice.launch(threading.Lock, nproc_per_node=2), "FAILED", "result.*lock", ice.RunFailed)


def a_result_cant_be_built(dice: random.Random) -> None:
    class Stubborn:
        def __reduce__(self):
            return int, ("no number",)

    expect(
        ice.launch(lambda: Stubborn(), nproc_per_node=2),
        "SUCCEEDED",
        "result can't be built here.*no number",
        ice.RunFailed,
    )


def the_cell_is_interrupted(dice: random.Random) -> None:
    run = ice.launch(time.sleep, (60,), nproc_per_node=2)
    timer = threading.Timer(dice.uniform(0.0, 0.2), os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        run.result(30)
    except KeyboardInterrupt:
        pass
    else:
        raise Wrong("no KeyboardInterrupt")
    finally:
        timer.join()
    expect(run, "STOPPED", "it was asked to", ice.RunStopped)


def it_is_stopped(dice: random.Random) -> None:
    def fn():
        for step in ice.get_context().steps(iter(int, 1)):
            time.sleep(0.001)
        return "stopped in peace"

    run = ice.launch(dice.choice([fn, lambda: time.sleep(60)]), nproc_per_node=2)
    time.sleep(dice.uniform(0, 0.1))
    run.stop(dice.choice([0.2, 1, 5]))
    with contextlib.suppress(ice.RunStopped):
        run.result(30)
    if run.state != "STOPPED":
        raise Wrong(repr(run))


def it_is_killed(dice: random.Random) -> None:
    run = ice.launch(
        dice.choice([lambda: time.sleep(60), lambda: ctypes.PyDLL(None).sleep(60)]),
        nproc_per_node=2,
    )
    time.sleep(dice.uniform(0, 0.1))
    run.kill()
    expect(run, "STOPPED", "it was asked to", ice.RunStopped)


def nobody_waits(dice: random.Random) -> None:
    """A handle that is dropped at once, and a timeout."""
    ice.launch(lambda: 1, nproc_per_node=2)
    run = ice.launch(lambda: time.sleep(0.3), nproc_per_node=2)
    try:
        run.result(0.01)
    except TimeoutError:
        pass
    else:
        raise Wrong("no TimeoutError")
    expect(run, "SUCCEEDED", "None", None)


def the_agent_is_killed(dice: random.Random) -> None:
    run = ice.launch(time.sleep, (60,), nproc_per_node=2)
    until(lambda: run.state == "RUNNING")
    os.kill(run._run_state.agent.pid, signal.SIGKILL)
    expect(run, "LOST", "its agent was killed by SIGKILL", ice.RunLost)


def the_forkserver_is_killed(dice: random.Random) -> None:
    run = ice.launch(time.sleep, (60,), nproc_per_node=2)
    until(lambda: run.state == "RUNNING")
    psutil.Process(run._run_state.agent.pid).parent().kill()
    expect(run, "FAILED", "the forkserver that watched it was killed", ice.RunFailed)


def the_host_is_killed(dice: random.Random) -> None:
    run = ice.launch(time.sleep, (60,), nproc_per_node=2)
    until(lambda: run.state == "RUNNING")
    psutil.Process(run._run_state.agent.pid).parent().parent().kill()
    expect(run, "STOPPED", "its host was killed by SIGKILL", ice.RunStopped)


def the_disk_is_full(dice: random.Random) -> None:
    def talk():
        while True:
            print("x" * 100)

    def swallow():
        for _ in range(30_000):
            with contextlib.suppress(OSError):
                print("x" * 100)
        return os.urandom(200_000)

    fn = dice.choice([talk, swallow, lambda: os.urandom(3 << 20)])
    with small_disk() as disk:
        run = ice.launch(fn, nproc_per_node=2, log_dir=disk)
        expect(run, "FAILED", "No space left on device|the disk is full", ice.RunFailed)
        if not re.search("No space left|exited", repr(run)):
            raise Wrong(f"the repr doesn't say it: {run!r}")


def the_disk_is_full_beforehand(dice: random.Random) -> None:
    with small_disk() as disk:
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        try:
            ice.launch(lambda: 1, nproc_per_node=2, log_dir=disk)
        except ice.ConfigError as error:
            if "log_dir" not in str(error) or "No space left" not in str(error):
                raise Wrong(str(error)) from error
        else:
            raise Wrong("it was launched")


def its_directory_is_removed(dice: random.Random) -> None:
    run = ice.launch(
        dice.choice([lambda: time.sleep(60), lambda: time.sleep(0.2)]), nproc_per_node=2
    )
    if dice.random() < 0.7:
        until(lambda: run.state == "RUNNING")
    ours = processes_of(run)
    shutil.rmtree(run.log_dir, ignore_errors=True)
    if os.path.isdir(run.log_dir):
        shutil.rmtree(run.log_dir, ignore_errors=True)
    expect(run, "LOST", "its directory is gone", ice.RunLost)
    until(
        lambda: (
            not any(
                process.is_running() and process.status() != psutil.STATUS_ZOMBIE
                for process in ours
            )
        )
    )


def memory_runs_out(dice: random.Random) -> None:
    group = Path(CGROUP, f"bad-day-{os.getpid()}")
    group.mkdir()
    try:
        limit = next(
            file
            for file in (group / "memory.limit_in_bytes", group / "memory.max")
            if file.exists()
        )
        limit.write_text(str(300 << 20))

        def fn():
            if ice.get_context().rank == 0:
                (group / "cgroup.procs").write_text(str(os.getpid()))
                held = []
                while True:
                    held.append(bytearray(os.urandom(1 << 20) * 16))
            time.sleep(60)

        expect(
            ice.launch(fn, nproc_per_node=2),
            "FAILED",
            "rank 0 of 2.*out of memory.*killed by SIGKILL|MemoryError",
            ice.RunFailed,
        )
    finally:
        until(lambda: not removed(group))


DAYS: list[Callable[[random.Random], None]] = [
    nothing_happens,
    a_rank_raises,
    a_rank_raises_once,
    a_rank_exits,
    a_rank_gets_a_signal,
    an_argument_cant_be_pickled,
    a_result_cant_be_pickled,
    a_result_cant_be_built,
    the_cell_is_interrupted,
    it_is_stopped,
    it_is_killed,
    nobody_waits,
    the_agent_is_killed,
    the_forkserver_is_killed,
    the_host_is_killed,
    the_disk_is_full,
    the_disk_is_full_beforehand,
    its_directory_is_removed,
    memory_runs_out,
]
RARE = (the_forkserver_is_killed, the_host_is_killed)  # each costs a cold start


def live(number: int, seed: int) -> list[str]:
    """Runs so many days, at random. Returns what went wrong, and on which day."""
    dice, wrong = random.Random(seed), []
    possible = [day for day in DAYS if why_not(day) is None]
    deck: list[Callable[[random.Random], None]] = []
    for count in range(number):
        if not deck:  # every kind comes before one comes again
            deck = [day for day in possible if day not in RARE or not count or dice.random() < 0.4]
            dice.shuffle(deck)
        day = deck.pop()
        try:
            day(dice)
        except Exception as error:
            wrong.append(f"day {count}, {day.__name__}: {type(error).__name__}: {error}")
    return wrong


def why_not(day: Callable[[random.Random], None]) -> str | None:
    """Why a day can't be run on this machine; None where it can."""
    if day in (the_disk_is_full, the_disk_is_full_beforehand):
        try:
            with small_disk():
                return None
        except (OSError, subprocess.CalledProcessError) as error:
            return f"a small disk can't be mounted: {error}"
    if day is memory_runs_out:
        group = Path(CGROUP, f"bad-day-probe-{os.getpid()}")
        try:
            group.mkdir()
            found = (group / "memory.limit_in_bytes").exists() or (group / "memory.max").exists()
            group.rmdir()
            return None if found else "cgroups here don't limit memory"
        except OSError as error:
            return f"a cgroup can't be made: {error}"
    return None


# What they need.


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    disk = HOME / "small"
    disk.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", disk],
        check=True,
        capture_output=True,
    )
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def processes_of(run: ice.Run) -> list[psutil.Process]:
    found = []
    for pid in [*run.pids.values(), *([run._run_state.agent.pid] if run._run_state.agent else [])]:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def removed(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return group.exists()


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Wrong("waited in vain")
        time.sleep(0.005)


def more(after: dict[str, list[str]], before: dict[str, list[str]]) -> dict[str, Counter[str]]:
    """What is in use after the days, and wasn't before."""
    found = {kind: Counter(after[kind]) - Counter(before[kind]) for kind in after}
    return {kind: names for kind, names in found.items() if names}


def tree() -> list[str]:
    """The descendants of this process: their ages, states, what they wait for, and open files."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            files = {os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
            found.append(
                f"{process.pid} of {process.ppid()}, {time.time() - process.create_time():.0f} s "
                f"old, {process.status()} in "
                f"{Path(f'/proc/{process.pid}/wchan').read_text()}, {_name(process)[-60:]}, "
                f"{sorted(files)}"
            )
    return found


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return re.sub(r"ice-\w{8}$|\d+", "#", " ".join(process.cmdline()))[:120]
    return "gone"


def resources() -> dict[str, list[str]]:
    """Threads, open files, children, shared memory and temporary files."""
    import gc

    gc.collect()
    files = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            files.append(re.sub(r"ice-\w{8}|\d+", "#", os.readlink(f"/proc/self/fd/{fd}")))
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": sorted(name for name in files if "history.sqlite" not in name),
        "children": sorted(map(_name, psutil.Process().children(recursive=True))),
        "shared memory": sorted(os.listdir("/dev/shm")),
        "temporary files": sorted(
            re.sub(r"-\w{8}$|\d+", "#", name)
            for name in os.listdir(HOME)
            if name not in ("small", "ipython")
        ),
    }
