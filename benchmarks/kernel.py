"""A contender's own process: plain Python that lives on between launches, like a notebook's kernel.

``python -m benchmarks.kernel <contender> <file descriptor>``. It imports only what its contender
needs. So the contenders that fork it fork a process that has imported torch, and icelaunch_nb runs
in one that hasn't.
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
    """Serves the session's requests until the session closes the connection."""
    source = Path(__file__).with_name("ranks.py")
    # In __main__, as a cell would be.
    exec(compile(source.read_text(), source, "exec"), globals())
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
        text = str(raised).strip()
        error = f"{type(raised).__name__}: {text.splitlines()[0] if text else ''}"
    else:
        returned = time.time()
        del value
    sys.stdout.flush()
    return Answer(called, returned, error, "torch" in sys.modules)


if __name__ == "__main__":
    main()
