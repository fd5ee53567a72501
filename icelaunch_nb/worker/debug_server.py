"""The prompt of a rank's debugger: a socket in the rank's folder that any process of the user's can come to, and leave again.

It is what pdb has for its stdin and stdout. What is said there also goes to the rank's stdout, so that its log tells the whole
session. Nobody needs to be there: the rank waits, and whoever comes gets what was said last. Several may come, and a command
of any of them counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from icelaunch_nb.rundir import control, timeline
from icelaunch_nb.rundir.board import Board
from icelaunch_nb.rundir.debug_socket import (
    Command,
    Complete,
    Completions,
    DebugMessage,
    Left,
    MessageReader,
    Output,
    Prompt,
    check_peer,
    in_debugger,
    listen,
    send,
)
from icelaunch_nb.rundir.paths import RankDir
from icelaunch_nb.system.files import open_private

_LOOK = 0.05  # seconds between two looks whether the run is stopped meanwhile
_SLOW = 1.0  # seconds that somebody may take to read what is said; then he is left
_KEPT = 1 << 16  # characters that somebody who comes later gets


class DebugServer(io.TextIOBase):
    """Where commands come from and answers go.

    Args:
        rank_dir: The rank's folder.
        rank: Its global rank.
    """

    encoding = "utf-8"  # type: ignore[assignment]  # code that is run from the prompt asks for it

    def __init__(self, rank_dir: RankDir, rank: int) -> None:
        super().__init__()
        self._dir, self._run_dir, self.rank = rank_dir, rank_dir.run_dir, rank
        self.completer: Callable[[str], tuple[list[str], int]] = lambda line: ([], len(line))
        self._board: Board | None = None
        self._lock = -1
        self._server: socket.socket | None = None
        self._clients: list[MessageReader] = []
        self._commands: deque[tuple[str, MessageReader]] = deque()
        self._said = ""  # since the last command
        self._said_at = 0  # where that begins in the rank's stdout
        self._logged = 0  # how far the rank's stdout was when this last wrote to it
        self._line = ""  # said, and not ended by a newline yet

    @property
    def is_open(self) -> bool:
        """Whether this rank is in the debugger, be it that it makes the step that was asked for."""
        return self._server is not None

    def stopping(self) -> bool:
        """Whether the run is being stopped."""
        if self._board is None:
            try:
                self._board = Board(self._run_dir.board)
            except (OSError, ValueError):
                return True  # the run directory is gone, and nobody could come
        return self._board.is_set("stop_all_tasks")

    def stop_run(self) -> None:
        """Ends the whole run, as `Run.stop` does."""
        control.send(self._run_dir, control.Stop())

    def open(self, **facts: Any) -> bool:
        """Tells the run that this rank waits, and where; False where it doesn't need to, since the run is being stopped.

        Args:
            **facts: What the journal's event says.
        """
        known = self.is_open
        if not known and not self._begin():
            return False
        text = f"waits at {facts['where']}{', ' + facts['who'] if facts.get('who') else ''}"
        timeline.send(
            self._run_dir,
            "debugger_step" if known else "debugger_start",
            text,
            rank=self.rank,
            **facts,
        )
        if not known:
            self.write(
                f"rank {self.rank} {text}: run.debug({self.rank}), or the panel, has a prompt for it\n"
            )
        return True

    def leave(self) -> None:
        """The rank goes on."""
        if self._server is None:
            return
        self._tell(self._line)
        for client in self._clients:
            with contextlib.suppress(OSError):
                send(client.connection, Left(end=self._logged))
            client.connection.close()
        self._clients.clear()
        self._commands.clear()
        self._dir.debugger.unlink(missing_ok=True)
        self._server.close()
        self._server = None
        self._said = self._line = ""
        fcntl.flock(
            self._lock, fcntl.LOCK_UN
        )  # not by closing alone: a forked child may hold it too
        os.close(self._lock)
        self._tell_flags()
        timeline.send(self._run_dir, "debugger_end", "goes on", rank=self.rank)

    def _begin(self) -> bool:
        """Waits until no other thread or process of this rank is in the debugger: it has one prompt."""
        try:
            lock = open_private(self._dir.debugger_lock, os.O_RDWR)
        except OSError:
            return False
        while not self.stopping():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_LOOK)
                continue
            try:
                self._server = listen(self._dir.debugger)
            except OSError as error:
                os.write(2, f"no debugger: {self._dir.debugger}: {error.strerror}\n".encode())
                break
            self._lock = lock
            self._logged = self._said_at = self._log_size()
            self._tell_flags()
            return True
        os.close(lock)
        return False

    def _tell_flags(self) -> None:
        """``debugger_start`` is set while a rank of this machine is in the debugger, ``debugger_end`` once the last one has left."""
        if self._board is None:
            return
        with self._board.locked():
            somebody = self.is_open or in_debugger(self._run_dir, self._dir.attempt)
            self._board.clear("debugger_end" if somebody else "debugger_start")
            self._board.set("debugger_start" if somebody else "debugger_end")

    # What pdb calls.

    def write(self, text: str) -> int:
        whole, newline, self._line = (self._line + text).rpartition("\n")
        self._tell(whole + newline)
        return len(text)

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        """The next command, with its newline; ``continue`` once the run is being stopped."""
        prompt, self._line = self._line, ""
        for client in list(self._clients):
            self._ask(client, prompt)
        while not self._commands and not self.stopping():
            self._serve(prompt)
        self._said, self._said_at = "", self._logged
        command, sender = self._commands.popleft() if self._commands else ("continue", None)
        if sender is not None:
            sender.commands += 1
        self._tell(f"{prompt}{command}\n", but=sender)
        return command + "\n"

    # Those who come.

    def _serve(self, prompt: str) -> None:
        assert self._server is not None
        for ready in wait([self._server, *(client.connection for client in self._clients)], _LOOK):
            if ready is self._server:
                self._welcome(prompt)
                continue
            client = next(client for client in self._clients if client.connection is ready)
            try:
                messages = client.read()
            except OSError:
                messages = None
            if messages is None:
                self._leave(client)
            for message in messages or ():
                self._answer(message, client)

    def _welcome(self, prompt: str) -> None:
        assert self._server is not None
        connection, _ = self._server.accept()
        try:
            check_peer(connection)
        except OSError:
            connection.close()
            return
        connection.settimeout(_SLOW)
        client = MessageReader(connection)
        self._clients.append(client)
        self._send(client, Output(text=self._said, start=self._said_at))
        self._ask(client, prompt)

    def _answer(self, message: DebugMessage, client: MessageReader) -> None:
        match message:
            case Command():
                self._commands.append((" ".join(message.command.splitlines()), client))
            case Complete():
                found, start = self.completer(message.line)
                self._send(client, Completions(found=found, start=start))

    def _tell(self, text: str, but: MessageReader | None = None) -> None:
        """Says something, in the log and to those who are here; first to these what the rank printed meanwhile."""
        printed = self._printed()
        self._write_log(text)
        self._pass_on(printed, None)
        self._pass_on(text, but)

    def _printed(self) -> str:
        """What else was written to the rank's stdout since this last wrote: by a step that prints, by other threads."""
        size = self._log_size()
        if not self.is_open or size <= self._logged:
            return ""
        with contextlib.suppress(OSError), open(self._dir.stdout, "rb") as file:
            file.seek(max(self._logged, size - _KEPT))
            return file.read(size - file.tell()).decode(errors="replace")
        return ""

    def _pass_on(self, text: str, but: MessageReader | None) -> None:
        if not text:
            return
        self._said = (self._said + text)[-_KEPT:]
        for client in list(self._clients):
            if client is not but:
                for at in range(0, len(text), _KEPT):  # a line has a limit
                    self._send(client, Output(text=text[at : at + _KEPT]))

    def _ask(self, client: MessageReader, prompt: str) -> None:
        self._send(client, Prompt(prompt=prompt, answered=client.commands, end=self._logged))

    def _send(self, client: MessageReader, message: DebugMessage) -> None:
        try:
            send(client.connection, message)
        except ConnectionError:
            return  # gone, but what it said before is still to be read
        except OSError:  # doesn't read
            self._leave(client)

    def _leave(self, client: MessageReader) -> None:
        client.connection.close()
        if client in self._clients:
            self._clients.remove(client)

    def _write_log(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # a full disk costs the log, not the session
            while data:
                data = data[os.write(1, data) :]
        self._logged = self._log_size()

    def _log_size(self) -> int:
        """How much the rank's stdout holds; 0 where the user's code has closed it or gone elsewhere with it."""
        with contextlib.suppress(OSError):
            return os.fstat(1).st_size
        return 0
