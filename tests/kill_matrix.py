"""The kill matrix: every process of a run, killed in every way, at every moment of its life.

    python tests/kill_matrix.py [--victims host,agent] [--signals KILL] [--moments running]

Each cell launches two ranks from a process of its own that stands for the kernel, waits for the moment, signals the victim, and
looks for what is promised: within 5 s the run goes on, or none of its processes is left; the journal says how it ended; what
the ranks had written is on disk; the next launch in the same kernel works. Prints a table, and what broke below it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from icelaunch_nb.processes import Process
from icelaunch_nb.run import Run

VICTIMS = ("kernel", "host", "forkserver", "agent", "one rank", "all ranks")
SIGNALS = ("KILL", "TERM", "STOP")
MOMENTS = ("starting", "running", "in C", "collective", "restarting", "stopping", "writing")
LIMIT = 5.0  # seconds until nothing is left, or the run goes on

KERNEL = r"""
import ctypes, os, signal, subprocess, sys, time
import icelaunch_nb as ice

folder, moment = sys.argv[1:]

def job():
    ctx = ice.get_context()
    print("before")
    child = subprocess.Popen(["sleep", "977"])
    open(f"{folder}/child{ctx.restart_count}.{ctx.rank}", "w").write(str(child.pid))
    if moment == "stopping":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if moment == "in C":
        ctypes.PyDLL(None).sleep(60)
    if moment == "collective":
        import torch.distributed as dist
        dist.init_process_group("gloo")
        if ctx.rank == 0:
            time.sleep(60)
        dist.barrier()
    if moment == "restarting" and ctx.restart_count == 0:
        if ctx.rank == 0:
            raise RuntimeError("again")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so that restarting takes its time
        time.sleep(60)
    if moment == "writing":
        return bytes(600 << 20)
    ctx.events.resume.wait(60)
    return ctx.rank

if moment != "starting":
    ice.launch(lambda: 1, nproc_per_node=2).result()
run = ice.launch(job, nproc_per_node=2, log_dir=f"{folder}/logs", run_id="matrix", max_restarts=1 if moment == "restarting" else 0)
open(f"{folder}/launched", "w").write(run.log_dir)
if moment == "stopping":
    while not all(os.path.exists(f"{folder}/child0.{rank}") for rank in (0, 1)):
        time.sleep(0.005)
    run.stop(2.5)
try:
    run.result()
    said = "SUCCEEDED"
except ice.IcelaunchError as error:
    said = type(error).__name__
