"""A full disk or a directory that vanishes ends the run, with a message and no result."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for

import icelaunch_nb as ice
from icelaunch_nb.client.host_pool import hosts
from icelaunch_nb.notebook.panel import summary
from icelaunch_nb.notebook.panel.view_model import ViewModel
from icelaunch_nb.rundir.journal import read_events
from icelaunch_nb.system.processes import Process


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", path],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small disk can't be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def talk() -> None:
    while True:
        print("x" * 100)


def fill(disk: Path) -> int:
    """Fills the disk, and suppresses the error."""
    with (
        contextlib.suppress(OSError),
        open(disk / f"filler{ice.get_context().rank}", "wb", buffering=0) as file,
    ):
        while True:
            file.write(b"x" * 4096)
    (disk.parent / f"filled{ice.get_context().rank}").touch()
    while not all((disk.parent / f"filled{rank}").exists() for rank in (0, 1)):
        time.sleep(0.005)
    return 7


def shown(run: ice.Run) -> str:
    return "\n".join(
        [repr(run), summary.text(run), summary.html(run), str(ViewModel(run).run_state())]
    )


def test_logs_that_fill_the_disk_end_the_run_and_it_says_so(disk: Path) -> None:
    run = ice.launch(talk, nproc_per_node=2, log_dir=disk)
    with pytest.raises(ice.RunFailed, match="No space left on device|the disk is full"):
        run.result(30)
    assert "No space left on device" in shown(run) or "the disk is full" in shown(run)
    # One rank may fill the disk before the other prints its first line.
    logs = run.logs(0) + run.logs(1)
    assert len(logs) > 100_000 and set(logs) == {"x", "\n"}, (
        "what was written is there, and nothing else"
    )
    events, end = read_events(Path(run.log_dir, "journal.jsonl"), 0)
    assert (events[-1].name, events[-1].state, end) == (
        "end",
        "FAILED",
        Path(run.log_dir, "journal.jsonl").stat().st_size,
    )
    assert ice.attach(run.log_dir).state == "FAILED"


def test_a_result_that_doesnt_fit_is_not_claimed(disk: Path) -> None:
    run = ice.launch(lambda: os.urandom(3 << 20), nproc_per_node=2, log_dir=disk)
    with pytest.raises(
        ice.RunFailed, match="rank [01]'s result can't be written: No space left on device"
    ) as caught:
        run.result(30)
    assert caught.value.results == {}
    assert list(Path(run.log_dir).rglob("*result*")) == [], "nor is half of it left"


def test_a_small_result_still_fits_on_a_full_disk(disk: Path) -> None:
    run = ice.launch(fill, (disk,), nproc_per_node=2, log_dir=disk)
    assert run.result(30) == {0: 7, 1: 7}
    assert run.state == "SUCCEEDED"


def test_a_launch_on_a_full_disk_starts_nothing(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(ice.ConfigError, match="log_dir=.*No space left on device"):
        ice.launch(fill, (disk,), nproc_per_node=2, log_dir=disk)
    assert os.listdir(disk) == ["filler"]


@pytest.mark.parametrize(
    "fn", [lambda: time.sleep(60), lambda: time.sleep(0.3)], ids=["at work", "about to return"]
)
def test_a_directory_that_vanishes_ends_the_run(fn: Any, runs: Path) -> None:
    run = ice.launch(fn, nproc_per_node=2)
    while run.state != "RUNNING":
        time.sleep(0.005)
    ours = [run._run_state.agent, *filter(None, map(Process.of, run.pids.values()))]
    shutil.rmtree(run.log_dir)
    with pytest.raises(ice.RunLost, match="its directory is gone"):
        run.result(30)
    assert "its directory is gone" in shown(run) and "LOST" in repr(run)
    wait_for(lambda: not any(process.alive() for process in ours))
    assert ice.launch(lambda: 1, nproc_per_node=2).result(60) == {0: 1, 1: 1}


@pytest.mark.parametrize("options", ["size=1m", "size=1m,nr_inodes=40"], ids=["space", "inodes"])
def test_a_disk_that_is_full_as_the_agent_starts_is_named(
    options: str, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)
    real_launch = hosts.launch

    def launch(*task: Any) -> Any:
        """Fills the disk after the launch has written its own files."""
        with contextlib.suppress(OSError):
            for number in range(100 if "inodes" in options else 1):
                with open(disk / f"filler{number}", "wb", buffering=0) as file:
                    while "inodes" not in options:
                        file.write(b"x" * 4096)
        return real_launch(*task)

    monkeypatch.setattr(hosts, "launch", launch)
    run = ice.launch(int, nproc_per_node=2, log_dir=disk)
    with pytest.raises(
        ice.RunLost,
        match="its agent ended, since it can't write in the run's directory: No space left on "
        "device",
    ):
        run.result(30)
