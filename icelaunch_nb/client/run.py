"""Run: the handle of a launched function. A pure function of the run directory, so any process of the user's can hold one."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from icelaunch_nb import metrics, places, retention, stacks
from icelaunch_nb.config import LaunchConfig
from icelaunch_nb.errors import Failure, IcelaunchError, check_seconds
from icelaunch_nb.events import Events
from icelaunch_nb.moments import in_words
from icelaunch_nb.notebook import debugging, subshell, waiting
from icelaunch_nb.notebook.hosts import Host
from icelaunch_nb.notebook.outcome import Outcome
from icelaunch_nb.notebook.printer import Printer
from icelaunch_nb.notebook.reading import Reading
from icelaunch_nb.rundir import RunDir
from icelaunch_nb.story import State, Story

_LONGEST = 1_000_000  # seconds, as for a rendezvous: 11 days
_unread: list[
    int
] = []  # control FIFOs of runs that were dropped before their agent could read the wish

_TOLD = 4  # places where ranks wait or hang, in a repr


class Run:
    """A run, living or finished.

    What it says is read from the run directory when it is asked. Waiting (`wait`, `result`, ``await run``) shows the streams
    that the config shows, printed by the waiting thread; nothing is printed from anywhere else.

    Args:
        path: The run directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._dir = RunDir(Path(path))
        self._spec = self._dir.read_spec()
        self._lock = threading.RLock()
        self._reading = Reading(self._dir, self._spec["time"])
        self._control: int | None = None
        self._results: dict[int, Any] | None = None
        self._events: Events | None = None
        self._printer: Printer | None = None
        self._held = False
        self._panel: Any = None  # the panel that shows this run, once there is one
        self._plain = False  # whether a cell that ends in it shows a text and no panel

    # What it is.

    @property
    def run_id(self) -> str:
        """The config's run_id, or the generated one."""
        return self._spec["run_id"]

    @property
    def name(self) -> str:
        """The function's name, or the program's."""
        return str(self._spec["name"])

    @property
    def started(self) -> float:
        """When it was launched, in seconds since the epoch."""
        return float(self._spec["time"])

    @property
    def log_dir(self) -> str:
        """The run directory, with the logs in ``attempt_<k>/<local_rank>/``."""
        return str(self._dir.path)

    @property
    def config(self) -> LaunchConfig:
        """What it was launched with."""
        return LaunchConfig.from_json(self._spec["config"])

    @property
    def devices(self) -> dict[int, str]:
        """Device by local rank (``{0: "cuda:0"}``)."""
        return dict(enumerate(self._spec["devices"]))

    @property
    def events(self) -> Events:
        """The events board, shared with the ranks."""
        events = self._events
        if events is None:
            events = self._events = Events.of_run(self._dir.path)
        return events

    def started_by(self, host: Host) -> None:
        """Remembers the host that was asked for its agent, whose end would be this run's."""
        self._reading.host = host

    def hold(self) -> Run:
        """As long as this handle lives, nobody removes the directory as an old one's."""
        if not self._held:
            self._held = True
            retention.watch_while(self, self._dir.path)
        return self

    # How it stands.

    @property
    def story(self) -> Story:
        """What the journal says, as of now."""
        story = self._reading.now()
        if story.state.over:
            self._let_go()
        return story

    def _let_go(self) -> None:
        """A run that is over holds no descriptor; who asks for its events again gets them again."""
        with self._lock:
            self._events = None
            if self._control is not None:
                os.close(self._control)
                self._control = None

    @property
    def state(self) -> State:
        """STARTING, RUNNING, PAUSED, RESTARTING, STOPPING, SUCCEEDED, FAILED, STOPPED or LOST; equal to these as strings."""
        state = self.story.state
        return State.PAUSED if state == State.RUNNING and self._is_paused() else state

    def _is_paused(self) -> bool:
        try:
            return self.events.paused.is_set()
        except (OSError, ValueError):  # a directory without a board
            return False

    @property
    def waiting(self) -> dict[int, str]:
        """Where the ranks wait that are in the debugger, by global rank: ``{2: "cell 5, line 7"}``."""
        return {rank: at["where"] for rank, at in sorted(self.story.debugged.items())}

    @property
    def silent(self) -> dict[int, str]:
        """Where the ranks stand that the hang watch calls silent (``launch(hang_after=60)``), by global rank; empty if that can't be told."""
        return dict(sorted(self.story.silent.items()))

    def standing(self) -> list[str]:
        """Who waits in the debugger and who hangs, in words, the odd one out first: ``rank 2 waits at cell 5, line 7``."""
        story = self.story
        waiting = [f"rank {rank} waits at {where}" for rank, where in self.waiting.items()]
        hanging = [
            f"{in_words(ranks)} silent" + f" at {where}" * bool(where)
            for ranks, where in story.hangs()
        ]
        return waiting[:_TOLD] + hanging[:_TOLD]

    @property
    def last_checkpoint(self) -> str | None:
        """The path that a rank told `Context.checkpoint_saved`; None: none did."""
        saved = self._dir.read_checkpoint()
        return saved["path"] if saved else None

    def metrics(self) -> Any:
        """What the ranks reported (`Context.report`), in order of time: ``attempt``, ``rank``, ``step``, ``time`` and the metrics.

        Returns:
            A pandas DataFrame where pandas is installed, else a list of dicts.
        """
        rows = metrics.read(
            (attempt["attempt"], self._dir.rank(attempt["attempt"], entry["local_rank"]).metrics)
            for attempt in self.story.attempts
            for entry in attempt["ranks"]
        )
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            return rows
        return pandas.DataFrame(rows, columns=None if rows else list(metrics.COLUMNS))

    @property
    def attempt(self) -> int:
        """Number of the newest attempt, from 0."""
        return max(0, len(self.story.attempts) - 1)

    @property
    def restarts(self) -> int:
        """How often the ranks were restarted: attempts started, less one."""
        return self.attempt

    @property
    def pids(self) -> dict[int, int]:
        """Pid by global rank, of this machine's ranks in the newest attempt; empty before and after."""
        story = self.story
        if story.state.over or not story.attempts:
            return {}
        return {rank["rank"]: rank["pid"] for rank in story.attempts[-1]["ranks"]}

    @property
    def failures(self) -> list[Failure]:
        """Every failed rank of the newest attempt that failed, the cause first."""
        return list(self.story.failures)

    @property
    def elapsed(self) -> float:
        """Seconds since the launch, up to the end."""
        end = self.story.end
        return (end["t"] if end else time.time()) - self._spec["time"]

    def logs(self, rank: int = 0, stream: str = "stdout", attempt: int = -1) -> str:
        """What a rank wrote, from disk.

        Args:
            rank: Global rank.
            stream: ``"stdout"`` or ``"stderr"``.
            attempt: Number of the attempt; negative ones count from the newest.

        Raises:
            ValueError: There is no such rank, stream or attempt.
        """
        attempts = self.story.attempts
        if stream not in ("stdout", "stderr"):
            raise ValueError(f"stream={stream!r}: must be 'stdout' or 'stderr'")
        if not attempts:
            return ""
        try:
            ranks = {entry["rank"]: entry["local_rank"] for entry in attempts[attempt]["ranks"]}
            number = attempts[attempt]["attempt"]
        except (IndexError, TypeError):
            raise ValueError(f"attempt={attempt!r}: there were {len(attempts)}, from 0") from None
        if isinstance(rank, bool) or rank not in ranks:
            raise ValueError(f"rank={rank!r}: this machine has {', '.join(map(str, ranks))}")
        path = getattr(self._dir.rank(number, ranks[rank]), stream)
        try:
            return path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return ""

    # Waiting.

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end, showing what ranks print; whether it came within `timeout` seconds.

        Interrupting it stops the run; a second interrupt kills it. Where no panel has a prompt for ranks that come to a breakpoint,
        and no timeout was given, this asks at their prompts.

        Raises:
            ValueError: `timeout` is no number of seconds.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        try:
            asks = timeout is None and debugging.somebody_can_be_asked()
            for pause in self._watch(timeout):
                subshell.take_clicks()
                if asks and self._reading.last.debugged and not self._panel_speaks():
                    asks = debugging.offer(self)
                time.sleep(pause)
        except KeyboardInterrupt:
            waiting.end(self)
            raise
        return self.state.over

    def result(self, timeout: float | None = None) -> dict[int, Any]:
        """Waits for the end; what the ranks returned, by global rank.

        Raises:
            TimeoutError: It did not end within `timeout` seconds; it goes on.
            RunFailed: A rank failed.
            RunStopped: It was stopped before all its ranks returned; a run whose ranks all did gives its results.
            RunLost: Its agent vanished.
            KeyboardInterrupt: The waiting cell was interrupted; the run is stopped.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"run {self.run_id} goes on after {timeout} s: {self!r}")
        return self._come_to()

    def __await__(self) -> Generator[Any, None, dict[int, Any]]:
        return self._await().__await__()

    async def _await(self) -> dict[int, Any]:
        import asyncio  # 30 ms that a script which doesn't await needn't pay

        try:
            for pause in self._watch(None):
                subshell.take_clicks()
                await asyncio.sleep(pause)
        except asyncio.CancelledError as error:
            raise waiting.end_of_await(self, error) from None
        return self._come_to()

    def _come_to(self) -> dict[int, Any]:
        if self._results is None:
            self._results = Outcome(
                self._dir, self.story, run_id=self.run_id, program=bool(self._spec["program"])
            ).results()
        return dict(self._results)

    def _watch(self, timeout: float | None) -> Iterator[float]:
        """Shows what is new and yields how long to pause, until the end or the timeout.

        Polling beats waking here: a look at the journal is one read of a file, 20 µs, and works for a run that another
        kernel started. The pause grows from 1 ms to 20 ms, so a short run is seen at once and a long one costs 0.1 % CPU.
        """
        started, next_show = time.monotonic(), 0.0
        printer = self._the_printer()
        while True:
            story, now = self.story, time.monotonic()
            if story.state.over or now >= next_show:
                # Looking at 16 logs costs 0.3 ms; doing it at every look at the journal would slow the start of 8 ranks.
                if not self._panel_speaks():
                    with self._lock:
                        printer.show(story.attempts, final=story.state.over)
                next_show = now + 0.02
            waited = now - started
            if story.state.over and self._panel is not None:
                self._panel.renew_displays()  # while the waiting cell runs: a client without a browser listens to that alone
            if story.state.over or (timeout is not None and waited >= timeout):
                return
            pause = min(0.02, 0.001 + waited / 100)
            yield pause if timeout is None else min(pause, max(0.0, timeout - waited))

    def _the_printer(self) -> Printer:
        with self._lock:
            if self._printer is None:
                self._printer = Printer(self._dir, self.config)
            return self._printer

    def _panel_speaks(self) -> bool:
        return self._panel is not None and self._panel.speaks

    def leave_out(self, rank: int, first: int, last: int) -> None:
        """Doesn't print that part of a rank's stdout, in bytes, when somebody waits for this run: the debugger's prompt showed it."""
        self._the_printer().leave_out(self._stdout_of(rank), first, last)

    def has_shown(self, rank: int, size: int) -> bool:
        """Whether so many bytes of a rank's stdout were printed, since somebody waits for this run."""
        return self._the_printer().has_shown(self._stdout_of(rank), size)

    def _stdout_of(self, rank: int) -> Path:
        attempt = self.story.attempts[-1]
        (local_rank,) = (entry["local_rank"] for entry in attempt["ranks"] if entry["rank"] == rank)
        return self._dir.rank(attempt["attempt"], local_rank).stdout

    # Acting.

    def stop(self, grace: float = 30) -> None:
        """Asks the run to stop, and returns at once.

        Sets ``events.stop_all_tasks``: loops over ``ctx.steps`` end at one and the same step, functions return what they return,
        and `result` gives it. Ranks that take longer than `grace` seconds get SIGTERM, and soon after SIGKILL. Ranks that never
        looked at a step or at that event get SIGTERM at once, and SIGKILL after `grace` seconds.
        """
        check_seconds("grace", grace, most=_LONGEST)
        with contextlib.suppress(OSError, ValueError):
            if not self.story.state.over:
                self.events.stop_all_tasks.set()
        self._wish(f"stop {grace}")

    def kill(self) -> None:
        """Ends the ranks now, by SIGKILL."""
        self._wish("kill")

    def detach(self) -> None:
        """From here on it outlives this kernel; `attach` finds it again."""
        self._wish("detach")
        if (host := self._reading.host) is not None:
            host.detach(self.log_dir)

    def pause(self) -> None:
        """Sets ``events.pause``, clears ``events.resume``: loops over ``ctx.steps`` pause before one and the same step.

        ``events.paused`` is set, and `state` is PAUSED, once all ranks have.
        """
        with self.events.locked():  # else `paused` could still tell of a pause before this one
            self.events.resume.clear()
            self.events.pause.set()

    def resume(self) -> None:
        """Sets ``events.resume``, clears ``events.pause``: paused ranks go on."""
        with self.events.locked():
            self.events.pause.clear()
            self.events.resume.set()

    def save_checkpoint(self) -> None:
        """Sets ``events.trigger_save_checkpoint``: ``ctx.should_checkpoint()`` is true once, at the same step on every rank.

        ``events.finished_save_checkpoint`` is set once all ranks have gone on from there.
        """
        with (
            self.events.locked()
        ):  # else the end of an earlier request could be taken for this one's
            self.events.finished_save_checkpoint.clear()
            self.events.trigger_save_checkpoint.set()

    def stacks(self, timeout: float = 3.0) -> stacks.Stacks:
        """Where every rank is now: the Python stacks of all its threads, by global rank.

        Shown, equal stacks are told once, and the odd one out first. A signal makes faulthandler write them, so it works without
        ptrace and while a rank sits in a C call. Where py-spy is installed and allowed to, it adds the frames of C and C++ code, for one
        of those ranks whose Python stacks are equal, and for each that didn't answer, as those of a program can't.

        Args:
            timeout: Seconds to wait at most for ranks that are slow to answer; those are left empty.
        """
        story, program = self.story, bool(self._spec["program"])
        if story.state.over or not story.attempts:
            return stacks.Stacks({})
        deadline, names, pids = time.monotonic() + timeout, places.cell_names(self._dir), self.pids
        asked = stacks.ask(self._dir, story.attempts[-1], timeout)
        found = stacks.Stacks(
            {rank: stacks.readable(text, names) for rank, text in asked.items()}, program=program
        )
        # Not all of them: looking into a process takes py-spy half a second of a core.
        spied = stacks.native(
            {rank: pids[rank] for rank in found.speakers if rank in pids},
            deadline - time.monotonic(),
        )
        return found.with_native(
            {rank: stacks.readable(text, names) for rank, text in spied.items()}
        )

    def debug(
        self,
        rank: int | None = None,
        commands: Iterable[str] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Opens the prompt of a rank that waits at a breakpoint (``breakpoint()``, ``ice.set_trace()``), once one does.

        The prompt is pdb's: ``n``, ``s``, ``up``, ``p x`` and so on. ``c`` lets the rank go on and ends this call, ``q`` stops
        the run as `stop` does. Interrupt or Ctrl+D leaves the prompt; the rank waits on, and another call comes back to it.

        Args:
            rank: Global rank; None: the first one that waits.
            commands: What to type, as ``["p loss", "c"]``; None: asks for each. When they are used up the rank waits on; where
                some are left after a ``c``, they are for its next breakpoint.
            timeout: Seconds to wait for a breakpoint; None: until the run is over.

        Raises:
            ValueError: The run has no such rank on this machine, or an argument can't be.
            IcelaunchError: The run is over.
            TimeoutError: No breakpoint was reached in time.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        if isinstance(commands, str):
            raise ValueError(f"commands={commands!r}: must be a list of commands")
        debugging.session(self, rank, commands, timeout)

    def _wish(self, line: str) -> None:
        """Writes into the agent's FIFO. Kept open until the end: before an agent reads it, the wish lives in our descriptor."""
        if self.state.over:
            return
        if self._control is None:
            self._control = os.open(self._dir.control, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(self._control, line.encode() + b"\n")
        except OSError as error:
            if (
                error.errno != errno.EAGAIN
            ):  # full of wishes that nobody reads: one more changes nothing
                raise

    # How it looks.

    def panel(self) -> Any:
        """The panel: its state, its ranks, their logs and the buttons to act on it, live. A run that ends a cell shows it too.

        Raises:
            IcelaunchError: The package was not built, so that its front end is missing.
        """
        from icelaunch_nb.notebook.panel.panel import panel_of

        self._panel = panel_of(self.hold())
        return self._panel

    def show_plainly(self) -> None:
        """From here on a cell that ends in this handle shows it as text; `panel` still gives the panel."""
        self._plain = True

    def _ipython_display_(self) -> None:
        if self._plain:
            importlib.import_module("IPython.display").display({"text/plain": repr(self)}, raw=True)
        else:
            self.panel()._ipython_display_()

    def __repr__(self) -> str:
        story, ranks = self.story, self._spec["config"]["nproc_per_node"]
        parts = [
            f"{self.state}",
            f"{ranks} rank{'s' * (ranks != 1)}",
            f"attempt {self.attempt}",
            f"{self.restarts} restart{'s' * (self.restarts != 1)}",
            f"{self.elapsed:.1f} s",
            self.log_dir,
        ]
        if story.state == State.FAILED and story.failures:
            root = story.failures[0]
            parts.insert(1, f"rank {root.rank}: {' '.join(root.title.split())[:80]}")
        parts[1:1] = self.standing()
        return f"<Run {self.run_id}: {', '.join(parts)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return attach_to, (self.log_dir,)

    def __del__(self) -> None:
        control = getattr(self, "_control", None)
        if control is None:
            return
        story = self._reading.last
        if story.agent is None and not story.state.over:
            _unread.append(control)  # closing it would take back a wish that no agent has read yet
        else:
            os.close(control)


def attach_to(path: str) -> Run:
    """The run that lies in a directory.

    Raises:
        IcelaunchError: None does.
    """
    if not os.path.isdir(path):
        raise IcelaunchError(f"{path} is no directory")
    return Run(path)
