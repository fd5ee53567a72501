"""``set_trace``: a breakpoint that works in a rank, whose stdin is nobody's."""

from __future__ import annotations

import os
import sys

from icelaunch_nb.launching import process_targets
from icelaunch_nb.launching.rank_environment import RANK_DIR_VARIABLE

_STOP_AT = "icelaunch_nb.worker.debugger:stop_at"  # which imports this module, and is loaded where a debugger is wanted


def set_trace(*, header: str | None = None) -> None:
    """Stops this rank in a debugger; ``breakpoint()`` and ``pdb.set_trace()`` in a rank do the same.

    The run says where the rank waits, its panel offers a prompt for it, and ``run.debug(rank)`` opens one anywhere else. It
    waits until somebody says ``continue``; the other ranks go on until they need it, in a collective say, and wait there.
    ``quit`` stops the whole run, as `Run.stop` does. While the run stops, this does nothing. Collectives have timeouts (10 minutes
    for NCCL, 30 for gloo): ``init_process_group(timeout=…)`` gives whoever looks longer the time.

    Also in threads and DataLoader workers of a rank, and in the scripts of a run whose ranks are a program. Elsewhere (under
    torchrun, inline in the kernel) it is Python's own ``pdb.set_trace``.

    Args:
        header: What to say first at the prompt.
    """
    frame = sys._getframe(1)
    if RANK_DIR_VARIABLE in os.environ:
        process_targets.resolve(_STOP_AT)(frame, header)
    else:
        import pdb  # 8 ms that nobody pays who has no breakpoint

        python = pdb.Pdb()
        if header is not None:
            python.message(header)
        python.set_trace(frame)
