"""Figures from nothing: what importing icelaunch_nb costs, and its first launch in a new kernel."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.contender import Contender, Measurement
from benchmarks.messages import Call

_SETTLED = 5.0  # seconds after %load_ext by which a launch has to be a warm one


def python(statement: str) -> float:
    """Wall time of ``python -c statement``, in seconds."""
    started = time.time()
    subprocess.run([sys.executable, "-c", statement], check=True, cwd=Path(__file__).parent.parent)
    return time.time() - started


def import_icelaunch() -> float:
    """What ``import icelaunch_nb`` adds to a bare interpreter, which is started right after it. torch must not be among it."""
    return python("import icelaunch_nb, sys; assert 'torch' not in sys.modules") - python("pass")


def first_launch(scratch: Path) -> Measurement:
    """A kernel's first launch, made in the moment of ``%load_ext``; the import and ``%load_ext`` are within its time."""
    return _first(scratch, None)


def settled_launch(scratch: Path) -> Measurement:
    """A kernel's first launch, five seconds after ``%load_ext``."""
    return _first(scratch, _SETTLED)


def _first(scratch: Path, after: float | None) -> Measurement:
    kernel = Contender("icelaunch_nb", scratch)
    try:
        if after is not None:
            kernel.load()
            time.sleep(after)
        return kernel.measure(Call("first_line", ranks=2))
    finally:
        kernel.close()
