"""Opens files that another user may have put there. Checks are made on descriptors, not on paths.

Another user who may rename in a directory of a path can exchange the file between a check and its
opening. So a file is opened first, without following a link and without waiting for the other end
of a FIFO. Then the open file is checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

from icelaunch_nb.errors import UntrustedFileError

LARGEST = 64 << 20  # bytes of a file that is read whole, other than a log
_CHUNK = 1 << 20  # bytes
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
# Errors of opening what is never opened here: a link, a socket, a device without a driver.
_OTHER_KIND = (
    errno.ELOOP,
    errno.ENXIO,
    errno.ENODEV,
    errno.EISDIR,
    errno.EOPNOTSUPP,
    getattr(errno, "EFTYPE", errno.ELOOP),
)

Identity = tuple[int, int]  # device and inode


def open_directory(path: str | os.PathLike[str], identity: Identity | None = None) -> int:
    """Opens a directory that the caller or root owns. A symbolic link to one is followed.

    Args:
        path: The directory.
        identity: The directory that it must be; None: any.

    Returns:
        The file descriptor.

    Raises:
        UntrustedFileError: It is another directory, or another user owns it.
        OSError: There is none.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        _check_owner(found, path)
        if identity is not None and (found.st_dev, found.st_ino) != identity:
            raise UntrustedFileError(
                f"{path} is not the directory that it was: somebody put another one in its place"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_below(
    directory: int,
    parts: Sequence[str],
    flags: int = os.O_RDONLY,
    *,
    fifo: bool = False,
    any_owner: bool = False,
) -> int:
    """Opens a file below an open directory, without following a link on the way.

    Args:
        directory: The descriptor from `open_directory`.
        parts: The names of the directories on the way, and of the file.
        flags: As `os.open` takes them.
        fifo: Whether it must be a FIFO; otherwise it must be a regular file.
        any_owner: Whether another user may own the file, since a rank may change its user. This is
            only for text that is shown.

    Returns:
        The file descriptor.

    Raises:
        UntrustedFileError: Something on the way is of another kind, or another user owns it.
        OSError: There is no such file, or it can't be opened.
    """
    held: list[int] = []
    try:
        for part in parts[:-1]:
            directory = _open(part, os.O_RDONLY | os.O_DIRECTORY, directory)
            held.append(directory)
            _check_owner(os.fstat(directory), part)
        return _open_file(parts[-1], flags, directory, fifo, any_owner)
    finally:
        for fd in held:
            os.close(fd)


def open_file(
    path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, any_owner: bool = False
) -> int:
    """Opens a regular file that the caller or root owns.

    It is for directories that no other user can write to.

    Args:
        path: The file.
        flags: As `os.open` takes them.
        any_owner: Whether another user may own it.

    Returns:
        The file descriptor.

    Raises:
        UntrustedFileError: It is of another kind, or another user owns it.
        OSError: There is no such file, or it can't be opened.
    """
    return _open_file(os.fspath(path), flags, None, False, any_owner)


def read_whole(fd: int, name: object, largest: int = LARGEST) -> bytes:
    """Reads all of a file and closes its descriptor.

    Args:
        fd: The descriptor.
        name: The file's name in an error.
        largest: The most bytes that the file may have.

    Raises:
        UntrustedFileError: The file is larger.
    """
    with open(fd, "rb", buffering=0) as file:
        size = os.fstat(fd).st_size
        if size > largest:
            raise UntrustedFileError(
                f"{name} has {size:,} bytes; {largest:,} are the most that is read"
            )
        # `read(largest)` would allocate that much, and touch a huge page of it in a rank.
        data = file.read(size + 1)
        return data if len(data) <= size else data + file.read(largest - len(data))


def read_lines(fd: int, offset: int, longest: int) -> Iterator[tuple[bytes, int]]:
    """Reads the complete lines of a file from an offset on.

    A line that is longer than `longest` is skipped, and so is a hole. A last line without its
    newline isn't complete.

    Args:
        fd: The descriptor.
        offset: Where to begin, in bytes.
        longest: The most bytes that a line may have.

    Yields:
        Each line without its newline, and the offset after it. A skipped line is empty.
    """
    rest, skipping = b"", False
    while chunk := os.pread(fd, _CHUNK, offset):
        at, offset = offset, offset + len(chunk)
        if len(chunk) == _CHUNK and not chunk[0] and not chunk.strip(b"\0"):
            rest, skipping, offset = b"", True, _after_hole(fd, offset)
            continue
        *lines, tail = chunk.split(b"\n")
        for line in lines:
            at += len(line) + 1
            yield (b"" if skipping or len(rest) + len(line) > longest else rest + line), at
            rest, skipping = b"", False
        if not skipping:
            rest += tail
        if len(rest) > longest:
            rest, skipping = b"", True
    if skipping:  # the end of such a line isn't awaited
        yield b"", offset


def writable_by_others(directory: str | os.PathLike[str]) -> str:
    """Whether other users can rename or remove files in a directory or in one above it.

    Write permission for a group counts, unless the group is the owner's own or root's.

    Returns:
        The first such directory and the reason, as a clause. Empty if there is none.
    """
    path = os.path.realpath(directory)
    while True:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            if found.st_uid not in (os.geteuid(), 0):
                return f"{path} belongs to user {found.st_uid}"
            if not found.st_mode & stat.S_ISVTX:
                if found.st_mode & stat.S_IWOTH:
                    return f"everybody may write to {path}, which has no sticky bit"
                if found.st_mode & stat.S_IWGRP and found.st_gid not in (0, found.st_uid):
                    return f"group {found.st_gid} may write to {path}, which has no sticky bit"
        if path == os.path.dirname(path):
            return ""
        path = os.path.dirname(path)


def _after_hole(fd: int, offset: int) -> int:
    """The offset of the next data, or of the end. A file of a terabyte may hold no data at all."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except (OSError, AttributeError) as error:
        return (
            max(offset, os.fstat(fd).st_size)
            if getattr(error, "errno", None) == errno.ENXIO
            else offset
        )


def _open_file(path: str, flags: int, directory: int | None, fifo: bool, any_owner: bool) -> int:
    fd = _open(path, flags, directory)
    try:
        found = os.fstat(fd)
        _check_kind(found, stat.S_IFIFO if fifo else stat.S_IFREG, path)
        if not any_owner:
            _check_owner(found, path)
        if (
            flags & os.O_CREAT
            and found.st_uid == os.geteuid()
            and stat.S_IMODE(found.st_mode) != 0o600
        ):
            os.fchmod(fd, 0o600)  # the user's code may have changed the umask
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(path: str, flags: int, directory: int | None) -> int:
    try:
        return os.open(path, flags | _FLAGS, 0o600, dir_fd=directory)
    except OSError as error:
        # A FIFO without a reader raises ENXIO, too.
        if error.errno in _OTHER_KIND or (error.errno == errno.ENOTDIR and flags & os.O_DIRECTORY):
            try:
                found = os.stat(path, dir_fd=directory, follow_symlinks=False)
            except OSError:
                raise error from None
            if flags & os.O_DIRECTORY:
                _check_kind(found, stat.S_IFDIR, path)
            elif not stat.S_ISFIFO(found.st_mode):
                _check_kind(found, stat.S_IFREG, path)
        raise


def _check_kind(found: os.stat_result, kind: int, path: object) -> None:
    if stat.S_IFMT(found.st_mode) != kind:
        is_a = _KINDS.get(stat.S_IFMT(found.st_mode), "thing of an unknown kind")
        raise UntrustedFileError(
            f"{path} is a {is_a} where a {_KINDS[kind]} must be: it is not read"
        )


def _check_owner(found: os.stat_result, path: object) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise UntrustedFileError(
            f"{path} belongs to user {found.st_uid}, not to you: nothing in it is loaded"
        )
