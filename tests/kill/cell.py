"""One cell of the kill matrix: a run in a real kernel, of which a process is killed at a moment."""

from __future__ import annotations

import json
import re
import signal
import tempfile
import time
from pathlib import Path

from kernel import Kernel, until
from promise import promise

from icelaunch_nb.client import debug_client
from icelaunch_nb.client.run import Run
from icelaunch_nb.system.processes import Process

STOPPED_FOR = 1.0  # seconds between SIGSTOP and SIGCONT, as if the machine hung
TIMEOUT = 60.0  # seconds for each step other than the promise, on a busy machine
# Victims that can be killed while the host still imports torch.
COLD = ("kernel", "host", "forkserver")


class Broken(Exception):
    """A promise isn't kept.

    Args:
        what: What is wrong.
        late: Whether the reason may be that the machine is slow.
    """

    def __init__(self, what: str, *, late: bool = False) -> None:
        super().__init__(what)
        self.late = late


class Cell:
    """One cell.

    Args:
        kernel: The kernel that launches the run.
        victim: One of `promise.VICTIMS`.
        signum: One of `promise.SIGNALS`.
        moment: One of `promise.MOMENTS`.
    """

    def __init__(self, kernel: Kernel, victim: str, signum: str, moment: str) -> None:
        self.kernel, self.victim, self.signum, self.moment = kernel, victim, signum, moment
        self.promise = promise(victim, signum, moment)
        self.folder = Path(tempfile.mkdtemp(prefix="cell-", dir=kernel.home))
        self.kernel_dies = victim == "kernel" and signum != "STOP"

    def check(self) -> str:
        """Returns how the run ended, and after how many seconds.

        Raises:
            Broken: The run ended in another way than promised.
        """
        self.kernel.start_cell(f"job.launch({str(self.folder)!r}, {self.moment!r})")
        launched = self.folder / "launched"
        if not until(launched.exists, TIMEOUT):
            raise Broken("it never launched")
        run = Run(launched.read_text())
        if not until(lambda: self._has_reached_its_moment(run), TIMEOUT):
            raise Broken(f"its moment never came: {run!r}")
        if self.moment in ("in C", "collective"):
            time.sleep(0.1)  # the rank goes from its last Python line into the call
        victims = self._victims(run)
        if not victims:
            raise Broken("there is nobody to kill", late=True)
        self.kernel.died = self.kernel_dies
        for process in victims:
            process.send(getattr(signal, f"SIG{self.signum}"))
        killed_at = time.monotonic()
        if self.signum == "STOP":
            time.sleep(STOPPED_FOR)
            for process in victims:
                process.send(signal.SIGCONT)
            if run.state.over:
                raise Broken(f"it did not go on: {self._end(run)}")
            killed_at = self._release(run)
        elif self.promise.states == ("SUCCEEDED",):
            if not until(
                lambda: (
                    run.state in ("RUNNING", "SUCCEEDED")
                    and run.attempt == (self.moment == "restarting")
                ),
                self.promise.seconds,
            ):
                raise Broken(f"it did not go on: {run!r}", late=True)
            killed_at = self._release(run)
        return self._check_promise(run, killed_at)

    def _has_reached_its_moment(self, run: Run) -> bool:
        reached = all((self.folder / f"reached.{rank}").exists() for rank in (0, 1))
        match self.moment:
            case "starting":
                return {
                    "agent": bool(run._run_state.agent),
                    "one rank": bool(run.pids),
                    "all ranks": bool(run.pids),
                }.get(self.victim, self.victim != "forkserver" or bool(self.kernel.forkserver()))
            case "restarting":
                return reached and (Path(run.log_dir) / "attempt_0/0/error.json").exists()
            case "paused":
                if reached and not run.events.pause.is_set():
                    run.pause()
                return run.state == "PAUSED"
            case "stopping":
                if reached and run.state == "RUNNING":
                    run.stop(2.5)
                return run.state == "STOPPING"
            case "debugger":
                return reached and len(run.in_debugger) == 2
            case "writing":
                drafts = list(Path(run.log_dir).glob("attempt_0/*/.result*"))
                return len(drafts) == 2 and all(draft.stat().st_size >= 4 << 20 for draft in drafts)
        return reached and run.state == "RUNNING"

    def _release(self, run: Run) -> float:
        (self.folder / "go").touch()
        if self.moment == "paused":
            run.resume()
        for rank in run.in_debugger if self.moment == "debugger" else ():
            debug_client.send_command(run, rank, "continue")
        return time.monotonic()

    def _victims(self, run: Run) -> list[Process]:
        ranks = [entry.process for entry in run._run_state.ranks]
        alive = [process for process in ranks if process.alive()]
        found = {
            "kernel": [self.kernel.process],
            "agent": [run._run_state.agent],
            # The last one, because at the moment "restarting" the first one ends by itself.
            "one rank": alive[-1:],
            "all ranks": alive,
            "host": [Process.of(host.pid) if (host := self.kernel.host()) else None],
            "forkserver": [
                Process.of(server.pid) if (server := self.kernel.forkserver()) else None
            ],
        }[self.victim]
        return [process for process in found if process is not None and process.alive()]

    def _check_promise(self, run: Run, killed_at: float) -> str:
        left = self.promise.seconds - (time.monotonic() - killed_at)
        if not until(
            lambda: run.state.over if self.kernel_dies else (self.folder / "outcome").exists(), left
        ):
            raise Broken(f"still {run.state} after {self.promise.seconds} s", late=True)
        took = time.monotonic() - killed_at
        left_behind = (
            self.kernel.family
            if self.kernel_dies
            else lambda: [p for p in self._of_run(run) if p.alive()]
        )
        if not until(lambda: not left_behind(), self.promise.seconds - took):
            raise Broken(f"left after {self.promise.seconds} s: {left_behind()}", late=True)
        took = time.monotonic() - killed_at
        # A process that outlived the victim may still write the journal.
        until(lambda: re.search(self.promise.words, self._end(run)), 1)
        end = self._end(run)
        state = (
            run.state if self.kernel_dies else json.loads((self.folder / "outcome").read_text())[0]
        )
        if state not in self.promise.states:
            raise Broken(f"{state} instead of {' or '.join(self.promise.states)}: {end}")
        if not end.startswith(f"end {state}"):
            raise Broken(f"{state} in the kernel, in the journal: {end}")
        if not re.search(self.promise.words, end):
            raise Broken(f"the journal doesn't say {self.promise.words!r}: {end}")
        self._check_output(run)
        if not self.kernel_dies:
            if not until((self.folder / "next_outcome").exists, TIMEOUT):
                raise Broken("the next launch did not work")
            if (outcome := (self.folder / "next_outcome").read_text()) != '{"0": 0, "1": 1}':
                raise Broken(f"the next launch gave {outcome}")
        return f"{state} {took:.1f} s"

    def _of_run(self, run: Run) -> set[Process]:
        """Returns the run's agent, its ranks, and their children.

        The children are known by the notes of the ranks, since their parents may have ended.
        """
        run_state = run._run_state
        found = {run_state.agent} if run_state.agent else set()
        found |= {entry.process for attempt in run_state.attempts for entry in attempt.ranks}
        pids = {
            pid for note in self.folder.glob("children.*") for pid in json.loads(note.read_text())
        }
        return found | {process for process in self.kernel.family() if process.pid in pids}

    def _end(self, run: Run) -> str:
        """Returns the journal's last line and the failures of the run as one text."""
        path = Path(run.log_dir, "journal.jsonl")
        lines = path.read_text().splitlines() if path.exists() else []
        last = json.loads(lines[-1]) if lines else {}
        failures = "; ".join(
            f"rank {failure.rank} {failure.title} {failure.hint}" for failure in run.failures
        )
        return f"{last.get('event')} {last.get('state')} {last.get('note', '')} {failures}".strip()

    def _check_output(self, run: Run) -> None:
        """Checks that every line that a rank had written whole is in its log, in order."""
        for count in self.folder.glob("printed.*"):
            _, attempt, rank = count.name.split(".")
            number = int(count.read_text() or 0)
            log = Path(run.log_dir, f"attempt_{attempt}/{rank}/stdout.log").read_text()
            # The debugger's output stands between the lines.
            lines = re.findall(r"^(?:\(Pdb\) )?line (\d{8})$", log, re.M)
            if [int(line) for line in lines][:number] != list(range(number)):
                raise Broken(
                    f"output of rank {rank} is lost: {number} lines written, "
                    f"the log ends with {log[-40:]!r}"
                )
