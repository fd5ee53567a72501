"""Functions that the ranks of several tests run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import icelaunch_nb as ice


def all_reduce() -> float:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1) * dist.get_rank()
    dist.all_reduce(total)
    return total.item()


def speak(word: str) -> None:
    """Prints a word in every way that a process can."""
    print(f"print {word}")
    print(f"error {word}", file=sys.stderr)
    os.write(1, f"write {word}\n".encode())
    ctypes.CDLL(None).printf(f"printf {word}\n".encode())
    subprocess.run(["echo", f"child {word}"], check=True)


def environment(*names: str) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


def fail_until(attempt: int, culprit: int) -> int:
    """Fails on one rank, while the others are in a barrier, in each attempt before this one."""
    import torch.distributed as dist

    context = ice.get_context()
    print(f"attempt {context.restart_count} env {os.environ['TORCHELASTIC_RESTART_COUNT']}")
    dist.init_process_group("gloo")
    if context.restart_count < attempt and context.rank == culprit:
        raise RuntimeError(f"not yet in attempt {context.restart_count}")
    dist.barrier()
    return context.restart_count


def raise_while_others_wait(error: type[Exception], culprit: int, note: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if dist.get_rank() == culprit:
        Path(note).write_text(str(time.time()))
        raise error("boom")  # the marker of this line
    dist.barrier()


def end_by(how: str, culprit: int = 0) -> str:
    """Ends one rank in an unusual way; the others return."""
    if ice.get_context().rank != culprit:
        return "returned"
    match how:
        case "exit 0":
            sys.exit(0)
        case "exit 3":
            sys.exit(3)
        case "os._exit 0":
            os._exit(0)
        case "interrupt":
            raise KeyboardInterrupt
        case _:
            os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)
    return "not reached"


def leave_children_and_wait(note: str) -> None:
    """Starts a child that would outlive it, ignores SIGTERM, and holds the GIL in a C call."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "999"])
    path = Path(note)
    path.with_suffix(".draft").write_text(f"{child.pid}")
    path.with_suffix(".draft").rename(path)
    ctypes.PyDLL(None).sleep(999)


def listeners() -> list[str]:
    """The addresses that processes of this network namespace listen on, in /proc's hexadecimal."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.append(fields[1].split(":")[0])
    dist.barrier()
    return found


def everything_of_me() -> dict[str, Any]:
    context = ice.get_context()
    return {
        name: getattr(context, name)
        for name in (
            "rank",
            "local_rank",
            "world_size",
            "local_world_size",
            "role",
            "restart_count",
            "max_restarts",
            "run_id",
        )
    } | {"device": str(context.device)}


def train_for_ever() -> dict[str, Any]:
    """A loop with a collective a step. Returns the requests it acted on, each with its step."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    context = ice.get_context()
    protocol = context._steps.protocol
    acted: list[tuple[str, int]] = []
    act = protocol._act

    def note(entry: int, count: int) -> Any:
        acted.append(({1: "pause", 2: "stop", 3: "checkpoint"}[entry & 3], count))
        return act(entry, count)

    protocol._act = note
    checkpoints, steps = [], 0
    for step in context.steps(range(10**9)):
        steps += 1
        total = torch.ones(1)
        dist.all_reduce(total)
        if context.should_checkpoint():
            checkpoints.append(step)
    return {"steps": steps, "checkpoints": checkpoints, "acted": acted}
