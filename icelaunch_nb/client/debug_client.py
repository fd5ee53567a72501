"""The kernel's side of a rank's debugger: come to its prompt, say commands, leave it waiting or let it go on."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from icelaunch_nb.debugsocket import Hearer, connect, say
from icelaunch_nb.errors import IcelaunchError

_LOOK = 0.02  # seconds between two looks whether a rank has come to a breakpoint
_NEWS = 0.5  # seconds that the journal may take to say that a rank goes on
_GIVE_UP = 1.0  # seconds that completions may take; a rank that makes a step doesn't answer


class Visit:
    """A visit to the prompt of a rank.

    Args:
        path: The socket in the rank's folder.

    Attributes:
        prompt: What the rank asks with (``(Pdb) ``); None: it isn't waiting for a command.
        over: Whether the rank has gone on, or is gone.
        heard: From where to where the rank's stdout holds what was heard here, in bytes.
    """

    def __init__(self, path: Path) -> None:
        self._hearer = Hearer(connect(path))
        self.prompt: str | None = None
        self.over = False
        self.heard = (0, 0)
        self._said = 0

    def texts(self) -> Iterator[str]:
        """What the rank says from now on until it asks for a command, or goes on."""
        self.prompt = None
        while self.prompt is None and not self.over:
            messages = self._hearer.hear()
            if messages is None:
                self.over = True
            for message in messages or ():
                if "text" in message:
                    yield message["text"]
                if (
                    message.get("answered", -1) >= self._said
                ):  # else it is for a command that somebody else said
                    self.prompt = message["prompt"]
                self.over |= "end" in message
                self.heard = message.get("from", self.heard[0]), message.get("to", self.heard[1])

    def send(self, command: str) -> str:
        """Says a command and waits for what the rank answers."""
        self.say(command)
        return "".join(self.texts())

    def say(self, command: str) -> None:
        """Says a command; `texts` gives the answer."""
        self._said += 1
        try:
            say(self._hearer.connection, {"command": command})
        except OSError:
            self.over = True

    def complete(self, line: str) -> tuple[list[str], int]:
        """What TAB offers at the end of `line`, and where in it that begins; nothing while the rank isn't at its prompt."""
        connection = self._hearer.connection
        with contextlib.suppress(OSError):
            say(connection, {"complete": line})
            connection.settimeout(_GIVE_UP)
            try:
                while (messages := self._hearer.hear()) is not None:
                    for message in messages:
                        if "completions" in message:
                            return message["completions"], message["start"]
            finally:
                connection.settimeout(None)
        return [], len(line)

    def close(self) -> None:
        """Leaves; the rank goes on waiting."""
        self._hearer.connection.close()

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def visit(run: Any, rank: int) -> Visit:
    """A visit to the prompt of a rank that is in the debugger.

    Raises:
        IcelaunchError: It isn't.
    """
    story = run.story
    for entry in story.attempts[-1]["ranks"] if story.attempts and not story.state.over else ():
        if entry["rank"] == rank:
            with contextlib.suppress(OSError):
                return Visit(
                    run._dir.rank(story.attempts[-1]["attempt"], entry["local_rank"]).debugger
                )
    raise IcelaunchError(f"rank {rank} of run {run.run_id} doesn't wait in the debugger")


def tell(run: Any, rank: int, command: str) -> None:
    """Says one command at a rank's prompt, whose answer its log shows; for a rank that makes a step, it is the next one.

    Raises:
        IcelaunchError: The rank isn't in the debugger.
    """
    with visit(run, rank) as here:
        here.say(command)


def complete(run: Any, rank: int, line: str) -> tuple[list[str], int]:
    """What TAB offers at the end of `line` at a rank's prompt, and where in it that begins."""
    with contextlib.suppress(IcelaunchError), visit(run, rank) as here:
        return here.complete(line)
    return [], len(line)


