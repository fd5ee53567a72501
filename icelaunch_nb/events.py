"""Events: the flags and counters of a run, by the names of ice-learn's events."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from icelaunch_nb.launching.rank_environment import ATTEMPT_VARIABLE
from icelaunch_nb.rundir import agent_requests, step_board
from icelaunch_nb.rundir.events_board import BARS_WORD, COUNTERS, FLAGS, REQUESTS, Board
from icelaunch_nb.rundir.paths import RUN_DIR_VARIABLE, RunDir

# Seconds. A flag is a byte in memory, so reading it costs next to nothing.
_POLL_INTERVAL = 0.002


class Flag:
    """One event, with the methods of `threading.Event`, shared by every process of the run.

    The run's agent sets the flags that are requests: ``pause``, ``resume``, ``stop_all_tasks`` and
    ``trigger_save_checkpoint``. For these, `set` and `clear` send a request to the agent, and
    return once it is carried out. In a run without an agent, and before there is a run, they change
    the flag themselves.
    """

    def __init__(self, board: Board, name: str) -> None:
        self._board, self.name = board, name

    def set(self) -> None:
        """Sets the flag."""
        self._change(True)

    def clear(self) -> None:
        """Clears the flag."""
        self._change(False)

    def _change(self, value: bool) -> None:
        request = agent_requests.SetFlag(flag=self.name, value=value)
        if self.name in REQUESTS and self._board.path is not None:
            agent_requests.send_and_wait(RunDir(self._board.path.parent), self._board, request)
        else:
            agent_requests.change_flags(self._board, request)

    def is_set(self) -> bool:
        """Whether the flag is set."""
        return self._board.is_set(self.name)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the flag is set.

        Args:
            timeout: Seconds. None: no limit.

        Returns:
            Whether the flag is set.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            remaining = (
                _POLL_INTERVAL
                if deadline is None
                else min(_POLL_INTERVAL, deadline - time.monotonic())
            )
            if remaining <= 0:
                return False
            time.sleep(remaining)
        return True

    def __repr__(self) -> str:
        return f"<{self.name}: {'set' if self._board.is_set(self.name) else 'clear'}>"


class _StopFlag(Flag):
    """The flag ``stop_all_tasks``.

    A rank that has read it gets the grace of a stop. A rank that never has gets SIGTERM at once.
    """

    _reported = False

    def is_set(self) -> bool:
        if not self._reported:
            self._reported = True
            self._report_reading()
        return super().is_set()

    def _report_reading(self) -> None:
        env, path = os.environ, self._board.path
        if path is not None and env.get(RUN_DIR_VARIABLE) == str(path.parent):
            step_board.mark_listening(
                RunDir(path.parent).steps(int(env.get(ATTEMPT_VARIABLE, 0))),
                int(env.get("LOCAL_RANK", 0)),
            )


class Counter:
    """A whole number, shared by every process of the run."""

    def __init__(self, board: Board, name: str) -> None:
        self._board, self._index, self.name = board, BARS_WORD + COUNTERS.index(name), name

    @property
    def value(self) -> int:
        """The number. Assign to it to change it."""
        return int(self._board.words[self._index])

    @value.setter
    def value(self, value: int) -> None:
        self._board.words[self._index] = int(value)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.value}>"


class Events:
    """The events of a run: eight flags and two counters.

    ``pause``, ``paused``, ``resume``, ``stop_all_tasks``, ``trigger_save_checkpoint``,
    ``finished_save_checkpoint``, ``debugger_start`` and ``debugger_end`` have ``set``, ``clear``,
    ``is_set`` and ``wait(timeout)``. ``progress_bar_iter`` and ``progress_bar_total`` have
    ``value``.

    Give an instance to `launch`, or pass it to the launched function as an argument. A rank also
    finds the events in ``get_context().events``. All of these share one board. A loop over
    ``ctx.steps`` clears ``resume`` once it has acted on it, so other code can't wait for it.

    Args:
        path: The board's file. None: a board in memory, until a run takes it over.

    Raises:
        OSError: There is no such file, or it isn't a regular file.
        ValueError: The file is no board.
    """

    pause: Flag
    paused: Flag
    resume: Flag
    stop_all_tasks: Flag
    trigger_save_checkpoint: Flag
    finished_save_checkpoint: Flag
    debugger_start: Flag
    debugger_end: Flag
    progress_bar_iter: Counter
    progress_bar_total: Counter

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._board = Board(None if path is None else Path(path))
        for name in FLAGS:
            flag = _StopFlag if name == "stop_all_tasks" else Flag
            setattr(self, name, flag(self._board, name))
        for name in COUNTERS:
            setattr(self, name, Counter(self._board, name))

    @classmethod
    def of_run(cls, run_dir: str | os.PathLike[str]) -> Events:
        """Opens the events of a run.

        Args:
            run_dir: The run directory.

        Raises:
            OSError: The directory has no board, or the board isn't a regular file.
            ValueError: The file is no board.
        """
        return cls(RunDir(Path(run_dir)).board)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._board.path is None:
            raise TypeError(
                "these Events belong to no run yet: "
                "give them to launch(events=…) or launch_agent(…, ice_events)"
            )
        return type(self), (str(self._board.path),)

    def __repr__(self) -> str:
        progress = f"{self.progress_bar_iter.value}/{self.progress_bar_total.value}"
        return f"<Events {', '.join(self._board.flags()) or 'nothing set'}, progress {progress}>"
