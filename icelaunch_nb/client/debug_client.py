"""A client of a rank's debugger: connects to its prompt, sends commands and reads the answers."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from icelaunch_nb.errors import IcelaunchError
from icelaunch_nb.rundir.debug_socket import (
    Command,
    Complete,
    Completions,
    Left,
    MessageReader,
    Output,
    Prompt,
    connect,
    send,
)
from icelaunch_nb.system.plaintext import one_line

# Seconds between two checks whether a rank is at a breakpoint.
_POLL_INTERVAL = 0.02
# Seconds that the journal may take to record that a rank goes on.
_JOURNAL_TIMEOUT = 0.5
# Seconds that completions may take. A rank that executes a step doesn't answer.
_COMPLETION_TIMEOUT = 1.0


class DebugClient:
    """A connection to the debugger of a rank.

    Args:
        path: The socket in the rank's folder.

    Attributes:
        prompt: The rank's prompt (``(Pdb) ``). None: the rank isn't waiting for a command.
        ended: Whether the rank has left its prompt, or is gone.
        shown_range: Start and end of the part of the rank's stdout that this client has received,
            in bytes.
    """

    def __init__(self, path: Path) -> None:
        self._reader = MessageReader(connect(path))
        self.prompt: str | None = None
        self.ended = False
        self.shown_range = (0, 0)
        self._commands_sent = 0

    def read_output(self) -> Iterator[str]:
        """Yields the rank's output until it waits for a command or goes on."""
        self.prompt = None
        while self.prompt is None and not self.ended:
            messages = self._reader.read()
            if messages is None:
                self.ended = True
            for message in messages or ():
                match message:
                    case Output():
                        yield message.text
                        if message.start is not None:
                            self.shown_range = message.start, self.shown_range[1]
                    case Prompt():
                        self.shown_range = self.shown_range[0], message.end
                        # An earlier prompt follows a command of another client.
                        if message.answered >= self._commands_sent:
                            self.prompt = message.prompt
                    case Left():
                        self.shown_range, self.ended = (self.shown_range[0], message.end), True

    def execute(self, command: str) -> str:
        """Sends a command and returns the rank's output up to its next prompt."""
        self.send(command)
        return "".join(self.read_output())

    def send(self, command: str) -> None:
        """Sends a command. `read_output` gives the answer."""
        self._commands_sent += 1
        try:
            send(self._reader.connection, Command(command=command))
        except OSError:
            self.ended = True

    def complete(self, line: str) -> tuple[list[str], int]:
        """Asks the rank for completions, as TAB does.

        Args:
            line: The line up to the cursor.

        Returns:
            The completions, and the index in `line` where they begin. No completions while the rank
            isn't at its prompt.
        """
        connection = self._reader.connection
        with contextlib.suppress(OSError):
            send(connection, Complete(line=line))
            connection.settimeout(_COMPLETION_TIMEOUT)
            try:
                while (messages := self._reader.read()) is not None:
                    for message in messages:
                        if isinstance(message, Completions):
                            return message.found, message.start
            finally:
                connection.settimeout(None)
        return [], len(line)

    def close(self) -> None:
        """Closes the connection. The rank goes on waiting."""
        self._reader.connection.close()

    def __enter__(self) -> DebugClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect_to_rank(run: Any, rank: int) -> DebugClient:
    """Connects to a rank that is in the debugger.

    Raises:
        IcelaunchError: The rank isn't in the debugger.
    """
    run_state = run._run_state
    if run_state.attempts and not run_state.state.over:
        attempt = run_state.attempts[-1]
        entry = attempt.entry(rank)
        if entry is not None:
            rank_dir = run._dir.rank(attempt.attempt, entry.local_rank, entry.node)
            with contextlib.suppress(OSError):
                return DebugClient(rank_dir.debugger)
    raise IcelaunchError(f"rank {rank} of run {run.run_id} doesn't wait in the debugger")


def send_command(run: Any, rank: int, command: str) -> None:
    """Sends one command to a rank's prompt. The rank's log shows the answer.

    While the rank executes a step, the command waits for its next prompt.

    Raises:
        IcelaunchError: The rank isn't in the debugger.
    """
    with connect_to_rank(run, rank) as client:
        client.send(command)


def complete(run: Any, rank: int, line: str) -> tuple[list[str], int]:
    """As `DebugClient.complete`, for a rank of `run`. Nothing if it isn't in the debugger."""
    with contextlib.suppress(IcelaunchError), connect_to_rank(run, rank) as client:
        return client.complete(line)
    return [], len(line)


