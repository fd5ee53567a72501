"""What ranks leave behind ends with their run: children that hide, and shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path

import pytest
from waiting import wait_for

import icelaunch_nb as ice
from icelaunch_nb.system.processes import Process

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux gives orphans to an ancestor"
)

# Each leaves a process that writes its pid to {note} and sleeps.
HIDE = {
    "a session of its own": "setsid sh -c 'echo $$ > {note}; exec sleep 600' &",
    "no environment": "setsid env -i sh -c 'echo $$ > {note}; exec sleep 600' &",
    "nothing of its run": "cd /; setsid env -i sh -c 'setsid sh -c \"echo \\$\\$ > {note}; "
    "exec sleep 600\" &' </dev/null >/dev/null 2>&1",
    "a parent that hides, too": "cd /; setsid env -i sh -c 'sh -c \"echo \\$\\$ > {note}; "
    "sleep 600; sleep 600\"' </dev/null >/dev/null 2>&1 &",
}


def hide(commands: list[str], notes: list[str], end: str = "return") -> None:
    for command in commands:
        subprocess.run(command, shell=True, check=True)
    wait_for(
        lambda: all(
            os.path.exists(note) and Path(note).read_text().endswith("\n") for note in notes
        )
    )
    if end == "wait":
        ice.get_context().events.resume.wait(60)
    elif end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def hidden(folder: Path, ways: list[str], end: str = "return") -> tuple[ice.Run, list[Path]]:
    """A run whose rank leaves a process behind in each of these ways, and their pid files."""
    notes = [folder / f"{os.urandom(4).hex()}.pid" for _ in ways]
    commands = [HIDE[way].format(note=note) for way, note in zip(ways, notes, strict=True)]
    return ice.launch(hide, (commands, list(map(str, notes)), end), nproc_per_node=1), notes


def process(note: Path) -> Process | None:
    return Process.of(int(note.read_text()))


def gone(note: Path) -> bool:
    found = process(note)
    return found is None or not found.alive()


@on_linux
@pytest.mark.parametrize("end", ["return", "kill"])
def test_a_child_that_hides_ends_with_its_run(end: str, runs: Path) -> None:
    run, notes = hidden(runs, list(HIDE), end)
    assert run.wait(60)
    assert run.state == ("SUCCEEDED" if end == "return" else "FAILED")
    wait_for(lambda: all(map(gone, notes)))


@on_linux
def test_a_process_that_may_be_of_a_living_run_stays(runs: Path) -> None:
    first, (firsts,) = hidden(runs, ["nothing of its run"], "wait")
    wait_for(lambda: firsts.exists() and firsts.read_text().endswith("\n"))
    second, (tied, untied) = hidden(runs, ["no environment", "nothing of its run"])
    assert second.wait(60) and second.state == "SUCCEEDED"
    wait_for(lambda: gone(tied))  # its output goes to the log of its run
    assert not gone(firsts), "it was there before the run that ended"
    assert not gone(untied), "it might be of the run that goes on"
    third, (other,) = hidden(runs, ["no environment"])  # at its end the host cleans up again
    assert third.wait(60)
    wait_for(lambda: gone(other))
    assert not gone(firsts)
    first.resume()
    assert first.result(30) == {0: None}
    wait_for(lambda: gone(firsts) and gone(untied))


# Shared memory.


@pytest.fixture
def segment() -> Iterator[str]:
    """A free name for shared memory. What has it at the end is removed."""
    name = f"ice-test-{os.urandom(4).hex()}"
    yield name
    if exists(name):
        (Path("/dev/shm") / name).unlink()


def exists(name: str) -> bool:
    return (Path("/dev/shm") / name).exists()


def leave_memory(name: str, end: str) -> None:
    context = ice.get_context()
    if context.rank == 0:
        shared_memory.SharedMemory(name, create=True, size=1 << 20)
    if context.rank == 0 and end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "raise":
        raise RuntimeError(end)
    if end == "wait":
        context.events.resume.wait(60)


@on_linux
@pytest.mark.parametrize("end", ["return", "kill", "raise"])
def test_shared_memory_that_ranks_leave_is_freed_when_the_run_is_over(
    end: str, segment: str, runs: Path
) -> None:
    run = ice.launch(leave_memory, (segment, end), nproc_per_node=2)
    assert run.wait(60)
    wait_for(lambda: not exists(segment))


@on_linux
def test_shared_memory_of_a_run_whose_agent_is_killed_is_freed(segment: str, runs: Path) -> None:
    run = ice.launch(leave_memory, (segment, "wait"), nproc_per_node=1)
    wait_for(lambda: exists(segment))
    assert run._run_state.agent is not None
    os.kill(run._run_state.agent.pid, signal.SIGKILL)
    assert run.wait(30) and run.state == "LOST"
    wait_for(lambda: not exists(segment))


@on_linux
def test_shared_memory_of_a_program_that_is_killed_is_freed(segment: str, runs: Path) -> None:
    code = (
        f"import os; from multiprocessing.shared_memory import SharedMemory; "
        f"SharedMemory({segment!r}, create=True, size=100); os.kill(os.getpid(), 9)"
    )
    run = ice.launch(sys.executable, ["-c", code], nproc_per_node=1)
    assert run.wait(60) and run.state == "FAILED"
    wait_for(lambda: not exists(segment))


def test_shared_memory_stays_while_another_rank_or_run_ends(segment: str, runs: Path) -> None:
    """A segment stays as long as its run, whichever rank or other run ends before."""

    def share(name: str) -> int:
        import torch.distributed as dist

        context = ice.get_context()
        dist.init_process_group("gloo")
        if context.rank == 0:
            memory = shared_memory.SharedMemory(name, create=True, size=100)
            memory.buf[0] = 42
        dist.barrier()
        if context.rank == 1:
            memory = shared_memory.SharedMemory(name)
        value = memory.buf[0]
        dist.barrier()
        memory.close()
        if context.rank == 0:
            context.events.resume.wait(60)
            memory = shared_memory.SharedMemory(name)
            value = memory.buf[0]
            memory.unlink()
        return value

    run = ice.launch(share, (segment,), nproc_per_node=2)
    wait_for(lambda: run._dir.rank(0, 1).result.exists())
    assert ice.launch(os.getpid, nproc_per_node=1).wait(60)
    run.resume()
    assert run.result(60) == {0: 42, 1: 42}
    assert not exists(segment)
