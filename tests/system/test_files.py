"""Tests of `files`: files appear whole or not at all, and only their owner may read them."""

import os
import stat

import pytest

from icelaunch_nb.system.files import Draft, write_atomically


def test_abandoned_draft_is_removed_and_the_old_file_stays(tmp_path):
    write_atomically(tmp_path / "x", b"old")
    with Draft(tmp_path / "x") as draft:
        draft.file.write(b"new")
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"old"


def test_link_does_not_replace_an_existing_file(tmp_path):
    with Draft(tmp_path / "x") as first, Draft(tmp_path / "y") as other:
        first.file.write(b"first")
        first.link()
        other.link()
    with Draft(tmp_path / "x") as second:
        second.file.write(b"second")
        with pytest.raises(FileExistsError):
            second.link()
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]
    assert (tmp_path / "x").read_bytes() == b"first"


def test_file_mode_is_0600_under_any_umask(tmp_path):
    before = os.umask(0o277)
    try:
        write_atomically(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


def test_failed_write_leaves_no_file(tmp_path):
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError):
            write_atomically(tmp_path / "x", bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []
