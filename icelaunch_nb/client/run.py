"""Run: the handle of a launched function.

It reads the run directory and sends requests to the run's agent. So any process of the same user
can hold one, and several can at once.
"""

from __future__ import annotations

import copy
import importlib
import os
import time
from collections.abc import Generator, Iterable
from typing import Any

from icelaunch_nb.client import debug_client, display_hooks, interrupts, rank_data, running_cell
from icelaunch_nb.client.host_pool import HostProcess
from icelaunch_nb.client.results import Results
from icelaunch_nb.client.run_monitor import RunMonitor
from icelaunch_nb.client.run_waiter import RunWaiter
from icelaunch_nb.client.seconds import check_seconds
from icelaunch_nb.config import LaunchConfig
from icelaunch_nb.errors import Failure, IcelaunchError, UnreadableRunError, UntrustedFileError
from icelaunch_nb.events import Events
from icelaunch_nb.rundir import agent_requests, retention
from icelaunch_nb.rundir.agent_requests import GRACE
from icelaunch_nb.rundir.checkpoint import read_checkpoint
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import RunState, State
from icelaunch_nb.rundir.spec import RunSpec, read_spec
from icelaunch_nb.rundir.stacks import Stacks
from icelaunch_nb.rundir.timeline import format_ranks
from icelaunch_nb.system.plaintext import as_of, one_line

_LONGEST = 1_000_000  # seconds, as for a rendezvous: 11 days
_MAX_STATUS_LINES = 4  # of ranks that wait, and as many of ranks that hang, in a repr


