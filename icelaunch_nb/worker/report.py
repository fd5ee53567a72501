"""What a rank leaves behind when its function is over: a value, or an error."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Mapping
from typing import Any

from icelaunch_nb import packing
from icelaunch_nb.rundir import RankDir, write_whole
from icelaunch_nb.worker import tracebacks

# Kinds that a retry can't cure: `Failure.kind`, and the exceptions that `launch` doesn't retry.
_INCURABLE = (SyntaxError, NameError, ImportError)


def returned(value: Any, rank: int, rank_dir: RankDir) -> bool:
    """Packs the value; where that fails, says why instead. Whether it could be packed."""
    try:
        packing.dump(value, rank_dir.result, homeward=True)
        return True
    except OSError as error:
        raised(error, rank_dir, {}, kind="result")
    except Exception as error:
        raised(packing.explain(error, {f"rank {rank}'s result": value}), rank_dir, {}, kind="result")
    return False


def raised(error: BaseException, rank_dir: RankDir, cell_names: Mapping[str, str], *, kind: str = "raised") -> None:
    """Writes the error file, in torch elastic's layout with our fields beside it, and the exception itself.

    SIGTERM waits until this is done: when several ranks fail together, the agent is already ending the others.
    """
    now = time.time()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    text = tracebacks.render(error, cell_names) if kind != "result" else f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        kind = "exited"
    write_whole(rank_dir.error, json.dumps({
        "message": {
            "message": f"{type(error).__name__}: {error}",
            "extraInfo": {"py_callstack": "".join(traceback.format_exception(error)), "timestamp": str(int(now))},
        },
        "icelaunch": {
            "kind": kind,
            "time": now,
            "pid": os.getpid(),
            "type_name": type(error).__name__,
            "message": str(error),
            "traceback": text,
            "incurable": kind in ("loading", "result") or isinstance(error, _INCURABLE),
        },
    }, default=str).encode())
    _pack_exception(error, rank_dir)


def _pack_exception(error: BaseException, rank_dir: RankDir) -> None:
    """The exception for `__cause__`; one that can't be packed or built again is told by its text alone."""
    try:
        packing.dump(error.with_traceback(None), rank_dir.exception, homeward=True)
    except Exception:
        return