open(f"{folder}/said", "w").write(f"{run.state} {said}")
open(f"{folder}/next", "w").write(str(ice.launch(lambda: ice.get_context().rank, nproc_per_node=2).result(30)))
"""


def until(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


class Cell:
    """One cell of the matrix."""

    def __init__(self, folder: Path, victim: str, signum: str, moment: str) -> None:
        self.folder, self.victim, self.signum, self.moment = folder, victim, signum, moment
        self.kernel = subprocess.Popen([sys.executable, "-c", KERNEL, str(folder), moment], start_new_session=True,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.seen: set[Process] = set()

    def run(self) -> str:
        """``ok``, or what is not as promised."""
        try:
            return self._try()
        finally:
            for process in self.seen:
                process.send(signal.SIGCONT)
            self.kernel.kill()
            self.kernel.wait()
            until(lambda: not any(process.alive() for process in self.seen), 5)
            for process in self.seen:
                process.send(signal.SIGKILL)

    def _try(self) -> str:
        if not until(lambda: (self.folder / "launched").exists() and (self.folder / "launched").read_text(), 60):
            return "never launched"
        run = Run((self.folder / "launched").read_text())
        if not until(lambda: self._moment_is_here(run), 60):
            return "the moment never came"
        self._look(run)
        victims = self._victims(run)
        if not victims:
            return "–"
        for process in victims:
            process.send(getattr(signal, f"SIG{self.signum}"))
        if self.signum == "STOP":
            time.sleep(1.0)  # the while that a machine hangs
            for process in victims:
                process.send(signal.SIGCONT)
        return self._judge(run)

    def _moment_is_here(self, run: Run) -> bool:
        events = {json.loads(line)["event"] for line in run_lines(run)}
        children = [self.folder / f"child{1 if self.moment == 'never' else 0}.{rank}" for rank in (0, 1)]
        there = all(child.exists() and child.read_text() for child in children)
        match self.moment:
            case "starting":
                return self.victim in ("kernel", "host", "forkserver") or "attempt" in events or "agent" in events
            case "restarting":
                return there and "attempt" in events and Path(run.log_dir, "attempt_0/0/error.json").exists()
            case "stopping":
                return there and "stopping" in events
            case "writing":
                return any(Path(run.log_dir).glob("attempt_0/*/.result*"))
            case _:
                return there and "attempt" in events

    def _look(self, run: Run) -> None:
        for process in psutil.Process(self.kernel.pid).children(recursive=True):
            found = Process.of(process.pid)
            if found is not None:
                self.seen.add(found)
        for child in self.folder.glob("child*"):
            found = Process.of(int(child.read_text() or 0))
            if found is not None:
                self.seen.add(found)

    def _victims(self, run: Run) -> list[Process]:
        host = [p for p in psutil.Process(self.kernel.pid).children() if "icelaunch_nb.host" in p.cmdline()]
        ranks = sorted(run.pids.items())
        match self.victim:
            case "kernel":
                pids = [self.kernel.pid]
            case "host":
                pids = [p.pid for p in host]
            case "forkserver":
                until(lambda: any("forkserver" in " ".join(c.cmdline()) for p in host for c in p.children()), 5)
                pids = [c.pid for p in host for c in p.children() if "forkserver" in " ".join(c.cmdline())]
            case "agent":
                pids = [run.story.agent.pid] if run.story.agent else []
            case "one rank":
                pids = [pid for _, pid in ranks if (rank := Process.of(pid)) and rank.alive()][:1]
            case _:
                pids = [pid for _, pid in ranks]
        return [process for pid in pids if (process := Process.of(pid)) and process.alive()]

    def _judge(self, run: Run) -> str:
        kernel_lives = self.victim != "kernel" or self.signum == "STOP"
        grace = 5.5 if self.moment in ("stopping", "restarting") else 0
        if kernel_lives and self.signum == "STOP" and self.moment not in ("stopping",):
            run.resume()
            if self.moment in ("in C", "collective"):
                if not until(lambda: run.state == "RUNNING", LIMIT + grace):
                    return f"did not go on: {run.state}"
                run.kill()
        patience = LIMIT + grace + (10 if self.moment in ("starting", "writing") else 0)
        if not until(lambda: run.state.over or self._said(), patience):
            if not kernel_lives or run.state not in ("RUNNING", "STARTING"):
                return f"still {run.state}"
            run.resume()  # it went on, as its config says
            if not until(lambda: run.state == "SUCCEEDED", 20):
                return f"did not go on: {run.state}"
        ours = [process for process in self.seen if process.pid != self.kernel.pid]
        of_run = [p for p in ours if p in self._run_processes(run)] if kernel_lives else ours
        if not until(lambda: not any(process.alive() for process in of_run), LIMIT):
            return f"left: {[process.pid for process in of_run if process.alive()]}"
        ends = [json.loads(line) for line in run_lines(run)][-1:]
        if run.state != "LOST" and run.story.attempts and ends[0]["event"] != "end":
            return f"journal ends with {ends[0]['event']}"
        if self.moment not in ("starting",) and run.logs(0, attempt=0) != "before\n":
            return "lost output"
        if kernel_lives and not until(lambda: (self.folder / "next").exists() and (self.folder / "next").read_text(), 40):
            return "the next launch did not work"
        return f"ok {self._said().partition(' ')[0] or run.state}"

    def _said(self) -> str:
        """The state that the kernel saw."""
        path = self.folder / "said"
        return path.read_text() if path.exists() else ""

    def _run_processes(self, run: Run) -> set[Process]:
        story = run.story
        found = {story.agent} if story.agent else set()
        found |= {Process(rank["pid"], rank["started"]) for attempt in story.attempts for rank in attempt["ranks"]}
        named = {process.pid for process in found}
        children = {int(path.read_text() or 0) for path in self.folder.glob("child*")}
        return {process for process in self.seen if process.pid in named | children}


def run_lines(run: Run) -> list[str]:
    path = Path(run.log_dir, "journal.jsonl")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, known in (("victims", VICTIMS), ("signals", SIGNALS), ("moments", MOMENTS)):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), default=list(known), help=", ".join(known))
    chosen = parser.parse_args()
    broken = 0
    print("| victim | signal | " + " | ".join(chosen.moments) + " |\n|" + "---|" * (len(chosen.moments) + 2))
    for victim in chosen.victims:
        for signum in chosen.signals:
            row = []
            for moment in chosen.moments:
                with tempfile.TemporaryDirectory(prefix="kill-matrix-", ignore_cleanup_errors=True) as folder:
                    os.environ["XDG_STATE_HOME"] = folder
                    row.append(Cell(Path(folder), victim, signum, moment).run())
                broken += not row[-1].startswith(("ok", "–"))
            print(f"| {victim} | {signum} | " + " | ".join(row) + " |", flush=True)
    print(f"\n{broken} broken" if broken else "\nall as promised")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
