"""The cold figures: importing icelaunch_nb, and its first launch in a new kernel."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from benchmarks.contender import Contender, Measurement, plain_environ
from benchmarks.messages import Call

_CALL = Call("first_line", ranks=2)
_SETTLED = 5.0  # seconds after %load_ext; a launch must be warm by then


def python(statement: str) -> float:
    """Returns the wall time of ``python -c statement``, in seconds."""
    started = time.time()
    subprocess.run([sys.executable, "-c", statement], check=True, env=plain_environ())
    return time.time() - started


def import_icelaunch() -> float:
    """Returns the seconds that ``import icelaunch_nb`` adds to a bare interpreter.

    The bare interpreter starts right after the other one. The import must not import torch.
    """
    return python("import icelaunch_nb, sys; assert 'torch' not in sys.modules") - python("pass")


def first_launch(scratch: Path) -> Measurement:
    """Measures a kernel's first launch, made right after ``%load_ext``.

    Its time includes the import and ``%load_ext``.
    """
    with closing(Contender("icelaunch_nb", scratch)) as kernel:
        return kernel.measure(_CALL)


def settled_launches(scratch: Path, pause: float) -> tuple[Measurement, Measurement]:
    """Measures a kernel's first launch, 5 s after ``%load_ext``, and its third, surely warm one.

    Args:
        scratch: A folder for what the kernel writes.
        pause: Seconds between two launches.
    """
    with closing(Contender("icelaunch_nb", scratch)) as kernel:
        kernel.load()
        time.sleep(_SETTLED)
        first = kernel.measure(_CALL)
        for _ in range(2):
            time.sleep(pause)
            later = kernel.measure(_CALL)
        return first, later