class Run:
    """A run, alive or over.

    Each access to a property reads the run directory. Waiting (`wait`, `result`, ``await run``)
    prints the streams that the config shows, in the thread that waits. No other thread prints.

    ``await run`` follows asyncio's rules: a time-out or a cancelled task ends the wait, and the run
    goes on. Interrupt stops the run that a cell waits for. The wait may be in the cell's own code,
    in a task that the cell created, or in its `asyncio.to_thread`.

    Args:
        path: The run directory.

    Raises:
        IcelaunchError: The directory holds no run, can't be read, or belongs to another user.
    """

    def __init__(self, path: str | os.PathLike[str] | RunDir) -> None:
        self._dir = path if isinstance(path, RunDir) else RunDir.at(path)
        self._spec = self._read_spec()
        self._monitor = self._make_monitor()
        self._waiter = RunWaiter(self._dir, self._spec, self._monitor)
        self._results: dict[int, Any] | None = None
        self._events: Events | None = None
        self._pinned = False
        self._plain = False  # whether a cell that ends in this handle shows a text, no panel
        running_cell.hook()

    def _read_spec(self) -> RunSpec:
        return read_spec(self._dir)

    def _make_monitor(self) -> RunMonitor:
        return RunMonitor(self._dir, self._spec.time)

    # What it is.

    @property
    def run_id(self) -> str:
        """The config's run_id, or the generated one."""
        return self._spec.run_id

    @property
    def name(self) -> str:
        """The function's name, or the program's."""
        return self._spec.name

    @property
    def started(self) -> float:
        """When it was launched, in seconds since the epoch."""
        return self._spec.time

    @property
    def log_dir(self) -> str:
        """The run directory, with the logs in ``attempt_<k>/<local_rank>/``."""
        return str(self._dir.path)

    @property
    def config(self) -> LaunchConfig:
        """The config that the run was launched with."""
        return copy.copy(self._spec.config)

    @property
    def devices(self) -> dict[int, str]:
        """Device by local rank (``{0: "cuda:0"}``)."""
        return dict(enumerate(self._spec.devices))

    @property
    def events(self) -> Events:
        """The events board, shared with the ranks.

        Raises:
            UnreadableRunError: The board is missing or damaged.
        """
        events = self._events
        if events is None:
            try:
                events = self._events = Events.of_run(self._dir.path)
            except UntrustedFileError:
                raise
            except (OSError, ValueError) as error:
                raise UnreadableRunError(
                    f"run {self.run_id} has no events that can be read: {error}"
                ) from None
        return events

    def _set_host(self, host: HostProcess) -> None:
        """Stores the host that starts the run's agent. If the host ends, the run ends."""
        self._monitor.host = host

    def _pin(self) -> Run:
        """Protects the directory from the removal of old runs, as long as this handle lives."""
        if not self._pinned:
            self._pinned = True
            retention.pin_while(self, self._dir.path)
        return self

    # The state.

    @property
    def _run_state(self) -> RunState:
        """The run's state by its journal, as of now."""
        run_state = self._monitor.poll()
        if run_state.state.over:
            # A run that is over holds no descriptor. `events` opens the board again.
            self._events = None
        return run_state

    @property
    def state(self) -> State:
        """The state now. It equals its name as a string.

        STARTING, RUNNING, PAUSED, RESTARTING, STOPPING, SUCCEEDED, FAILED, STOPPED or LOST.
        """
        state = self._run_state.state
        return State.PAUSED if state == State.RUNNING and self._is_paused() else state

    def _is_paused(self) -> bool:
        try:
            return self.events.paused.is_set()
        except (UnreadableRunError, UntrustedFileError):  # a directory without a board
            return False

    @property
    def in_debugger(self) -> dict[int, str]:
        """Where ranks wait in the debugger, by global rank: ``{2: "cell 5, line 7"}``."""
        return {rank: event.where for rank, event in sorted(self._run_state.debugged.items())}

    @property
    def silent(self) -> dict[int, str]:
        """Where ranks are that the hang detector calls silent, by global rank.

        The text is empty if the place isn't known. ``launch(hang_after=60)`` sets the detector's
        time, in seconds.
        """
        return dict(sorted(self._run_state.silent.items()))

    def status_lines(self) -> list[str]:
        """The ranks that wait in the debugger or hang, the odd one out first.

        A line reads ``rank 2 waits at cell 5, line 7``.
        """
        waiting = [f"rank {rank} waits at {where}" for rank, where in self.in_debugger.items()]
        hanging = [
            f"{format_ranks(ranks)} silent" + f" at {where}" * bool(where)
            for ranks, where in self._run_state.hangs()
        ]
        return waiting[:_MAX_STATUS_LINES] + hanging[:_MAX_STATUS_LINES]

    @property
    def last_checkpoint(self) -> str | None:
        """The path that a rank gave last to `Context.checkpoint_saved`. None until one did."""
        saved = read_checkpoint(self._dir)
        return saved.path if saved else None

    def metrics(self) -> Any:
        """What the ranks reported (`Context.report`), in order of time.

        The columns are ``attempt``, ``rank``, ``step``, ``time`` (seconds since the epoch) and the
        metrics' names.

        Returns:
            A pandas DataFrame where pandas is installed, else a list of dicts.
        """
        return rank_data.read_metrics(self._dir, self._run_state.attempts)

    @property
    def attempt(self) -> int:
        """Number of the newest attempt, from 0."""
        return max(0, len(self._run_state.attempts) - 1)

    @property
    def restarts(self) -> int:
        """How often the ranks were restarted: attempts started, less one."""
        return self.attempt

    @property
    def pids(self) -> dict[int, int]:
        """Pid by global rank, of this machine's ranks in the newest attempt.

        Empty before the first attempt and after the run's end.
        """
        run_state = self._run_state
        return {} if run_state.state.over else {entry.rank: entry.pid for entry in run_state.ranks}

    @property
    def failures(self) -> list[Failure]:
        """The failed ranks of the newest attempt in which any failed, the cause first."""
        return list(self._run_state.failures)

    @property
    def elapsed(self) -> float:
        """Seconds since the launch, up to the end."""
        end = self._run_state.end
        return (end.t if end else time.time()) - self._spec.time

    def logs(self, rank: int = 0, stream: str = "stdout", attempt: int = -1) -> str:
        """Reads from disk what a rank wrote.

        Args:
            rank: Global rank.
            stream: ``"stdout"`` or ``"stderr"``.
            attempt: Number of the attempt. Negative numbers count from the newest.

        Raises:
            ValueError: There is no such rank, stream or attempt.
        """
        return rank_data.read_log(self._dir, self._run_state.attempts, rank, stream, attempt)

    # Waiting.

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end and shows what ranks print meanwhile.

        An Interrupt stops the run, a second one kills it. If there is no `timeout`, and no panel
        shows the debugger's prompt, this opens the prompts of ranks at a breakpoint.

        Args:
            timeout: Seconds to wait at most. None: no limit.

        Returns:
            Whether the run is over.

        Raises:
            ValueError: `timeout` is no number of seconds.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        with running_cell.waiting_for(self) as waiting_here, running_cell.raising_interrupts():
            try:
                can_ask = timeout is None and debug_client.can_ask_user()
                for pause in self._waiter.pauses(timeout):
                    display_hooks.run_wait_callbacks()
                    waits = can_ask and self._monitor.last.debugged
                    if waits and not self._waiter.panel_shows_output():
                        can_ask = debug_client.open_prompts(self)
                    waiting_here.wake_loop()
                    time.sleep(pause)
            except KeyboardInterrupt:
                interrupts.stop_and_wait(self)
                raise
        return self.state.over

    def result(self, timeout: float | None = None) -> dict[int, Any]:
        """Waits for the end and returns what the ranks returned, by global rank.

        Args:
            timeout: Seconds to wait at most. None: no limit.

        Raises:
            TimeoutError: The run did not end within `timeout` seconds. It goes on.
            RunFailed: A rank failed.
            RunStopped: The run was stopped before all its ranks returned.
            RunLost: The run's agent vanished.
            KeyboardInterrupt: The waiting cell was interrupted. The run is stopped.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"run {one_line(self.run_id)} goes on after {timeout} s: {self!r}")
        return self._collect_results()

    def __await__(self) -> Generator[Any, None, dict[int, Any]]:
        return self._await().__await__()

    async def _await(self) -> dict[int, Any]:
        import asyncio  # takes 30 ms, which a script that doesn't await needn't spend

        with running_cell.waiting_for(self) as wait:
            try:
                for pause in self._waiter.pauses(None):
                    display_hooks.run_wait_callbacks()
                    # `asyncio.wait` and `shield` keep the cell's cancellation from this task.
                    if wait.interrupts:
                        raise asyncio.CancelledError
                    await asyncio.sleep(pause)
            except asyncio.CancelledError:
                if not wait.was_interrupted():
                    raise
                await interrupts.wait_until_over(self, wait)
                if running_cell.in_cell_task():
                    raise KeyboardInterrupt from None
                raise
        return self._collect_results()

    def _collect_results(self) -> dict[int, Any]:
        if self._results is None:
            self._results = Results(
                self._dir, self._run_state, run_id=self.run_id, program=bool(self._spec.program)
            ).get()
        return dict(self._results)

    def _skip_output(self, rank: int, first: int, last: int) -> None:
        """Skips a part of a rank's stdout, in bytes, which the debugger's prompt has shown."""
        self._waiter.skip(rank, first, last)

    def _has_shown(self, rank: int, size: int) -> bool:
        """Whether the first `size` bytes of a rank's stdout have been printed."""
        return self._waiter.has_shown(rank, size)

    # Requests.

    def stop(self, grace: float = GRACE) -> None:
        """Asks the run to stop, and returns at once.

        Sets ``events.stop_all_tasks``: loops over ``ctx.steps`` end at one and the same step, the
        functions return, and `result` gives what they returned. Ranks that take longer than `grace`
        get SIGTERM, and soon after SIGKILL. Ranks that never checked for a stop, by a step or by
        that event, get SIGTERM at once, and SIGKILL after `grace`.

        Args:
            grace: Seconds that the ranks get to end by themselves.
        """
        check_seconds("grace", grace, most=_LONGEST)
        self._request(agent_requests.Stop(grace=float(grace)))

    def kill(self) -> None:
        """Ends the ranks now, by SIGKILL."""
        self._request(agent_requests.Kill())

    def detach(self) -> None:
        """Lets the run outlive this kernel. `attach` finds it again."""
        self._request(agent_requests.Detach())
        if (host := self._monitor.host) is not None:
            host.detach(self.log_dir)

    def pause(self) -> None:
        """Sets ``events.pause`` and clears ``events.resume``.

        Loops over ``ctx.steps`` pause before one and the same step.
        ``events.paused`` is set, and `state` is PAUSED, once all ranks have paused.
        """
        self._request(agent_requests.Pause())

    def resume(self) -> None:
        """Sets ``events.resume`` and clears ``events.pause``, so that paused ranks go on."""
        self._request(agent_requests.Resume())

    def save_checkpoint(self) -> None:
        """Sets ``events.trigger_save_checkpoint``.

        ``ctx.should_checkpoint()`` is then true once, at the same step on every rank.
        ``events.finished_save_checkpoint`` is set once all ranks have gone on from there.
        """
        self._request(agent_requests.SaveCheckpoint())

    def stacks(self, timeout: float = 3.0) -> Stacks:
        """Returns where every rank is now: the Python stacks of all its threads, by global rank.

        The text shows equal stacks once, and the odd one out first. A signal makes faulthandler
        write them. So it needs no ptrace, and works while a rank is in a C call. If py-spy is
        installed and may inspect the ranks, it adds the frames of C and C++ code. It does so for
        one rank of each group with equal stacks, and for each rank that didn't answer. Ranks that
        run another program can't answer.

        Args:
            timeout: Seconds to wait at most. A rank that doesn't answer in time has an empty text.
        """
        return rank_data.get_stacks(
            self._dir, self._run_state, program=bool(self._spec.program), timeout=timeout
        )

    def debug(
        self,
        rank: int | None = None,
        commands: Iterable[str] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Opens the prompt of a rank at a breakpoint (``breakpoint()``, ``ice.set_trace()``).

        It waits until a rank is at a breakpoint. The prompt is pdb's: ``n``, ``s``, ``up``, ``p x``
        and so on. ``c`` lets the rank go on and ends this call. ``q`` stops the run as `stop` does.
        Interrupt or Ctrl+D leaves the prompt. The rank stays at its breakpoint, and another call
        opens its prompt again.

        Args:
            rank: Global rank. None: the first one that waits.
            commands: Commands to send, such as ``["p loss", "c"]``. After the last one, the rank
                stays at its breakpoint. Commands after a ``c`` are for its next breakpoint. None:
                the user types them.
            timeout: Seconds to wait for a breakpoint. None: until the run is over.

        Raises:
            ValueError: The run has no such rank on this machine, or an argument is invalid.
            IcelaunchError: The run is over.
            TimeoutError: No breakpoint was reached in time.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        if isinstance(commands, str):
            raise ValueError(f"commands={commands!r}: must be a list of commands")
        with running_cell.raising_interrupts():
            debug_client.run_session(self, rank, commands, timeout)

    def _request(self, request: agent_requests.Request) -> None:
        """Sends a request to the agent. If it changes flags, this returns after the change."""
        if self.state.over:
            return
        if isinstance(
            request, agent_requests.Pause | agent_requests.Resume | agent_requests.SaveCheckpoint
        ):
            agent_requests.send_and_wait(self._dir, self.events._board, request)
        else:
            agent_requests.send(self._dir, request, strict=True)

    # The display.

    def panel(self) -> Any:
        """Returns the live panel: the run's state, its ranks, their logs, and buttons.

        A cell that ends in the run shows it too.

        Raises:
            IcelaunchError: The package was not built, so its front end is missing.
        """
        self._waiter.panel = display_hooks.panel_of(self._pin())
        return self._waiter.panel

    def _show_plainly(self) -> None:
        """Makes a cell that ends in this handle show a text. `panel` still returns the panel."""
        self._plain = True

    def _ipython_display_(self) -> None:
        if self._plain:
            importlib.import_module("IPython.display").display(
                {"text/plain": "\n".join([repr(self), *([] if self.state.over else [as_of()])])},
                raw=True,
            )
        else:
            self.panel()._ipython_display_()

    def __repr__(self) -> str:
        run_state, ranks = self._run_state, self._spec.nproc_per_node
        parts = [
            f"{self.state}",
            f"{ranks} rank{'s' * (ranks != 1)}",
            f"attempt {self.attempt}",
            f"{self.restarts} restart{'s' * (self.restarts != 1)}",
            f"{self.elapsed:.1f} s",
            self.log_dir,
        ]
        if run_state.state == State.FAILED and run_state.failures:
            root = run_state.failures[0]
            parts.insert(1, f"rank {root.rank}: {' '.join(root.title.split())[:80]}")
        parts[1:1] = self.status_lines()
        return one_line(f"<Run {self.run_id}: {', '.join(parts)}>")

    def __reduce__(self) -> tuple[Any, ...]:
        return attach_to, (self.log_dir,)


def attach_to(path: str) -> Run:
    """Opens the run in a directory.

    Raises:
        IcelaunchError: The directory holds no run.
    """
    if not os.path.isdir(path):
        raise IcelaunchError(f"{path} is no directory")
    return Run(path)