def run_session(
    run: Any, rank: int | None, commands: Iterable[str] | None, timeout: float | None
) -> None:
    """Carries out `Run.debug`: waits for the rank, then sends the commands or the user's input."""
    deadline = None if timeout is None else time.monotonic() + timeout
    typed = None if commands is None else iter(commands)
    command = None if typed is None else next(typed, None)
    while True:
        with _wait_for_prompt(run, rank, deadline) as (number, client):
            rank = number
            try:
                _print_output(client)
                came_too_late = client.ended
                while not client.ended:
                    if typed is None:
                        command = _read_command(client, rank)
                    if command is None:
                        return
                    if typed is not None:
                        sys.stdout.write(f"{client.prompt}{command}\n")
                    client.send(command)
                    _print_output(client)
                    command = None if typed is None else next(typed, None)
            finally:
                run._skip_output(rank, *client.shown_range)
        # The rank was just going on when the client connected: wait for its next breakpoint.
        if came_too_late:
            continue
        _wait_until_recorded(run, rank)
        if command is None:
            return


def can_ask_user() -> bool:
    """Whether `input` can reach a user: this is the main thread of a kernel or of a terminal."""
    if threading.current_thread() is not threading.main_thread():
        return False
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel") or (sys.stdin is not None and sys.stdin.isatty())


def open_prompts(run: Any) -> bool:
    """Opens the prompts of all ranks that wait, one after the other, as pdb does in a program.

    Returns:
        False if `input` doesn't work: the front end takes no input, or stdin is at its end.

    Raises:
        KeyboardInterrupt: The user interrupted.
    """
    for rank in sorted(run._run_state.debugged):
        with contextlib.suppress(IcelaunchError), connect_to_rank(run, rank) as client:
            try:
                text = "".join(client.read_output())
                if not run._has_shown(rank, client.shown_range[1]):
                    sys.stdout.write(text)
                while not client.ended:
                    sys.stdout.flush()
                    client.send(input(client.prompt or ""))
                    _print_output(client)
            # ipykernel raises NotImplementedError if the front end takes no input.
            except (EOFError, NotImplementedError):
                return False
            finally:
                run._skip_output(rank, *client.shown_range)
            _wait_until_recorded(run, rank)
    return True


@contextlib.contextmanager
def _wait_for_prompt(
    run: Any, rank: int | None, deadline: float | None
) -> Iterator[tuple[int, DebugClient]]:
    """Yields a rank and its client once `rank`, or any rank if None, is at its prompt."""
    while True:
        run_state = run._run_state
        if run_state.state.over:
            raise IcelaunchError(
                f"run {run.run_id} is over ({run.state}): no rank of it waits in the debugger"
            )
        ranks = [entry.rank for entry in run_state.ranks]
        if rank is not None and ranks and rank not in ranks:
            raise ValueError(f"rank={rank!r}: this machine has {', '.join(map(str, ranks))}")
        for waiting in sorted(run_state.debugged) if rank is None else [rank]:
            with contextlib.suppress(IcelaunchError), connect_to_rank(run, waiting) as client:
                yield waiting, client
                return
        if deadline is not None and time.monotonic() >= deadline:
            who = "no rank" if rank is None else f"rank {rank}"
            raise TimeoutError(f"{who} of run {one_line(run.run_id)} came to a breakpoint in time")
        time.sleep(_POLL_INTERVAL)


def _wait_until_recorded(run: Any, rank: int) -> None:
    """Waits until the journal records that the rank goes on, so that `run.in_debugger` is right."""
    before, deadline = run._run_state.debugged.get(rank), time.monotonic() + _JOURNAL_TIMEOUT
    while (
        before is not None
        and run._run_state.debugged.get(rank) is before
        and time.monotonic() < deadline
    ):
        time.sleep(_POLL_INTERVAL)


def _print_output(client: DebugClient) -> None:
    for text in client.read_output():
        sys.stdout.write(text)
    sys.stdout.flush()


def _read_command(client: DebugClient, rank: int) -> str | None:
    """Reads the user's next command. None: Interrupt or Ctrl+D. The rank goes on waiting."""
    try:
        return input(client.prompt or "")
    except (KeyboardInterrupt, EOFError):
        sys.stdout.write(
            f"\nrank {rank} still waits: debug({rank}) comes back to it, stop() ends the run\n"
        )
        return None
