"""Files that only their owner may read, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO


def open_private(path: Path, flags: int) -> int:
    """Opens a file, and creates it where it is missing. Its mode is 0600 under any umask.

    The user's code may change the umask at any time.

    Args:
        path: The file.
        flags: As `os.open` takes them; ``O_CREAT`` and ``O_CLOEXEC`` are added.

    Returns:
        The file descriptor.

    Raises:
        OSError: The file can't be opened.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Draft:
    """A file under a temporary name beside its final one, mode 0600, so no reader sees half of it.

    Write to `file`, then call `replace` or `link`. A draft that its ``with`` block leaves without
    either is removed. The file isn't synchronized to the disk.

    Args:
        path: The final name.
        buffering: As `open` takes it.

    Attributes:
        file: The open file.

    Raises:
        OSError: The draft can't be created.
    """

    file: BinaryIO

    def __init__(self, path: Path, buffering: int = -1) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}")
        self._replaced = False
        fd = open_private(self._draft, os.O_WRONLY | os.O_TRUNC)
        try:
            self.file = open(fd, "wb", buffering=buffering)
        except BaseException:
            os.close(fd)
            self._remove()
            raise

    def replace(self) -> None:
        """Closes the file and gives it its final name. A file that has this name is replaced.

        Raises:
            OSError: The disk is full, or the directory is gone.
        """
        self.file.close()
        self._draft.rename(self._path)
        self._replaced = True

    def link(self) -> None:
        """Closes the file and gives it its final name, unless a file has this name already.

        Raises:
            FileExistsError: A file has this name; it stays as it is.
            OSError: The disk is full, or the directory is gone.
        """
        self.file.close()
        os.link(self._draft, self._path)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *exc: object) -> None:
        # A buffered rest doesn't fit on a full disk either.
        with contextlib.suppress(OSError):
            self.file.close()
        if not self._replaced:
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._draft.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all, mode 0600.

    Args:
        path: The file. One that is there is replaced.
        data: Its content.

    Raises:
        OSError: The file can't be written; nothing of it stays.
    """
    with Draft(path) as draft:
        draft.file.write(data)
        draft.replace()
