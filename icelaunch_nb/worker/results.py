"""What a rank leaves behind when its function is over: a value, or an error."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Mapping
from typing import Any

from icelaunch_nb import disk, packing
from icelaunch_nb.disk import write_whole
from icelaunch_nb.errors import message
from icelaunch_nb.rundir import RankDir
from icelaunch_nb.worker import tracebacks

# Kinds that a retry can't cure: `Failure.kind`, and the exceptions that `launch` doesn't retry.
_INCURABLE = (SyntaxError, NameError, ImportError)


_END = 10_000  # characters kept at either end of a message


def returned(value: Any, rank: int, rank_dir: RankDir) -> bool:
    """Packs the value; where that fails, says why instead. Whether it could be packed."""
    try:
        disk.pressing(
            lambda: packing.dump(value, rank_dir.result, homeward=True), rank_dir.path.parent.parent
        )
        return True
    except packing.NotWritten as error:
        raised(
            OSError(error.errno, f"rank {rank}'s result can't be written: {error.strerror}"),
            rank_dir,
            {},
            kind="result",
        )
    except Exception as error:
        raised(
            packing.explain(error, {f"rank {rank}'s result": value}), rank_dir, {}, kind="result"
        )
    return False


def raised(
    error: BaseException, rank_dir: RankDir, cell_names: Mapping[str, str], *, kind: str = "raised"
) -> None:
    """Writes the error file, in torch elastic's layout with our fields beside it, and the exception itself.

    SIGTERM waits until this is done: when several ranks fail together, the agent is already ending the others.
    """
    now, said = time.time(), _clipped(message(error))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    text = (
        tracebacks.render(error, cell_names)
        if kind != "result"
        else f"{type(error).__name__}: {said}"
    )
    if isinstance(error, SystemExit):
        kind = "exited"
    data = json.dumps(
        {
            "message": {
                "message": f"{type(error).__name__}: {said}",
                "extraInfo": {
                    "py_callstack": _clipped("".join(traceback.format_exception(error))),
                    "timestamp": str(int(now)),
                },
            },
            "icelaunch": {
                "kind": kind,
                "time": now,
                "pid": os.getpid(),
                "type_name": type(error).__name__,
                "message": said,
                "traceback": _clipped(text),
                "incurable": kind in ("loading", "result") or isinstance(error, _INCURABLE),
            },
        },
        default=str,
    ).encode()
    with contextlib.suppress(
        OSError
    ):  # without it, the exit code speaks, and the agent sees that the disk is full
        disk.pressing(lambda: write_whole(rank_dir.error, data), rank_dir.path.parent.parent)
    _pack_exception(error, rank_dir)


def _clipped(text: str) -> str:
    """Head and tail of a text too long for a notebook and a journal; a message can hold a whole tensor."""
    if len(text) <= 2 * _END:
        return text
    return f"{text[:_END]}\n… {len(text) - 2 * _END:,} characters more …\n{text[-_END:]}"


def _pack_exception(error: BaseException, rank_dir: RankDir) -> None:
    """The exception for `__cause__`; one that can't be packed or built again is told by its text alone."""
    try:
        packing.dump(error.with_traceback(None), rank_dir.exception, homeward=True)
    except Exception:
        return
