"""Ranks inherit from the launching process, as it is at the launch, what any child would."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import icelaunch_nb as ice
from icelaunch_nb.launching import inherited

LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)


def attributes() -> dict[str, Any]:
    mask = os.umask(0)
    os.umask(mask)
    return {
        "umask": mask,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "limits": [resource.getrlimit(limit) for limit in LIMITS],
        "affinity": os.sched_getaffinity(0) if sys.platform == "linux" else None,
    }


@contextlib.contextmanager
def changed() -> Iterator[None]:
    """Gives this process other attributes than its host was started with."""
    before = attributes()
    try:
        os.umask(0o027)
        if os.geteuid() == 0:  # nobody else can take it back
            os.setpriority(os.PRIO_PROCESS, 0, before["nice"] + 3)
        if before["affinity"]:
            os.sched_setaffinity(0, {max(before["affinity"])})
        for limit, soft in zip(LIMITS, (400, 0, 1 << 30), strict=True):
            resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))
        yield
    finally:
        os.umask(before["umask"])
        if os.geteuid() == 0:
            os.setpriority(os.PRIO_PROCESS, 0, before["nice"])
        if before["affinity"]:
            os.sched_setaffinity(0, before["affinity"])
        for limit, pair in zip(LIMITS, before["limits"], strict=True):
            resource.setrlimit(limit, pair)


def test_ranks_have_the_attributes_of_the_launch(runs: Path) -> None:
    # After this there are a host, the next agent and its ranks.
    ice.launch(os.getpid, nproc_per_node=2).result(60)
    with changed():
        wanted = attributes()
        assert wanted["umask"] == 0o027 and wanted["limits"][0][0] == 400
        assert ice.launch(attributes, nproc_per_node=2).result(60) == {0: wanted, 1: wanted}
        printed = ice.launch("sh", ["-c", "umask; ulimit -n"], nproc_per_node=1)
        assert printed.wait(60) and printed.logs().split() == ["0027", "400"]
    now = attributes()
    assert now != wanted
    assert ice.launch(attributes, nproc_per_node=2).result(60) == {0: now, 1: now}


def test_a_limit_that_may_not_be_raised_is_raised_as_far_as_it_goes() -> None:
    assert inherited._lower(5, resource.RLIM_INFINITY) == 5
    assert inherited._lower(resource.RLIM_INFINITY, 7) == 7
    assert (
        inherited._lower(resource.RLIM_INFINITY, resource.RLIM_INFINITY) == resource.RLIM_INFINITY
    )


def write_here() -> str:
    try:
        Path("written-by-a-rank").write_text("")
        return os.getcwd()
    except FileNotFoundError as error:
        return type(error).__name__


@pytest.mark.filterwarnings("ignore:Deprecated in traitlets")  # ipywidgets 8.1.0 asks in an old way
def test_a_rank_of_a_process_without_a_working_directory_has_none_either(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "gone").mkdir()
    monkeypatch.chdir(runs / "gone")
    (runs / "gone").rmdir()
    assert ice.launch(write_here, nproc_per_node=2).result(60) == dict.fromkeys(
        (0, 1), "FileNotFoundError"
    )
    assert not os.path.exists("/written-by-a-rank")
    program = ice.launch("sh", ["-c", "echo > written-by-a-rank"], nproc_per_node=1)
    assert program.wait(60) and program.state == "FAILED"
    assert not os.path.exists("/written-by-a-rank")
    ice.LaunchPanel(write_here)


def test_a_working_directory_removed_between_two_attempts_is_not_replaced(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_it() -> str:
        if ice.get_context().restart_count == 0:
            os.rmdir(os.getcwd())
            raise RuntimeError("once more")
        return write_here()

    (runs / "gone").mkdir()
    monkeypatch.chdir(runs / "gone")
    assert ice.launch(remove_it, nproc_per_node=1, max_restarts=1).result(60) == {
        0: "FileNotFoundError"
    }
    assert not os.path.exists("/written-by-a-rank")


NO_LOOPBACK = """
import icelaunch_nb as ice, os, sys
for options in ({}, {"inline": True}):
    try:
        ice.launch(os.getpid, nproc_per_node=1, devices="cpu", log_dir=sys.argv[1], **options)
    except ice.HostError as error:
        assert "loopback" in str(error) and "127.0.0.1" in str(error), error
    else:
        sys.exit("it was launched")
assert not os.path.exists(sys.argv[1]), "nothing was started, nothing was written"
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can take the network away"
)
def test_without_a_loopback_interface_a_launch_says_so_at_once(tmp_path: Path) -> None:
    subprocess.run(
        ["unshare", "-n", sys.executable, "-c", NO_LOOPBACK, str(tmp_path / "logs")],
        check=True,
        timeout=60,
    )
