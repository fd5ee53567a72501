"""The socket of a rank's debugger: where it lies, who may speak, and what is said: a JSON object a line.

To the rank go ``{"command": "p x"}`` and ``{"complete": "p x.fo"}``. From it come ``{"text": …}``; ``{"prompt": "(Pdb) ", "answered": 2}``
once it has carried out so many commands of this connection and waits for one; ``{"completions": […], "start": 2}``; and last of
all ``{"end": …}``. ``from`` and ``to`` beside these say where in the rank's stdout stands what was said.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from icelaunch_nb.rundir import RankDir

_ADDRESS = 100  # bytes; Linux takes 108, macOS 104, with a zero at the end
_LONGEST = 1 << 20  # bytes of a line; more is nonsense


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


def in_debugger(attempt: Path) -> set[int]:
    """Local ranks of an attempt that are in the debugger now: they, or children of theirs, hold the lock."""
    return {
        int(lock.parent.name)
        for lock in attempt.glob(f"*/{RankDir(attempt).debugger_lock.name}")
        if _is_held(lock)
    }


def _is_held(lock: Path) -> bool:
    try:
        with open(lock, "rb") as file:
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


def say(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Sends a message."""
    connection.sendall(json.dumps(message).encode() + b"\n")


class Hearer:
    """Puts what comes from a connection together to messages.

    Attributes:
        heard: How many commands came, and were carried out.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.heard = connection, 0
        self._rest = b""

    def hear(self) -> list[dict[str, Any]] | None:
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
                message = json.loads(line)
                if isinstance(message, dict):
                    messages.append(message)
        return messages
