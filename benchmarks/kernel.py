"""A contender's own process: a plain Python that, like a notebook's kernel, lives on between launches.

``python -m benchmarks.kernel <contender> <file descriptor>``. It imports what its contender needs and nothing else, so
those that fork it do so from a process that has imported torch, and icelaunch_nb runs in one that hasn't.
"""

from __future__ import annotations

import contextlib
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.launchers import LAUNCHERS, Launcher
from benchmarks.messages import Answer, Call


def main() -> None:
    """Obeys until the session hangs up."""
    source = Path(__file__).with_name("ranks.py")
    exec(
        compile(source.read_text(), source, "exec"), globals()
    )  # as a cell would be: into __main__
    session = Connection(int(sys.argv[2]))
    launcher, loaded = LAUNCHERS[sys.argv[1]](), False
    with contextlib.suppress(EOFError):
        while True:
            request = session.recv()
            started = time.time()
            if not loaded:
                launcher.load()
                loaded = True
            if request is None:
                session.send(None)
            else:
                session.send(_measure(launcher, started, *request))


def _measure(launcher: Launcher, called: float, call: Call, folder: str) -> Answer:
    error = ""
    try:
        value = launcher.launch(
            globals()[call.function],
            (folder, *call.args),
            ranks=call.ranks,
            folder=folder,
            restarts=call.restarts,
            shown=call.shown,
        )
    except Exception as raised:
        returned = time.time()
        error = f"{type(raised).__name__}: {str(raised).strip().splitlines()[0] if str(raised).strip() else ''}"
    else:
        returned = time.time()
        del value
    sys.stdout.flush()
    return Answer(called, returned, error, "torch" in sys.modules)


if __name__ == "__main__":
    main()
