"""The socket of a rank's debugger: its address, who may connect, and its messages."""

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

# Bytes. Linux takes 108, macOS 104, with a zero at the end.
_MAX_ADDRESS = 100
# Bytes. A longer line is no message.
_MAX_LINE = 1 << 20

Position = Annotated[int, whole(0, 1 << 62)]


def listen(path: Path) -> socket.socket:
    """Opens a listening socket at `path` that only its owner may connect to.

    A file that lies there is replaced.

    Raises:
        OSError: The socket can't be made there.
    """
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(path) as address:
            server.bind(address)
        # In time: nobody can connect before `listen`.
        path.chmod(0o600)
        server.listen()
    except BaseException:
        server.close()
        raise
    return server


def connect(path: Path, timeout: float | None = None) -> socket.socket:
    """Connects to the debugger at `path`.

    Args:
        path: The socket.
        timeout: Seconds that the connecting and each later call may take. None: no limit.

    Raises:
        OSError: Nobody listens there, or another user does.
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
    """Refuses a connection to another user, whatever the directory's permissions allow.

    Root is accepted, since root may do all that the user may.

    Raises:
        PermissionError: The other end belongs to another user.
    """
    # On macOS the directory's permissions alone protect the socket.
    if not hasattr(socket, "SO_PEERCRED"):
        return
    _pid, uid, _gid = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    if uid not in (os.geteuid(), 0):
        raise PermissionError(f"user {uid} is at the other end of the debugger's socket")


def in_debugger(run_dir: RunDir, attempt: int) -> set[int]:
    """The local ranks of an attempt that are in the debugger now, by their locks.

    A child that is in the debugger holds the lock of its rank.
    """
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
    # The lock is gone with its run.
    except OSError:
        return False


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name of `path` that fits into a socket's address, however deep the run directory lies."""
    if len(os.fsencode(path)) <= _MAX_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass(eq=False, repr=False, kw_only=True)
class DebugMessage(Record):
    """A message on the socket, as a line of JSON: ``{"message": "command", "command": "p"}``."""

    name: ClassVar[str] = ""
    _names: ClassVar[dict[str, type[DebugMessage]]] = {}

    def __init_subclass__(cls, name: str) -> None:
        cls.name = name
        DebugMessage._names[name] = cls


@dataclass(eq=False, repr=False, kw_only=True)
class Command(DebugMessage, name="command"):
    """To the rank: run one pdb command."""

    command: Text


@dataclass(eq=False, repr=False, kw_only=True)
class Complete(DebugMessage, name="complete"):
    """To the rank: complete the end of this line, as for TAB."""

    line: Text


@dataclass(eq=False, repr=False, kw_only=True)
class Output(DebugMessage, name="output"):
    """From the rank: text of the debugger.

    Attributes:
        text: The text.
        start: Where in the rank's stdout log the text begins, in bytes. Only the first message of a
            connection has it.
    """

    text: Text
    start: Position | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class Prompt(DebugMessage, name="prompt"):
    """From the rank: it waits for a command.

    Attributes:
        prompt: ``(Pdb) ``.
        answered: How many commands of this connection the rank has run.
        end: Where in the rank's stdout log the text so far ends, in bytes.
    """

    prompt: Text
    answered: Position
    end: Position


@dataclass(eq=False, repr=False, kw_only=True)
class Completions(DebugMessage, name="completions"):
    """From the rank: the completions, and where in the line they begin."""

    found: Annotated[list[Text], items(0, 100_000)]
    start: Position


@dataclass(eq=False, repr=False, kw_only=True)
class Left(DebugMessage, name="left"):
    """From the rank, as its last message: it continues.

    Attributes:
        end: Where in the rank's stdout log the text so far ends, in bytes.
    """

    end: Position


def send(connection: socket.socket, message: DebugMessage) -> None:
    """Sends a message.

    Raises:
        OSError: The other end is gone, or doesn't read.
    """
    connection.sendall(json.dumps({"message": message.name, **message.to_json()}).encode() + b"\n")


def parse_message(line: bytes) -> DebugMessage:
    """Parses a line of the socket.

    Raises:
        ValueError: The line is no message, or a field has a wrong value.
    """
    data = parse_line(line)
    kind = DebugMessage._names.get(str(data.pop("message", None)))
    if kind is None:
        raise InvalidValueError("no such message")
    return kind.parse(data)


class MessageReader:
    """Reads messages from a connection.

    Args:
        connection: The connection.

    Attributes:
        connection: The connection.
        commands: How many commands of this connection were run. The reader's owner counts them.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.commands = connection, 0
        self._rest = b""

    def read(self) -> list[DebugMessage] | None:
        """Waits for data, and reads it. A message that can't be parsed is skipped.

        Returns:
            The messages that are complete now. None: the connection has ended, or a line is too
            long.
        """
        try:
            data = self.connection.recv(65536)
        except (ConnectionError, InterruptedError):
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > _MAX_LINE:
            return None
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):
                messages.append(parse_message(line))
        return messages
