"""The user's directories: for state in the home directory, for runs and sockets in a temporary one.

None of them is certain to exist. A container whose user is only a number has no home directory. A
cluster's TMPDIR may be missing, unwritable, or longer than a socket's address. So each directory
has a fallback.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ADDRESS = 107 if sys.platform == "linux" else 103  # bytes of a socket's path
# What multiprocessing appends for its sockets, and some bytes to spare.
_BELOW = len("/ice-01234567/pymp-01234567/listener-01234567") + 8
_SHARED = ("/tmp", "/var/tmp", "/usr/tmp")  # the same as in `tempfile`


def state_dir() -> Path | None:
    """The directory for the user's state, which may not exist yet; None if there is no home."""
    import platformdirs  # not needed in ranks and agents

    try:
        path = platformdirs.user_state_path("icelaunch_nb")
    except (RuntimeError, KeyError, OSError):  # no HOME, and no entry in the user database
        return None
    return path if path.is_absolute() else None


def temporary_dirs(*, shared: bool = False) -> Iterator[Path]:
    """The temporary directories that exist, beginning with the one that Python uses.

    Args:
        shared: Only those that every process of the machine finds, whatever its TMPDIR.
    """
    seen = set()
    if not shared:
        with contextlib.suppress(OSError):  # Python finds no usable one
            seen.add(first := os.path.abspath(tempfile.gettempdir()))
            yield Path(first)
    for folder in _SHARED:
        if folder not in seen and os.path.isdir(folder):
            yield Path(folder)


def own_dir(folder: Path, name: str) -> Path:
    """The user's own directory in a temporary one. It is created where it is missing.

    It is called `name`. If another user has taken this name, it is called ``name-<random>``, and a
    later call finds it again.

    Raises:
        OSError: It can't be created there.
    """
    with contextlib.suppress(FileExistsError):
        (folder / name).mkdir(mode=0o700)
    path = next(own_dirs(folder, name), None) or Path(
        tempfile.mkdtemp(prefix=f"{name}-", dir=folder)
    )
    if stat.S_IMODE(path.lstat().st_mode) != 0o700:
        path.chmod(0o700)
    return path


def own_dirs(folder: Path, name: str) -> Iterator[Path]:
    """The directories that `own_dir` has created there. It creates none."""
    if _is_mine(folder / name):
        yield folder / name
    try:
        others = sorted(entry for entry in os.listdir(folder) if entry.startswith(f"{name}-"))
    except OSError:
        return
    yield from (folder / other for other in others if _is_mine(folder / other))


def _is_mine(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def make_socket_dir() -> str:
    """Creates a directory for multiprocessing's sockets.

    Its path leaves enough bytes for theirs, and its file system can hold sockets.

    Raises:
        OSError: There is no such place.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    first_error: OSError | None = None
    for folder in (*temporary_dirs(), *map(Path, filter(os.path.isabs, (runtime, "/dev/shm")))):
        if len(os.fsencode(folder)) + _BELOW > _ADDRESS:
            continue
        try:
            path = tempfile.mkdtemp(prefix="ice-", dir=folder)
        except OSError as error:
            first_error = first_error or error
            continue
        try:
            _try_socket(os.path.join(path, "probe"))
            return path
        except OSError as error:  # a file system without sockets
            first_error = first_error or error
            shutil.rmtree(path, ignore_errors=True)
    raise first_error or OSError(
        "no temporary directory is there whose path is short enough for a socket"
    )


def _try_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(path)
    os.unlink(path)
