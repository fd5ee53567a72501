"""The prompt of a rank's debugger, on a socket in the rank's folder.

Any process of the user can connect to the socket and leave it again. pdb uses the server as its
stdin and stdout. The output also goes to the rank's stdout, so that its log has the whole session.

The rank waits while no client is connected, and a new client gets the last output. Several clients
may be connected, and the rank carries out the commands of each.
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

from icelaunch_nb.rundir import agent_requests, timeline
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
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.paths import RankDir
from icelaunch_nb.system.files import open_private

_POLL = 0.05  # seconds between two checks whether the run is being stopped
_SEND_TIMEOUT = 1.0  # seconds that a client may take to read; then it is disconnected
_BACKLOG = 1 << 16  # characters of output that a new client gets


class DebugServer(io.TextIOBase):
    """pdb's stdin and stdout: commands come from clients, and output goes to them and to the log.

    Args:
        rank_dir: The rank's folder.
        rank: Its global rank.

    Attributes:
        rank: As given.
        completer: Returns the completions at the end of a line, and where in the line they begin.
    """

    encoding = "utf-8"  # type: ignore[assignment]  # code that runs at the prompt may read it

    def __init__(self, rank_dir: RankDir, rank: int) -> None:
        super().__init__()
        self._dir, self._run_dir, self.rank = rank_dir, rank_dir.run_dir, rank
        self.completer: Callable[[str], tuple[list[str], int]] = lambda line: ([], len(line))
        self._board: Board | None = None
        self._lock = -1
        self._server: socket.socket | None = None
        self._clients: list[MessageReader] = []
        self._commands: deque[tuple[str, MessageReader]] = deque()
        self._output = ""  # since the last command
        self._output_start = 0  # where that begins in the rank's stdout
        self._log_end = 0  # size of the rank's stdout after the last write of this server
        self._partial_line = ""  # written by pdb, with no newline yet

    @property
    def in_session(self) -> bool:
        """Whether this rank is in the debugger, also while it runs a step for it."""
        return self._server is not None

    def stopping(self) -> bool:
        """Whether the run is being stopped."""
        if self._board is None:
            try:
                self._board = Board(self._run_dir.board)
            except (OSError, ValueError):
                return True  # the run directory is gone, so no client could connect
        return self._board.is_set("stop_all_tasks")

    def stop_run(self) -> None:
        """Ends the whole run, as `Run.stop` does."""
        agent_requests.send(self._run_dir, agent_requests.Stop())

    def announce_stop(self, **fields: Any) -> bool:
        """Records in the journal that this rank waits, and where.

        Args:
            **fields: Fields of the journal's event.

        Returns:
            False where the rank must not wait: the run is being stopped, or there is no prompt.
        """
        in_session = self.in_session
        if not in_session and not self._begin_session():
            return False
        text = f"waits at {fields['where']}{', ' + fields['who'] if fields.get('who') else ''}"
        timeline.send(
            self._run_dir,
            "debugger_step" if in_session else "debugger_start",
            text,
            rank=self.rank,
            **fields,
        )
        if not in_session:
            self.write(
                f"rank {self.rank} {text}: "
                f"run.debug({self.rank}), or the panel, has a prompt for it\n"
            )
        return True

    def end_session(self) -> None:
        """Ends the session: the rank goes on, and the clients are disconnected."""
        if self._server is None:
            return
        self._write_to_all(self._partial_line)
        for client in self._clients:
            with contextlib.suppress(OSError):
                send(client.connection, Left(end=self._log_end))
            client.connection.close()
        self._clients.clear()
        self._commands.clear()
        self._dir.debugger.unlink(missing_ok=True)
        self._server.close()
        self._server = None
        self._output = self._partial_line = ""
        # A close alone doesn't unlock: a forked child may have the descriptor too.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._update_flags()
        timeline.send(self._run_dir, "debugger_end", "goes on", rank=self.rank)

    def _begin_session(self) -> bool:
        """Waits until no other thread or process of this rank is in the debugger.

        A rank has one prompt.

        Returns:
            Whether this one is in the debugger now.
        """
        try:
            lock = open_private(self._dir.debugger_lock, os.O_RDWR)
        except OSError:
            return False
        while not self.stopping():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_POLL)
                continue
            try:
                self._server = listen(self._dir.debugger)
            except OSError as error:
                os.write(2, f"no debugger: {self._dir.debugger}: {error.strerror}\n".encode())
                break
            self._lock = lock
            self._log_end = self._output_start = self._log_size()
            self._update_flags()
            return True
        os.close(lock)
        return False

    def _update_flags(self) -> None:
        """Sets ``debugger_start`` while a rank of this machine is in the debugger.

        ``debugger_end`` is set once the last one has left.
        """
        if self._board is None:
            return
        with self._board.locked():
            any_rank = self.in_session or in_debugger(self._run_dir, self._dir.attempt)
            self._board.clear("debugger_end" if any_rank else "debugger_start")
            self._board.set("debugger_start" if any_rank else "debugger_end")

    # What pdb calls.

    def write(self, text: str) -> int:
        whole, newline, self._partial_line = (self._partial_line + text).rpartition("\n")
        self._write_to_all(whole + newline)
        return len(text)

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        """Waits for the next command.

        Returns:
            The command with its newline; ``continue`` once the run is being stopped.
        """
        prompt, self._partial_line = self._partial_line, ""
        for client in list(self._clients):
            self._send_prompt(client, prompt)
        while not self._commands and not self.stopping():
            self._poll_clients(prompt)
        self._output, self._output_start = "", self._log_end
        command, sender = self._commands.popleft() if self._commands else ("continue", None)
        if sender is not None:
            sender.commands += 1
        self._write_to_all(f"{prompt}{command}\n", except_for=sender)
        return command + "\n"

    # The clients.

    def _poll_clients(self, prompt: str) -> None:
        assert self._server is not None
        for ready in wait([self._server, *(client.connection for client in self._clients)], _POLL):
            if ready is self._server:
                self._accept_client(prompt)
                continue
            client = next(client for client in self._clients if client.connection is ready)
            try:
                messages = client.read()
            except OSError:
                messages = None
            if messages is None:
                self._disconnect(client)
            for message in messages or ():
                self._handle_message(message, client)

    def _accept_client(self, prompt: str) -> None:
        assert self._server is not None
        connection, _ = self._server.accept()
        try:
            check_peer(connection)
        except OSError:
            connection.close()
            return
        connection.settimeout(_SEND_TIMEOUT)
        client = MessageReader(connection)
        self._clients.append(client)
        self._send(client, Output(text=self._output, start=self._output_start))
        self._send_prompt(client, prompt)

    def _handle_message(self, message: DebugMessage, client: MessageReader) -> None:
        match message:
            case Command():
                self._commands.append((" ".join(message.command.splitlines()), client))
            case Complete():
                found, start = self.completer(message.line)
                self._send(client, Completions(found=found, start=start))

    def _write_to_all(self, text: str, except_for: MessageReader | None = None) -> None:
        """Writes text to the log and to all clients but `except_for`.

        The clients first get what the rank has printed since the last write.
        """
        printed = self._printed()
        self._write_log(text)
        self._send_output(printed, None)
        self._send_output(text, except_for)

    def _printed(self) -> str:
        """What a step or other threads have written to the rank's stdout since the last write."""
        size = self._log_size()
        if not self.in_session or size <= self._log_end:
            return ""
        with contextlib.suppress(OSError), open(self._dir.stdout, "rb") as file:
            file.seek(max(self._log_end, size - _BACKLOG))
            return file.read(size - file.tell()).decode(errors="replace")
        return ""

    def _send_output(self, text: str, except_for: MessageReader | None) -> None:
        if not text:
            return
        self._output = (self._output + text)[-_BACKLOG:]
        for client in list(self._clients):
            if client is not except_for:
                for start in range(0, len(text), _BACKLOG):  # a message has a limit
                    self._send(client, Output(text=text[start : start + _BACKLOG]))

    def _send_prompt(self, client: MessageReader, prompt: str) -> None:
        self._send(client, Prompt(prompt=prompt, answered=client.commands, end=self._log_end))

    def _send(self, client: MessageReader, message: DebugMessage) -> None:
        try:
            send(client.connection, message)
        except ConnectionError:
            return  # it is gone, but the commands that it sent before are still to be read
        except OSError:  # it doesn't read
            self._disconnect(client)

    def _disconnect(self, client: MessageReader) -> None:
        client.connection.close()
        if client in self._clients:
            self._clients.remove(client)

    def _write_log(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # on a full disk the session goes on without a log
            while data:
                data = data[os.write(1, data) :]
        self._log_end = self._log_size()

    def _log_size(self) -> int:
        """Size of the rank's stdout in bytes.

        It is 0 where the user's code has closed stdout or pointed it elsewhere.
        """
        with contextlib.suppress(OSError):
            return os.fstat(1).st_size
        return 0