def session(
    run: Any, rank: int | None, commands: Iterable[str] | None, timeout: float | None
) -> None:
    """`Run.debug`: waits for the rank, then says the commands, or asks the user for them."""
    deadline = None if timeout is None else time.monotonic() + timeout
    given = None if commands is None else iter(commands)
    command = None if given is None else next(given, None)
    while True:
        with _wait_for(run, rank, deadline) as (number, here):
            rank = number
            try:
                _show(here)
                came_too_late = here.over
                while not here.over:
                    if given is None:
                        command = _ask(here, rank)
                    if command is None:
                        return
                    if given is not None:
                        sys.stdout.write(f"{here.prompt}{command}\n")
                    here.say(command)
                    _show(here)
                    command = None if given is None else next(given, None)
            finally:
                run.leave_out(rank, *here.heard)
        if came_too_late:
            continue  # it was just going on
        _await_the_news(run, rank)
        if command is None:
            return


def somebody_can_be_asked() -> bool:
    """Whether a cell or a terminal stands behind this thread, where somebody may type."""
    if threading.current_thread() is not threading.main_thread():
        return False
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel") or (sys.stdin is not None and sys.stdin.isatty())


def offer(run: Any) -> bool:
    """Opens the prompts of all ranks that wait, one after the other, for whoever waits for the run; as pdb does in a plain program.

    Returns:
        False where nobody can be asked: the front end takes no input, or it is at its end.

    Raises:
        KeyboardInterrupt: The user interrupted.
    """
    for rank in sorted(run.story.debugged):
        with contextlib.suppress(IcelaunchError), visit(run, rank) as here:
            try:
                text = "".join(here.texts())
                if not run.has_shown(rank, here.heard[1]):
                    sys.stdout.write(text)
                while not here.over:
                    sys.stdout.flush()
                    here.say(input(here.prompt or ""))
                    _show(here)
            except (
                EOFError,
                NotImplementedError,
            ):  # the latter is ipykernel's for a front end without input
                return False
            finally:
                run.leave_out(rank, *here.heard)
            _await_the_news(run, rank)
    return True


@contextlib.contextmanager
def _wait_for(run: Any, rank: int | None, deadline: float | None) -> Iterator[tuple[int, Visit]]:
    """A visit to `rank`, or to the first rank that waits, once it does."""
    while True:
        story = run.story
        if story.state.over:
            raise IcelaunchError(
                f"run {run.run_id} is over ({run.state}): no rank of it waits in the debugger"
            )
        ranks = [entry["rank"] for entry in story.attempts[-1]["ranks"]] if story.attempts else []
        if rank is not None and ranks and rank not in ranks:
            raise ValueError(f"rank={rank!r}: this machine has {', '.join(map(str, ranks))}")
        for waiting in sorted(story.debugged) if rank is None else [rank]:
            with contextlib.suppress(IcelaunchError), visit(run, waiting) as here:
                yield waiting, here
                return
        if deadline is not None and time.monotonic() >= deadline:
            who = "no rank" if rank is None else f"rank {rank}"
            raise TimeoutError(f"{who} of run {run.run_id} came to a breakpoint in time")
        time.sleep(_LOOK)


def _await_the_news(run: Any, rank: int) -> None:
    """Waits a moment until the run knows what the rank has just said, so that whoever looks at the run next sees it."""
    before, deadline = run.story.debugged.get(rank), time.monotonic() + _NEWS
    while (
        before is not None
        and run.story.debugged.get(rank) is before
        and time.monotonic() < deadline
    ):
        time.sleep(_LOOK)


def _show(here: Visit) -> None:
    for text in here.texts():
        sys.stdout.write(text)
    sys.stdout.flush()


def _ask(here: Visit, rank: int) -> str | None:
    """The user's next command; None: they leave the prompt, by Interrupt or Ctrl+D, and the rank waits."""
    try:
        return input(here.prompt or "")
    except (KeyboardInterrupt, EOFError):
        sys.stdout.write(
            f"\nrank {rank} still waits: debug({rank}) comes back to it, stop() ends the run\n"
        )
        return None
