"""The socket of a rank's debugger: where it lies, who may speak, and the messages that are spoken."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.records import InvalidValueError, Record, Text, items, parse_line, whole
from icelaunch_nb.system import safe_open

_ADDRESS = 100  # bytes; Linux takes 108, macOS 104, with a zero at the end
_LONGEST = 1 << 20  # bytes of a line; more is nonsense

Position = Annotated[int, whole(0, 1 << 62)]


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, its owner's alone; a file that is there is replaced."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(path) as address:
            server.bind(address)
        path.chmod(0o600)  # nobody can connect before the next line
        server.listen()
    except BaseException:
        server.close()
        raise
    return server


def connect(path: Path, timeout: float | None = None) -> socket.socket:
    """A connection to the debugger at `path`.

    Raises:
        OSError: Nobody listens there, or it is another user.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout)
    try:
        with _address(path) as address:
            client.connect(address)
        check_peer(client)
    except BaseException:
        client.close()
        raise
    return client


def check_peer(connection: socket.socket) -> None:
    """Refuses another user, whatever the rights of the directory say; root may do all that the user may.

    Raises:
        PermissionError: The other end belongs to another user.
    """
    if not hasattr(socket, "SO_PEERCRED"):  # macOS: the directory's rights alone protect it
        return
    _pid, uid, _gid = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    if uid not in (os.geteuid(), 0):
        raise PermissionError(f"user {uid} is at the other end of the debugger's socket")


def in_debugger(run_dir: RunDir, attempt: int) -> set[int]:
    """Local ranks of an attempt that are in the debugger now: they, or children of theirs, hold the lock."""
    return {
        rank_dir.local_rank
        for rank_dir in run_dir.ranks(attempt)
        if _is_held(rank_dir.debugger_lock)
    }


def _is_held(lock: Path) -> bool:
    try:
        with open(safe_open.open_file(lock, any_owner=True), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:  # gone with its run
        return False


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name of `path` that fits into a socket's address, however deep the run directory lies."""
    if len(os.fsencode(path)) <= _ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass(eq=False, repr=False, kw_only=True)
class DebugMessage(Record):
    """What is said on the socket: a JSON object a line, ``{"message": "command", "command": "p x"}``."""

    name: ClassVar[str] = ""
    _names: ClassVar[dict[str, type[DebugMessage]]] = {}

    def __init_subclass__(cls, name: str) -> None:
        cls.name = name
        DebugMessage._names[name] = cls


@dataclass(eq=False, repr=False, kw_only=True)
class Command(DebugMessage, name="command"):
    """To the rank: carry out one line of pdb's."""

    command: Text


@dataclass(eq=False, repr=False, kw_only=True)
class Complete(DebugMessage, name="complete"):
    """To the rank: what does TAB offer at the end of this line?"""

    line: Text


@dataclass(eq=False, repr=False, kw_only=True)
class Output(DebugMessage, name="output"):
    """From the rank: text.

    Attributes:
        text: The text.
        start: Where in the rank's stdout that begins which is said first, in bytes.
    """

    text: Text
    start: Position | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class Prompt(DebugMessage, name="prompt"):
    """From the rank: it waits for a command.

    Attributes:
        prompt: ``(Pdb) ``.
        answered: How many commands of this connection it has carried out.
        end: Where in the rank's stdout that ends which was said, in bytes.
    """

    prompt: Text
    answered: Position
    end: Position


@dataclass(eq=False, repr=False, kw_only=True)
class Completions(DebugMessage, name="completions"):
    """From the rank: what TAB offers, and where in the line that begins."""

    found: Annotated[list[Text], items(0, 100_000)]
    start: Position


@dataclass(eq=False, repr=False, kw_only=True)
class Left(DebugMessage, name="left"):
    """From the rank, last of all: it goes on.

    Attributes:
        end: Where in the rank's stdout that ends which was said, in bytes.
    """

    end: Position


def send(connection: socket.socket, message: DebugMessage) -> None:
    """Sends a message.

    Raises:
        OSError: The other end is gone, or doesn't read.
    """
    connection.sendall(json.dumps({"message": message.name, **message.to_json()}).encode() + b"\n")


def parse_message(line: bytes) -> DebugMessage:
    """The message of a line.

    Raises:
        ValueError: It is none, or one of its values can't be.
    """
    data = parse_line(line)
    kind = DebugMessage._names.get(str(data.pop("message", None)))
    if kind is None:
        raise InvalidValueError("no such message")
    return kind.parse(data)


class MessageReader:
    """Puts what comes from a connection together to messages.

    Attributes:
        commands: How many commands came, and were carried out.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.commands = connection, 0
        self._rest = b""

    def read(self) -> list[DebugMessage] | None:
        """Reads what is there, waiting for something; the messages that are whole now, None at the end."""
        try:
            data = self.connection.recv(65536)
        except (ConnectionError, InterruptedError):
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > _LONGEST:
            return None
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):
                messages.append(parse_message(line))
        return messages
