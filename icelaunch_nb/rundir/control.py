"""Requests to a run's agent: a class each, one way to send them, one way to read them.

They go through the run's control FIFO, a JSON object a line: ``{"request": "stop", "grace": 30.0}``. The agent carries them out in the order
in which they come; it alone sets the flags of the board that ask ranks for something.
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
from icelaunch_nb.rundir.board import FLAGS, Board
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

GRACE = 30.0  # seconds that ranks get to return after a stop
_LONGEST = select.PIPE_BUF  # bytes of a line that a FIFO takes whole or not at all; 4096 on Linux
_ANSWER = 1.0  # seconds that an agent may take to carry a request out; one that is just starting goes on without an answer
_POLL = 0.0001

FlagName = Annotated[str, Check(lambda flag: flag in FLAGS, f"one of {', '.join(FLAGS)}")]


@dataclass(eq=False, repr=False, kw_only=True)
class Request(Record):
    """Something that an agent is asked for.

    Attributes:
        number: By which the board says that it is done; 0: nobody waits for that.
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
        reason: Why, as the run's end tells it.
    """

    grace: Annotated[float, number(0, 1_000_000)] = GRACE
    reason: Text = "it was asked to"


@dataclass(eq=False, repr=False, kw_only=True)
class Kill(Request, name="kill"):
    """End the ranks now, by SIGKILL."""


@dataclass(eq=False, repr=False, kw_only=True)
class Detach(Request, name="detach"):
    """Outlive the kernel."""


@dataclass(eq=False, repr=False, kw_only=True)
class Pause(Request, name="pause"):
    """Have loops over ``ctx.steps`` pause before one and the same step."""


@dataclass(eq=False, repr=False, kw_only=True)
class Resume(Request, name="resume"):
    """Have paused ranks go on."""


@dataclass(eq=False, repr=False, kw_only=True)
class SaveCheckpoint(Request, name="save_checkpoint"):
    """Have every rank save a checkpoint at one and the same step."""


@dataclass(eq=False, repr=False, kw_only=True)
class SetFlag(Request, name="set_flag"):
    """Set or clear one flag of the board.

    Attributes:
        flag: Its name.
        value: Whether it shall be set.
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
    """The request of a line.

    Raises:
        ValueError: It is none, or one of its values can't be.
    """
    data = parse_line(line)
    kind = Request._names.get(name) if isinstance(name := data.pop("request", None), str) else None
    if kind is None:
        raise InvalidValueError(
            f"request={name!r:.100}: must be one of {', '.join(Request._names)}"
        )
    return kind.parse(data)


def send(run_dir: RunDir, request: Request, *, strict: bool = False) -> bool:
    """Sends a request to a run's agent; whether it is on its way.

    Never waits, and never raises for an agent that is gone or doesn't read.

    Args:
        run_dir: The run.
        request: What is asked for.
        strict: Whether something else in the FIFO's place is an error.

    Raises:
        UntrustedFileError: Something else lies there, and `strict` is set.
        ValueError: It is so long that a FIFO wouldn't take it whole, between the lines of others.
    """
    line = json.dumps({"request": request.name, **request.to_json()})
    data = (
        b"\n" + line.encode() + b"\n"
    )  # the first newline ends what somebody else has left unfinished
    if len(data) > _LONGEST:
        raise ValueError(f"a request of {len(data)} bytes: at most {_LONGEST}")
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
    """Sends a request that changes flags, and returns once they are changed; without an agent (an inline run), changes them itself.

    Waits for a second at most: an agent that is just starting, or was halted, carries it out later.
    """
    request.number = random.getrandbits(62) or 1
    if not send(run_dir, request):
        change_flags(board, request)
        return
    deadline = time.monotonic() + _ANSWER
    while not board.is_done(request.number) and time.monotonic() < deadline:
        time.sleep(_POLL)


def change_flags(board: Board, request: Request) -> None:
    """What a request does to the flags of a board; of one that changes none, nothing."""
    match request:
        case Pause():
            with board.locked():  # else `paused` could still tell of a pause before this one
                board.clear("resume")
                board.set("pause")
        case Resume():
            with board.locked():
                board.clear("pause")
                board.set("resume")
        case SaveCheckpoint():
            with board.locked():  # else the end of an earlier request could be taken for this one's
                board.clear("finished_save_checkpoint")
                board.set("trigger_save_checkpoint")
        case SetFlag():
            (board.set if request.value else board.clear)(request.flag)
        case Stop() | Kill():
            board.set("stop_all_tasks")


class RequestReader:
    """Reads requests from a run's control FIFO.

    A line that can't be read is passed over: whoever may write to the FIFO can't make the run unstoppable.

    Args:
        run_dir: The run.
        complain: Called with a line that is passed over, and why.
    """

    def __init__(self, run_dir: RunDir, complain: Any) -> None:
        # Read and write: so the FIFO never reports its end while kernels come and go.
        self._fd = run_dir.open(run_dir.control, os.O_RDWR, fifo=True)
        self._complain = complain
        self._pending, self._too_long = b"", False

    def fileno(self) -> int:
        """The FIFO's descriptor, readable when there is something."""
        return self._fd

    def read(self) -> list[Request]:
        """The requests that have come whole by now."""
        requests = []
        for line in self._lines():
            if line:
                try:
                    requests.append(parse_request(line))
                except Exception as error:
                    self._complain(line, f"{type(error).__name__}: {error}")
        return requests

    def _lines(self) -> list[bytes]:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self._pending += os.read(self._fd, 1 << 16)
        *lines, self._pending = self._pending.split(b"\n")
        if self._too_long and lines:
            self._too_long = False
            del lines[0]
        if len(self._pending) > _LONGEST:
            if not self._too_long:
                self._complain(self._pending, f"a line of more than {_LONGEST} bytes")
            self._pending, self._too_long = b"", True
        return lines
