"""A rank's debugger: pdb, whose prompt anybody of the user's can come to (`prompt`).

Where it differs from pdb in a terminal:

* ``quit`` stops the run as `Run.stop` does: loops over ``ctx.steps`` end at one and the same step and the results arrive. pdb
  would raise in this rank, which elastic takes for a failure, and starts all ranks again.
* While a run is being stopped there is no prompt; whoever stands at one goes on.
* Frames below the user's function are not shown, and stepping never leads into this package.
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
    "<string>",
)  # the last is a forkserver's -c
_REASON = 200  # characters of an exception's text that the journal gets
_NAME = 60  # and of the name of a thread
_OFFERED = 200  # completions

_here = threading.local()


def stop_at(frame: FrameType, header: str | None = None) -> None:
    """Stops this thread at the next line of `frame`; `header` is said first."""
    debugger = _debugger()
    if not debugger.prompt_of_rank.stopping():
        sys.settrace(
            None
        )  # a breakpoint that was set at the prompt keeps tracing on, and what follows must not be stepped into
        debugger.why, debugger.header = "breakpoint", header
        debugger.set_trace(frame)


def post_mortem(error: BaseException) -> None:
    """Stops this rank where `error` was raised; returns when it goes on to fail."""
    debugger = _debugger()
    said = "".join(exception_message(error).splitlines()[:1])
    debugger.why = f"{type(error).__name__}: {said}"[:_REASON]
    sys.settrace(None)
    debugger.reset()
    debugger.interaction(None, error.__traceback__)
    debugger.prompt_of_rank.leave()


def replace_pdb_set_trace() -> None:
    """``pdb.set_trace()``, which code has from before ``breakpoint()`` came, would read this rank's stdin, where nobody types."""
    pdb.set_trace = set_trace


def finish() -> None:
    """The rank's function is over, and whoever stepped through its end has left the debugger."""
    debugger = getattr(_here, "debugger", None)
    if debugger is not None and debugger.prompt_of_rank.is_open:
        sys.settrace(None)
        debugger.prompt_of_rank.leave()


def _debugger() -> RankDebugger:
    """This thread's debugger, with the breakpoints and aliases of its earlier stops; a forked child makes its own."""
    if getattr(_here, "pid", None) != os.getpid():
        rank_dir = RankDir(Path(os.environ[RANK_DIR_VARIABLE]))
        names = source_locations.register_cells(rank_dir.run_dir)
        _here.debugger = RankDebugger(
            DebugServer(rank_dir, int(os.environ.get("RANK", "0"))), names
        )
        _here.pid = os.getpid()
    return _here.debugger


def _while_it_runs(command: Callable[..., Any]) -> Any:
    """A command that makes steps; in a post-mortem pdb's own would leave the prompt, and the rank would fail at once."""

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
        prompt: Where commands come from.
        names: Name to show by code filename.

    Attributes:
        why: ``breakpoint``, or the exception that was raised.
        header: What is said when it stops next; None: nothing.
    """

    def __init__(self, prompt: DebugServer, names: dict[str, str]) -> None:
        streams: Any = prompt
        super().__init__(
            stdin=streams, stdout=streams, skip=["icelaunch_nb", "icelaunch_nb.*"], nosigint=True
        )
        self.use_rawinput = False
        self.prompt_of_rank, self.why = prompt, "breakpoint"
        self.header: str | None = None
        self._names = names
        self._goes_on = False
        prompt.completer = self._complete_line

    # When it stops, and goes on.

    def interaction(self, frame: FrameType | None, traceback: Any = None, *more: Any) -> None:
        self._goes_on = False
        if not self.prompt_of_rank.open(**self._stands(frame, traceback)):
            self.clear_all_breaks()
            self.set_continue()
            return
        if self.header is not None:
            self.message(self.header)
            self.header = None
        super().interaction(frame, traceback, *more)
        if self._goes_on:
            self.prompt_of_rank.leave()

    def user_return(self, frame: FrameType, return_value: Any) -> None:
        super().user_return(frame, return_value)
        if self.prompt_of_rank.is_open and (frame.f_back is None or _is_machinery(frame.f_back)):
            self.set_continue()  # there is nothing of the user's to step through any more
            self.prompt_of_rank.leave()

    def set_stepinstr(self) -> None:
        """Where a breakpoint stops: at the next line, as up to Python 3.12; from 3.13 on pdb would stop in the line that holds it."""
        self.set_step()

    def set_continue(self) -> None:
        self._goes_on = True
        super().set_continue()

    def do_quit(self, arg: str) -> bool:
        """q(uit).

        Stops the run, as run.stop() does: loops over ctx.steps end at
        one and the same step on all ranks, and the results arrive.
        """
        self.clear_all_breaks()
        self.prompt_of_rank.stop_run()
        self.set_continue()
        return True

    do_q = do_exit = do_EOF = do_quit  # type: ignore[assignment]

    do_next = do_n = _while_it_runs(pdb.Pdb.do_next)
    do_step = do_s = _while_it_runs(pdb.Pdb.do_step)
    do_return = do_r = _while_it_runs(pdb.Pdb.do_return)
    do_until = do_unt = _while_it_runs(pdb.Pdb.do_until)

    def do_run(self, arg: str) -> None:
        """Not here: the run starts its ranks together."""
        self.error("a rank can't be started anew by itself")

    do_restart = do_run

    def do_interact(self, arg: str) -> None:
        """Not here: type statements at the prompt, with ! before those that look like commands."""
        self.error("there is no terminal here; statements work at this prompt")

    def _stands(self, frame: FrameType | None, traceback: Any) -> dict[str, str]:
        """Where it stops and why, for the journal."""
        line = frame.f_lineno if frame is not None else 0
        traceback = getattr(
            traceback, "__traceback__", traceback
        )  # Python 3.13 gives the exception
        while isinstance(traceback, TracebackType):
            frame, line, traceback = traceback.tb_frame, traceback.tb_lineno, traceback.tb_next
        assert frame is not None
        who = ""
        if os.getsid(0) != os.getpid():  # a rank leads its session
            who = f"process {os.getpid()}"
        elif threading.current_thread() is not threading.main_thread():
            who = f"thread {threading.current_thread().name}"[:_NAME]
        where = source_locations.format_location(frame.f_code.co_filename, line, self._names)
        return {"where": where, "function": frame.f_code.co_name, "why": self.why, "who": who}

    # How it looks.

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
            self.canonic(filename) + "(", f"{self._names.get(filename, filename)}(", 1
        )

    def _complete_line(self, line: str) -> tuple[list[str], int]:
        """What TAB offers at the end of a line, and where in the line it begins."""
        start = re.search(r"[\w.]*$", line).start()  # type: ignore[union-attr]
        word, found = line[start:], []
        if not line[:start].strip() and "." not in word:
            found += self.completenames(word, line, start, len(line))
        if word and self.curframe is not None:
            completer = rlcompleter.Completer({**self.curframe.f_globals, **self.curframe_locals})
            matches = (completer.complete(word, number) for number in range(_OFFERED))
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
