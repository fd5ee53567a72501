"""Writes how a rank's function ended: the file of its value, or the files of its error."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.pickling import explain, packing
from icelaunch_nb.rundir import disk_reserve, source_locations
from icelaunch_nb.rundir.error_file import RankError, format_error
from icelaunch_nb.rundir.paths import RankDir
from icelaunch_nb.system.files import write_atomically
from icelaunch_nb.system.plaintext import exception_message
from icelaunch_nb.worker import tracebacks
from icelaunch_nb.worker.error_reserve import ErrorReserve

# Kinds that a retry can't cure: `Failure.kind`, and the exceptions that `launch` doesn't retry.
_INCURABLE = (SyntaxError, NameError, ImportError)
_END = 10_000  # characters kept at either end of a message


def write_result(value: Any, rank: int, rank_dir: RankDir, reserve: ErrorReserve) -> bool:
    """Pickles the function's value. Where that fails, writes an error that says why.

    Args:
        value: What the function returned.
        rank: The global rank.
        rank_dir: The rank's folder.
        reserve: What the rank has set aside for its end.

    Returns:
        Whether the value is written.
    """
    reserve.release()
    try:
        disk_reserve.retry_without_reserve(
            lambda: packing.dump(value, rank_dir.result, to_kernel=True), rank_dir.disk_reserve
        )
        return True
    except packing.PickleWriteError as error:
        write_error(
            OSError(error.errno, f"rank {rank}'s result can't be written: {error.strerror}"),
            rank_dir,
            {},
            reserve,
            kind="result",
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever an object's `__reduce__` raises
        write_error(
            explain.explain(error, {f"rank {rank}'s result": value}, to_a_rank=False),
            rank_dir,
            {},
            reserve,
            kind="result",
        )
    return False


def write_error(
    error: BaseException,
    rank_dir: RankDir,
    cell_names: Mapping[str, str],
    reserve: ErrorReserve,
    *,
    kind: str = "raised",
) -> None:
    """Writes the error file, in torch elastic's layout with our fields, and pickles the exception.

    It blocks SIGTERM for good: when several ranks fail together, the agent is already ending the
    others, and each still writes its own error.

    Args:
        error: What the function raised.
        rank_dir: The rank's folder.
        cell_names: Name to show (``Cell In[3]``) by code filename.
        reserve: What the rank has set aside for its end.
        kind: As `Failure.kind`; a SystemExit makes it ``exited``.
    """
    reserve.release()
    now = time.time()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if isinstance(error, SystemExit):
        kind = "exited"
    try:
        data = _format(error, now, kind, cell_names)
    except Exception as failure:  # no memory, for example
        reason = f"(its traceback can't be formatted: {type(failure).__name__})"
        data = _format(error, now, kind, cell_names, reason)
    # Without any error file, the agent still has the exit code, and sees that the disk is full.
    try:
        disk_reserve.retry_without_reserve(
            lambda: write_atomically(rank_dir.error, data), rank_dir.disk_reserve
        )
    except OSError:
        if not reserve.write(data):
            _print(error, cell_names)
    _pickle_exception(error, rank_dir)


def _format(
    error: BaseException,
    now: float,
    kind: str,
    cell_names: Mapping[str, str],
    instead: str | None = None,
) -> bytes:
    """The error file's content. `instead` replaces the tracebacks."""
    name, message = type(error).__name__, _clipped(exception_message(error))
    if instead is None:
        stack = _clipped("".join(traceback.format_exception(error)))
        text = tracebacks.render(error, cell_names) if kind != "result" else f"{name}: {message}"
    else:
        stack, text = instead, f"{instead}\n{name}: {message}"
    rank_error = RankError(
        kind=kind,
        type_name=name,
        message=message,
        traceback=_clipped(text),
        time=now,
        incurable=kind in ("loading", "result") or isinstance(error, _INCURABLE),
    )
    return format_error(rank_error, stack)


def report_child_error(error: BaseException, cell_names: Mapping[str, str]) -> int:
    """Handles an exception of a child that the rank's code forked, as Python handles a script's.

    Args:
        error: What the child raised.
        cell_names: Name to show by code filename.

    Returns:
        The exit code.
    """
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        with contextlib.suppress(Exception):
            sys.stderr.write(f"{error.code}\n")
        return 1
    trace = error.__traceback__
    while trace is not None and source_locations.is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    if sys.excepthook is sys.__excepthook__:
        _print(error.with_traceback(trace), cell_names)
    else:
        with contextlib.suppress(Exception):
            sys.excepthook(type(error), error.with_traceback(trace), trace)
    return 1


def _print(error: BaseException, cell_names: Mapping[str, str]) -> None:
    """Prints Python's own traceback on stderr, with the cells' names."""
    with contextlib.suppress(Exception):
        text = "".join(traceback.format_exception(error))
        for filename, name in cell_names.items():
            text = text.replace(f'File "{filename}"', name)
        sys.stderr.write(text)


def _clipped(text: str) -> str:
    """Head and tail of a text that is too long for a notebook and a journal.

    A message can hold a whole tensor.
    """
    if len(text) <= 2 * _END:
        return text
    return f"{text[:_END]}\n… {len(text) - 2 * _END:,} characters more …\n{text[-_END:]}"


def _pickle_exception(error: BaseException, rank_dir: RankDir) -> None:
    """Writes the exception for ``__cause__``.

    One that can't be pickled or built again is known by its text alone.
    """
    try:
        packing.dump(error.with_traceback(None), rank_dir.exception, to_kernel=True)
    except Exception:
        return
