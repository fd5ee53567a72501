"""What the runs of the kill matrix do: each rank goes to one moment, says so, and waits there."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import icelaunch_nb as ice

LINE = "line %08d\n"
TIMEOUT = 100.0  # seconds that a rank waits at its moment at most


def launch(folder: str, moment: str) -> None:
    """In the kernel: launches, waits for the end, writes down the outcome, and launches again."""
    directory = Path(folder)
    go = str(directory / "go")
    load = SlowToLoad(go) if moment == "starting" else None
    run = ice.launch(
        job,
        (folder, moment, load),
        nproc_per_node=2,
        run_id="matrix",
        log_dir=str(directory / "logs"),
        max_restarts=int(moment == "restarting"),
    )
    write(directory / "launched", run.log_dir)
    try:
        outcome = repr(sorted(run.result()))
    except ice.IcelaunchError as error:
        outcome = f"{type(error).__name__}: {error}"
    write(directory / "outcome", json.dumps([str(run.state), outcome]))
    write(directory / "next_outcome", json.dumps(ice.launch(rank_of, nproc_per_node=2).result(60)))


def rank_of() -> int:
    return ice.get_context().rank


def job(folder: str, moment: str, _load: Any) -> Any:
    """In a rank: starts what has to end with it, and goes to its moment in the first attempt."""
    ctx, directory = ice.get_context(), Path(folder)
    first = ctx.restart_count == 0
    go = directory / "go"
    threading.Thread(
        target=print_lines,
        args=(directory / f"printed.{ctx.restart_count}.{ctx.rank}",),
        daemon=True,
    ).start()
    if first and moment in ("stopping", "restarting"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so that the moment lasts
    start_children(directory / f"children.{ctx.restart_count}.{ctx.rank}", loader=ctx.rank == 0)
    if first:
        return wait_at(moment, ctx, directory, go)
    return ctx.rank


def wait_at(moment: str, ctx: Any, directory: Path, go: Path) -> Any:
    """Goes to a moment, marks that with a file, and waits there until the file `go` exists."""
    reached = directory / f"reached.{ctx.rank}"
    match moment:
        case "in C":
            reached.touch()
            while not go.exists():
                ctypes.PyDLL(None).sleep(2)  # keeps the GIL
        case "collective":
            import torch.distributed as dist

            dist.init_process_group("gloo")
            dist.barrier()
            reached.touch()
            if ctx.rank == 0:
                until(go.exists)
            dist.barrier()
        case "restarting":
            reached.touch()
            if ctx.rank == 0:
                until((directory / "reached.1").exists)
                raise RuntimeError("again")
            time.sleep(TIMEOUT)
        case "paused":
            for _ in ctx.steps(iter(int, 1)):
                reached.touch()
                if go.exists():
                    break
                time.sleep(0.005)
        case "debugger":
            reached.touch()
            breakpoint()
        case "writing":
            reached.touch()
            return [os.urandom(4 << 20), SlowToWrite(str(go)), ctx.rank]
        case _:
            reached.touch()
            until(go.exists)
    return ctx.rank


def print_lines(count: Path) -> None:
    """Writes numbered lines to stdout, and writes to a file how many of them are whole."""
    fd = os.open(count, os.O_RDWR | os.O_CREAT, 0o600)
    number = 0
    while True:
        os.write(1, (LINE % number).encode())
        number += 1
        os.pwrite(fd, b"%08d" % number, 0)
        time.sleep(0.005)


def start_children(note: Path, *, loader: bool) -> None:
    """Starts what must end with the rank.

    That is a program that ignores SIGTERM, and in one rank a DataLoader's worker.
    """
    import torch

    pids = [subprocess.Popen(["sh", "-c", "trap '' TERM INT HUP; sleep 977; sleep 977"]).pid]
    if loader:
        workers = iter(torch.utils.data.DataLoader(range(10**6), num_workers=1))
        next(workers)
        pids += [worker.pid for worker in workers._workers]
        _workers.append(workers)
    write(note, json.dumps(pids))


_workers: list[Any] = []


class SlowToLoad:
    """An argument whose unpickling waits for a file."""

    def __init__(self, go: str) -> None:
        self.go = go

    def __reduce__(self) -> Any:
        return wait_for, (self.go,)


class SlowToWrite:
    """A value whose pickling waits for a file."""

    def __init__(self, go: str) -> None:
        self.go = go

    def __reduce__(self) -> Any:
        wait_for(self.go)
        return int, ()


def wait_for(path: str) -> None:
    until(Path(path).exists)


def until(condition: Any) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


def write(path: Path, text: str) -> None:
    """Writes a file that appears whole."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    with contextlib.suppress(FileNotFoundError):
        draft.rename(path)
