"""A rank's standard streams: each byte goes to its log files at once.

This includes what C code and children of the rank write.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys

from icelaunch_nb.rundir.paths import RankDir

_IOLBF = 1
_LIBC = ctypes.CDLL(None)


def redirect(rank_dir: RankDir) -> None:
    """Points descriptors 0, 1 and 2 at /dev/null and the rank's logs, and the streams at them.

    Python's streams are unbuffered, as by ``python -u``: a partial line before a SIGKILL is on disk
    too. C's stdout is line buffered.
    """
    for fd, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, rank_dir.stdout, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, rank_dir.stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, fd)
        if opened != fd:
            os.close(opened)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _unbuffered(1, "<stdout>")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _unbuffered(2, "<stderr>")  # type: ignore[misc]
    _LIBC.setvbuf(_c_stdout(), None, _IOLBF, ctypes.c_size_t(0))


def flush() -> None:
    """Flushes C's streams, which a process that ends by ``os._exit`` would lose."""
    _LIBC.fflush(None)


def _unbuffered(fd: int, name: str) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    raw.name = name
    return io.TextIOWrapper(
        raw,  # type: ignore[arg-type]
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )


def _c_stdout() -> ctypes.c_void_p:
    return ctypes.c_void_p.in_dll(_LIBC, "__stdoutp" if sys.platform == "darwin" else "stdout")
