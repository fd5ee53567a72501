"""``set_trace``: a breakpoint that works in a rank, where nobody can type on stdin."""

from __future__ import annotations

import os
import sys

from icelaunch_nb.launching import process_targets
from icelaunch_nb.launching.rank_environment import RANK_DIR_VARIABLE

# By name: the debugger imports this module, and is loaded only where it is needed.
_STOP_AT = "icelaunch_nb.worker.debugger:stop_at"


def set_trace(*, header: str | None = None) -> None:
    """Stops this rank in a debugger.

    ``breakpoint()`` and ``pdb.set_trace()`` do the same in a rank.

    The run shows where the rank waits. Its panel offers a prompt for the rank, and
    ``run.debug(rank)`` opens one anywhere else. The rank waits until somebody enters ``continue``.
    The other ranks go on until they need it, in a collective for example, and wait there.
    Collectives have timeouts (10 minutes for NCCL, 30 for gloo). Set
    ``init_process_group(timeout=…)`` for a longer look around.

    ``quit`` stops the whole run, as `Run.stop` does. While the run stops, this function does
    nothing.

    It also works in threads and DataLoader workers of a rank, and in the scripts of a run whose
    ranks are a program. Elsewhere (under torchrun, inline in the kernel) it is Python's own
    ``pdb.set_trace``.

    Args:
        header: A line to print first at the prompt.
    """
    frame = sys._getframe(1)
    if RANK_DIR_VARIABLE in os.environ:
        process_targets.resolve(_STOP_AT)(frame, header)
    else:
        import pdb  # takes 8 ms, so only where there is a breakpoint

        python = pdb.Pdb()
        if header is not None:
            python.message(header)
        python.set_trace(frame)
