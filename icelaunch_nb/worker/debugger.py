"""A rank's debugger: pdb, with a prompt that any process of the user can connect to.

`worker.debug_server` has the prompt. The debugger differs from pdb in a terminal:

* ``quit`` stops the run as `Run.stop` does: loops over ``ctx.steps`` end at the same step and the
  results arrive. pdb would raise in this rank. Elastic would treat that as a failure, and restart
  all ranks.
* While a run is being stopped there is no prompt. A rank that waits at one goes on.
* It doesn't show frames below the user's function, and never steps into this package.
"""

from __future__ import annotations

import functools
import itertools
import os
import pdb
import re
import rlcompleter
import sys
import threading
from collections.abc import Callable
from multiprocessing import __file__ as _multiprocessing
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from icelaunch_nb.launching.rank_environment import RANK_DIR_VARIABLE
from icelaunch_nb.rundir import source_locations
from icelaunch_nb.rundir.paths import RankDir
from icelaunch_nb.system.plaintext import exception_message
from icelaunch_nb.worker.breakpoints import set_trace
from icelaunch_nb.worker.debug_server import DebugServer

_MACHINERY = (
    os.path.dirname(_multiprocessing) + os.sep,
    threading.__file__,
    "<frozen ",
    "<string>",  # a forkserver's `-c`
)
_MAX_REASON = 200  # characters of an exception's text that go into the journal
_MAX_NAME = 60  # characters of a thread's name that go into the journal
_MAX_COMPLETIONS = 200

_thread_state = threading.local()


def stop_at(frame: FrameType, header: str | None = None) -> None:
    """Stops this thread at the next line of a frame.

    Args:
        frame: The frame.
        header: A line to print first.
    """
    debugger = _debugger()
    if not debugger.server.stopping():
        # A breakpoint that was set at the prompt keeps tracing on: don't step into what follows.
        sys.settrace(None)
        debugger.why, debugger.header = "breakpoint", header
        debugger.set_trace(frame)


def post_mortem(error: BaseException) -> None:
    """Stops this rank where an exception was raised. Returns when the rank goes on to fail.

    Args:
        error: The exception.
    """
    debugger = _debugger()
    message = "".join(exception_message(error).splitlines()[:1])
    debugger.why = f"{type(error).__name__}: {message}"[:_MAX_REASON]
    sys.settrace(None)
    debugger.reset()
    debugger.interaction(None, error.__traceback__)
    debugger.server.end_session()


def replace_pdb_set_trace() -> None:
    """Makes ``pdb.set_trace()`` ours.

    Older code calls it instead of ``breakpoint()``. pdb's own would read this rank's stdin, where
    nobody can type.
    """
    pdb.set_trace = set_trace


def finish() -> None:
    """Ends this thread's session in the debugger, where a step has led past the function's end."""
    debugger = getattr(_thread_state, "debugger", None)
    if debugger is not None and debugger.server.in_session:
        sys.settrace(None)
        debugger.server.end_session()


def _debugger() -> RankDebugger:
    """This thread's debugger, with the breakpoints and aliases of its earlier stops.

    A forked child makes its own.
    """
    if getattr(_thread_state, "pid", None) != os.getpid():
        rank_dir = RankDir(Path(os.environ[RANK_DIR_VARIABLE]))
        cell_names = source_locations.register_cells(rank_dir.run_dir)
        _thread_state.debugger = RankDebugger(
            DebugServer(rank_dir, int(os.environ.get("RANK", "0"))), cell_names
        )
        _thread_state.pid = os.getpid()
    return _thread_state.debugger


def _only_at_breakpoints(command: Callable[..., Any]) -> Any:
    """A command that makes steps, for breakpoints alone.

    In a post-mortem, pdb's own command would leave the prompt, and the rank would fail at once.
    """

    @functools.wraps(command)
    def do(self: RankDebugger, arg: str) -> Any:
        if self.why == "breakpoint":
            return command(self, arg)
        self.error("the function is over: up, down and p look around, c goes on to fail")
        return None

    return do


