"""What the runs of the kill matrix do: reach one moment, say that they are there, and stay until they may go on."""

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
PATIENCE = 100.0  # seconds that a rank stays at its moment at most


def launch(folder: str, moment: str) -> None:
    """In the kernel: launches, waits for the end, says what it saw, and launches once more."""
    place = Path(folder)
    go = str(place / "go")
    load = SlowToLoad(go) if moment == "starting" else None
    run = ice.launch(
        job,
        (folder, moment, load),
        nproc_per_node=2,
        run_id="matrix",
        log_dir=str(place / "logs"),
        max_restarts=int(moment == "restarting"),
    )
    write(place / "launched", run.log_dir)
    try:
        said = repr(sorted(run.result()))
    except ice.IcelaunchError as error:
        said = f"{type(error).__name__}: {error}"
    write(place / "said", json.dumps([str(run.state), said]))
    write(place / "next", json.dumps(ice.launch(rank_of, nproc_per_node=2).result(60)))


def rank_of() -> int:
    return ice.get_context().rank


def job(folder: str, moment: str, _load: Any) -> Any:
    """In a rank."""
    ctx, place = ice.get_context(), Path(folder)
    first = ctx.restart_count == 0
    go = place / "go"
    threading.Thread(
        target=speak, args=(place / f"spoken.{ctx.restart_count}.{ctx.rank}",), daemon=True
    ).start()
    if first and moment in ("stopping", "restarting"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so that it takes its time
    start_children(place / f"children.{ctx.restart_count}.{ctx.rank}", loader=ctx.rank == 0)
    if first:
        return stay(moment, ctx, place, go)
    return ctx.rank


def stay(moment: str, ctx: Any, place: Path, go: Path) -> Any:
    here = place / f"here.{ctx.rank}"
    match moment:
        case "in C":
            here.touch()
            while not go.exists():
                ctypes.PyDLL(None).sleep(2)  # keeps the GIL
        case "collective":
            import torch.distributed as dist

            dist.init_process_group("gloo")
            dist.barrier()
            here.touch()
            if ctx.rank == 0:
                until(go.exists)
            dist.barrier()
        case "restarting":
            here.touch()
            if ctx.rank == 0:
                until((place / "here.1").exists)
                raise RuntimeError("again")
            time.sleep(PATIENCE)
        case "paused":
            for _ in ctx.steps(iter(int, 1)):
                here.touch()
                if go.exists():
                    break
                time.sleep(0.005)
        case "debugger":
            here.touch()
            breakpoint()
        case "writing":
            here.touch()
            return [os.urandom(4 << 20), SlowToWrite(str(go)), ctx.rank]
        case _:
            here.touch()
            until(go.exists)
    return ctx.rank


def speak(count: Path) -> None:
    """Writes numbered lines; how many were written whole stands in a file beside."""
    fd = os.open(count, os.O_RDWR | os.O_CREAT, 0o600)
    number = 0
    while True:
        os.write(1, (LINE % number).encode())
        number += 1
        os.pwrite(fd, b"%08d" % number, 0)
        time.sleep(0.005)


def start_children(note: Path, *, loader: bool) -> None:
    """What a rank's death must take along: a program that heeds no SIGTERM, and a DataLoader's worker."""
    import torch

    pids = [subprocess.Popen(["sh", "-c", "trap '' TERM INT HUP; sleep 977; sleep 977"]).pid]
    if loader:
        workers = iter(torch.utils.data.DataLoader(range(10**6), num_workers=1))
        next(workers)
        pids += [worker.pid for worker in workers._workers]
        _kept.append(workers)
    write(note, json.dumps(pids))


_kept: list[Any] = []


class SlowToLoad:
    """An argument whose unpickling takes until a file is there."""

    def __init__(self, go: str) -> None:
        self.go = go

    def __reduce__(self) -> Any:
        return wait_for, (self.go,)


class SlowToWrite:
    """A value whose pickling takes until a file is there."""

    def __init__(self, go: str) -> None:
        self.go = go

    def __reduce__(self) -> Any:
        wait_for(self.go)
        return int, ()


def wait_for(path: str) -> None:
    until(Path(path).exists)


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


def write(path: Path, text: str) -> None:
    """A file that appears whole."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    with contextlib.suppress(FileNotFoundError):
        draft.rename(path)
