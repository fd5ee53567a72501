"""Requests to a run's agent: one class each, one way to send them, one way to read them.

They go through the run's control FIFO, a JSON object per line:
``{"request": "stop", "grace": 30.0}``. The agent carries them out in the order in which they
arrive. It alone sets the flags of the board that ask ranks for something.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import time
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from icelaunch_nb.errors import UntrustedFileError
from icelaunch_nb.rundir.events_board import FLAGS, Board
from icelaunch_nb.rundir.journal_events import TimelineEvent
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.records import (
    Bool,
    Check,
    InvalidValueError,
    Record,
    Text,
    number,
    parse_line,
    whole,
)

# Seconds that ranks get to return after a stop.
GRACE = 30.0
# Bytes. A FIFO takes a line of this length whole or not at all. It is 4096 on Linux.
_MAX_LINE = select.PIPE_BUF
# Seconds that `send_and_wait` waits for the agent.
_WAIT_TIMEOUT = 1.0
# Seconds.
_POLL_INTERVAL = 0.0001

FlagName = Annotated[str, Check(lambda flag: flag in FLAGS, f"one of {', '.join(FLAGS)}")]


@dataclass(eq=False, repr=False, kw_only=True)
class Request(Record):
    """Something that an agent is asked for.

    Attributes:
        number: The number that the board shows once the request is carried out. 0: nobody waits
            for that.
    """

    number: Annotated[int, whole(0, (1 << 62) - 1)] = 0

    name: ClassVar[str] = ""
    _names: ClassVar[dict[str, type[Request]]] = {}

    def __init_subclass__(cls, name: str) -> None:
        cls.name = name
        Request._names[name] = cls


@dataclass(eq=False, repr=False, kw_only=True)
class Stop(Request, name="stop"):
    """End the run.

    Attributes:
        grace: Seconds that ranks get to return by themselves.
        reason: Why, as the note of the run's end.
    """

    grace: Annotated[float, number(0, 1_000_000)] = GRACE
    reason: Text = "it was asked to"


@dataclass(eq=False, repr=False, kw_only=True)
class Kill(Request, name="kill"):
    """Kill the ranks now, by SIGKILL."""


@dataclass(eq=False, repr=False, kw_only=True)
class Detach(Request, name="detach"):
    """Let the run outlive its kernel."""


@dataclass(eq=False, repr=False, kw_only=True)
class Pause(Request, name="pause"):
    """Have the loops over ``ctx.steps`` of all ranks pause before the same step."""


@dataclass(eq=False, repr=False, kw_only=True)
class Resume(Request, name="resume"):
    """Have paused ranks continue."""


@dataclass(eq=False, repr=False, kw_only=True)
class SaveCheckpoint(Request, name="save_checkpoint"):
    """Have every rank save a checkpoint at the same step."""


@dataclass(eq=False, repr=False, kw_only=True)
class SetFlag(Request, name="set_flag"):
    """Set or clear one flag of the board.

    Attributes:
        flag: The flag's name.
        value: True sets the flag, false clears it.
    """

    flag: FlagName
    value: Bool


@dataclass(eq=False, repr=False, kw_only=True)
class WriteEvent(Request, name="write_event"):
    """Write an event into the journal.

    Attributes:
        event: The event.
    """

    event: TimelineEvent


def parse_request(line: bytes) -> Request:
    """Parses a line of the FIFO.

    Raises:
        ValueError: The line is no request, or a field has a wrong value.
    """
    data = parse_line(line)
    kind = Request._names.get(name) if isinstance(name := data.pop("request", None), str) else None
    if kind is None:
        raise InvalidValueError(
            f"request={name!r:.100}: must be one of {', '.join(Request._names)}"
        )
    return kind.parse(data)


def send(run_dir: RunDir, request: Request, *, strict: bool = False) -> bool:
    """Sends a request to a run's agent.

    It never waits, and never raises for an agent that is gone or doesn't read.

    Args:
        run_dir: The run.
        request: The request.
        strict: Whether something else in the FIFO's place is an error.

    Returns:
        Whether the request was written to the FIFO.

    Raises:
        UntrustedFileError: Something else lies in the FIFO's place, and `strict` is set.
        ValueError: The request is longer than a FIFO takes whole, so it could mix with other lines.
    """
    line = json.dumps({"request": request.name, **request.to_json()})
    # The first newline ends a line that another sender left unfinished.
    data = b"\n" + line.encode() + b"\n"
    if len(data) > _MAX_LINE:
        raise ValueError(f"a request of {len(data)} bytes: at most {_MAX_LINE}")
    try:
        fd = run_dir.open(run_dir.control, os.O_WRONLY, fifo=True)
    except UntrustedFileError:
        if strict:
            raise
        return False
    except OSError:
        return False
    try:
        return os.write(fd, data) == len(data)
    except OSError:
        return False
    finally:
        os.close(fd)


def send_and_wait(run_dir: RunDir, board: Board, request: Request) -> None:
    """Sends a request that changes flags, and returns once they are changed.

    Without an agent (an inline run) it changes the flags itself. It waits for a second at most: an
    agent that is just starting, or is halted, carries the request out later.

    Args:
        run_dir: The run.
        board: The run's board.
        request: The request. It gets a number of its own.
    """
    request.number = random.getrandbits(62) or 1
    if not send(run_dir, request):
        change_flags(board, request)
        return
    deadline = time.monotonic() + _WAIT_TIMEOUT
    while not board.is_done(request.number) and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL)


def change_flags(board: Board, request: Request) -> None:
    """Changes the flags of a board as a request says. Some requests change none."""
    match request:
        case Pause():
            # Without the lock, `paused` could still be that of an earlier pause.
            with board.locked():
                board.clear("resume")
                board.set("pause")
        case Resume():
            with board.locked():
                board.clear("pause")
                board.set("resume")
        case SaveCheckpoint():
            # Without the lock, the end of an earlier request could be taken for this one's.
            with board.locked():
                board.clear("finished_save_checkpoint")
                board.set("trigger_save_checkpoint")
        case SetFlag():
            (board.set if request.value else board.clear)(request.flag)
        case Stop() | Kill():
            board.set("stop_all_tasks")


class RequestReader:
    """Reads requests from a run's control FIFO.

    A line that can't be parsed is skipped, so nobody who may write to the FIFO can make the run
    unstoppable.

    Args:
        run_dir: The run.
        on_skipped: Called with each line that is skipped, and the reason.

    Raises:
        UntrustedFileError: Something else lies in the FIFO's place.
        OSError: The FIFO can't be opened.
    """

    def __init__(self, run_dir: RunDir, on_skipped: Any) -> None:
        # For reading and writing: so the FIFO never reports its end while kernels come and go.
        self._fd = run_dir.open(run_dir.control, os.O_RDWR, fifo=True)
        self._on_skipped = on_skipped
        self._pending, self._too_long = b"", False

    def fileno(self) -> int:
        """The FIFO's descriptor, which is readable while there is something to read."""
        return self._fd

    def read(self) -> list[Request]:
        """Reads the requests that have arrived whole. It never waits."""
        requests = []
        for line in self._lines():
            if line:
                try:
                    requests.append(parse_request(line))
                except Exception as error:
                    self._on_skipped(line, f"{type(error).__name__}: {error}")
        return requests

    def _lines(self) -> list[bytes]:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self._pending += os.read(self._fd, 1 << 16)
        *lines, self._pending = self._pending.split(b"\n")
        if self._too_long and lines:
            self._too_long = False
            del lines[0]
        if len(self._pending) > _MAX_LINE:
            if not self._too_long:
                self._on_skipped(self._pending, f"a line of more than {_MAX_LINE} bytes")
            self._pending, self._too_long = b"", True
        return lines