class RankDebugger(pdb.Pdb):
    """pdb at a rank's prompt.

    Args:
        server: Where commands come from and output goes.
        cell_names: Name to show by code filename.

    Attributes:
        server: As given.
        why: ``breakpoint``, or the exception that was raised.
        header: A line to print when it stops next; None: nothing.
    """

    def __init__(self, server: DebugServer, cell_names: dict[str, str]) -> None:
        streams: Any = server
        super().__init__(
            stdin=streams, stdout=streams, skip=["icelaunch_nb", "icelaunch_nb.*"], nosigint=True
        )
        self.use_rawinput = False
        self.server, self.why = server, "breakpoint"
        self.header: str | None = None
        self._cell_names = cell_names
        self._continues = False
        server.completer = self._complete_line

    # When it stops and goes on.

    def interaction(self, frame: FrameType | None, traceback: Any = None, *more: Any) -> None:
        self._continues = False
        if not self.server.announce_stop(**self._describe_stop(frame, traceback)):
            self.clear_all_breaks()
            self.set_continue()
            return
        if self.header is not None:
            self.message(self.header)
            self.header = None
        super().interaction(frame, traceback, *more)
        if self._continues:
            self.server.end_session()

    def user_return(self, frame: FrameType, return_value: Any) -> None:
        super().user_return(frame, return_value)
        if self.server.in_session and (frame.f_back is None or _is_machinery(frame.f_back)):
            self.set_continue()  # no code of the user is left to step through
            self.server.end_session()

    def set_stepinstr(self) -> None:
        """Makes a breakpoint stop at the next line, as up to Python 3.12.

        From 3.13 on pdb would stop in the line of the breakpoint.
        """
        self.set_step()

    def set_continue(self) -> None:
        self._continues = True
        super().set_continue()

    def do_quit(self, arg: str) -> bool:
        """q(uit).

        Stops the run, as run.stop() does: loops over ctx.steps end at
        one and the same step on all ranks, and the results arrive.
        """
        self.clear_all_breaks()
        self.server.stop_run()
        self.set_continue()
        return True

    do_q = do_exit = do_EOF = do_quit  # type: ignore[assignment]

    do_next = do_n = _only_at_breakpoints(pdb.Pdb.do_next)
    do_step = do_s = _only_at_breakpoints(pdb.Pdb.do_step)
    do_return = do_r = _only_at_breakpoints(pdb.Pdb.do_return)
    do_until = do_unt = _only_at_breakpoints(pdb.Pdb.do_until)

    def do_run(self, arg: str) -> None:
        """Not here: the run starts its ranks together."""
        self.error("a rank can't be started anew by itself")

    do_restart = do_run

    def do_interact(self, arg: str) -> None:
        """Not here: type statements at the prompt, with ! before those that look like commands."""
        self.error("there is no terminal here; statements work at this prompt")

    def _describe_stop(self, frame: FrameType | None, traceback: Any) -> dict[str, str]:
        """Where it stops and why, for the journal."""
        line = frame.f_lineno if frame is not None else 0
        # Python 3.13 passes the exception.
        traceback = getattr(traceback, "__traceback__", traceback)
        while isinstance(traceback, TracebackType):
            frame, line, traceback = traceback.tb_frame, traceback.tb_lineno, traceback.tb_next
        assert frame is not None
        who = ""
        if os.getsid(0) != os.getpid():  # a rank leads its session
            who = f"process {os.getpid()}"
        elif threading.current_thread() is not threading.main_thread():
            who = f"thread {threading.current_thread().name}"[:_MAX_NAME]
        where = source_locations.format_location(frame.f_code.co_filename, line, self._cell_names)
        return {"where": where, "function": frame.f_code.co_name, "why": self.why, "who": who}

    # What it shows.

    def get_stack(
        self, frame: FrameType | None, traceback: TracebackType | None
    ) -> tuple[list[tuple[FrameType, int]], int]:
        stack, current = super().get_stack(frame, traceback)
        below = 0
        while below < current and _is_machinery(stack[below][0]):
            below += 1
        return stack[below:], current - below

    def format_stack_entry(self, frame_lineno: tuple[FrameType, int], lprefix: str = ": ") -> str:
        text = super().format_stack_entry(frame_lineno, lprefix)
        filename = frame_lineno[0].f_code.co_filename
        return text.replace(
            self.canonic(filename) + "(", f"{self._cell_names.get(filename, filename)}(", 1
        )

    def _complete_line(self, line: str) -> tuple[list[str], int]:
        """The completions at the end of a line, and where in the line they begin."""
        start = re.search(r"[\w.]*$", line).start()  # type: ignore[union-attr]
        word, found = line[start:], []
        if not line[:start].strip() and "." not in word:
            found += self.completenames(word, line, start, len(line))
        if word and self.curframe is not None:
            completer = rlcompleter.Completer({**self.curframe.f_globals, **self.curframe_locals})
            matches = (completer.complete(word, number) for number in range(_MAX_COMPLETIONS))
            found += [
                match
                for match in itertools.takewhile(lambda match: match is not None, matches)
                if match
            ]
        return sorted(set(found)), start


def _is_machinery(frame: FrameType) -> bool:
    """Whether a frame belongs to what starts ranks, threads and processes."""
    filename = frame.f_code.co_filename
    return source_locations.is_ours(filename) or filename.startswith(_MACHINERY)
