"""Figures from nothing: what importing icelaunch_nb costs, and its first launch in a new kernel."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from benchmarks.contender import Contender, Measurement, plain_environ
from benchmarks.messages import Call

_CALL = Call("first_line", ranks=2)
_SETTLED = 5.0  # seconds after %load_ext by which a launch has to be a warm one


def python(statement: str) -> float:
    """Wall time of ``python -c statement``, in seconds."""
    started = time.time()
    subprocess.run([sys.executable, "-c", statement], check=True, env=plain_environ())
    return time.time() - started


def import_icelaunch() -> float:
    """What ``import icelaunch_nb`` adds to a bare interpreter, which is started right after it. torch must not be among it."""
    return python("import icelaunch_nb, sys; assert 'torch' not in sys.modules") - python("pass")


def first_launch(scratch: Path) -> Measurement:
    """A kernel's first launch, made in the moment of ``%load_ext``; the import and ``%load_ext`` are within its time."""
    with closing(Contender("icelaunch_nb", scratch)) as kernel:
        return kernel.measure(_CALL)


def settled_launches(scratch: Path, pause: float) -> tuple[Measurement, Measurement]:
    """A kernel's first launch, five seconds after ``%load_ext``, and its third, which is warm beyond doubt."""
    with closing(Contender("icelaunch_nb", scratch)) as kernel:
        kernel.load()
        time.sleep(_SETTLED)
        first = kernel.measure(_CALL)
        for _ in range(2):
            time.sleep(pause)
            later = kernel.measure(_CALL)
        return first, later
