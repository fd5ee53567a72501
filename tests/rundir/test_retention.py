"""Old runs are removed by number and size, but never a living or a pinned one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import icelaunch_nb as ice
from icelaunch_nb.rundir import retention
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import AgentStarted, Ended
from icelaunch_nb.rundir.paths import make_run_dir
from icelaunch_nb.rundir.retention import (
    Limits,
    is_living,
    is_pinned,
    limits,
    pin,
    prune,
    remove,
    remove_old,
)
from icelaunch_nb.system.processes import Process

ME = Process.of(os.getpid())


def make_run(base, number, *, agent=None, end="SUCCEEDED", weight=0):
    run_dir = make_run_dir(str(base), f"run{number}")
    run_dir.write_json(run_dir.spec, {})
    with JournalWriter(run_dir.journal) as journal:
        if agent is not None:
            journal.write(AgentStarted(pid=agent.pid, started=agent.started))
        if end:
            journal.write(Ended(state=end))
    if weight:
        (run_dir.path / "weight").write_bytes(b"x" * weight)
    # So the ages of runs differ.
    time.sleep(0.002)
    return run_dir.path


def names_left(base):
    return sorted(path.name.partition("_")[0] for path in base.iterdir())


def test_the_oldest_runs_beyond_the_number_are_removed(tmp_path):
    for number in range(5):
        make_run(tmp_path, number)
    removed = remove_old(tmp_path, Limits(runs=2))
    assert names_left(tmp_path) == ["run3", "run4"]
    assert sorted(path.name.partition("_")[0] for path in removed) == ["run0", "run1", "run2"]


def test_the_oldest_runs_beyond_the_size_are_removed(tmp_path):
    for number in range(4):
        make_run(tmp_path, number, weight=1 << 20)
    remove_old(tmp_path, Limits(bytes=2.9e6))
    assert names_left(tmp_path) == ["run2", "run3"]


def test_inf_keeps_all_runs(tmp_path):
    for number in range(3):
        make_run(tmp_path, number, weight=1 << 20)
    assert (
        remove_old(tmp_path, limits({"ICELAUNCH_KEEP_RUNS": "inf", "ICELAUNCH_KEEP_BYTES": "inf"}))
        == []
    )
    assert len(names_left(tmp_path)) == 3


@pytest.mark.parametrize(
    "facts",
    [
        {"agent": ME, "end": ""},  # running
        {"agent": None, "end": ""},  # starting
    ],
)
def test_a_living_run_is_kept(facts, tmp_path):
    path = make_run(tmp_path, 0, **facts)
    assert is_living(path)
    assert remove_old(tmp_path, Limits(0, 0)) == []
    assert path.is_dir()


def test_a_run_without_an_end_is_removed_if_its_agent_is_gone(tmp_path):
    # Another process has the pid by now.
    path = make_run(tmp_path, 0, agent=Process(ME.pid, ME.started + 1000), end="")
    assert not is_living(path)
    assert remove_old(tmp_path, Limits(0)) == [path]


def test_a_pinned_run_is_kept_until_the_pin_is_gone(tmp_path):
    path = make_run(tmp_path, 0)
    unpin = pin(path)
    assert remove_old(tmp_path, Limits(0)) == []
    unpin()
    assert not is_pinned(path)
    assert remove_old(tmp_path, Limits(0)) == [path]


def test_a_pin_of_a_process_that_is_gone_doesnt_count(tmp_path):
    path = make_run(tmp_path, 0)
    code = f"""
import os, pathlib
from icelaunch_nb.rundir.retention import pin
pin(pathlib.Path({str(path)!r}))
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert os.listdir(path / "watchers") and not is_pinned(path)


def test_a_forked_copy_removes_no_pin(tmp_path):
    path = make_run(tmp_path, 0)
    code = f"""
import os, pathlib, sys
from icelaunch_nb.rundir.retention import pin_while
class Holder: pass
holder = Holder()
pin_while(holder, pathlib.Path({str(path)!r}))
if os.fork() == 0:
    sys.exit()  # This runs its finalizers.
os.wait()
print(os.listdir(pathlib.Path({str(path)!r}) / "watchers"))
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert len(eval(printed)) == 1
    assert os.listdir(path / "watchers") == []


def test_a_handle_pins_its_run_as_long_as_it_exists(tmp_path):
    path = make_run(tmp_path, 0)
    (path / "spec.json").write_text('{"run_id": "x", "time": 0, "name": "fn"}')
    run = ice.attach(path)
    assert is_pinned(path)
    descriptors = len(os.listdir("/proc/self/fd"))
    other = ice.attach(path)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    del run
    assert is_pinned(path)
    del other
    assert not is_pinned(path)


def test_files_and_directories_that_are_no_runs_are_kept(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(make_run(tmp_path.parent / "elsewhere", 0))
    assert remove_old(tmp_path, Limits(0)) == []
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link"]


def test_an_interrupted_removal_is_finished_by_the_next(tmp_path):
    (tmp_path / ".gone-run_1" / "attempt_0").mkdir(parents=True)
    remove_old(tmp_path, Limits())
    assert os.listdir(tmp_path) == []


def test_removing_a_missing_run_is_no_error(tmp_path):
    assert not remove(tmp_path / "nowhere")
    assert remove_old(tmp_path / "nowhere", Limits()) == []
    assert prune([tmp_path / "nowhere"], Limits(0)) == []


@pytest.mark.parametrize("name", ["ICELAUNCH_KEEP_RUNS", "ICELAUNCH_KEEP_BYTES"])
@pytest.mark.parametrize("text", ["many", "-1", "nan", "1 GB", "0x10"])
def test_a_limit_that_is_no_number_is_an_error_at_the_launch(name, text, monkeypatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(
        ice.ConfigError, match=f"{name}='{text}': must be a number, 0 or more, or inf"
    ):
        ice.launch(len, (1,))


def test_the_defaults_are_as_documented():
    assert limits({}) == Limits(100, 10e9)
    assert "100" in retention.__doc__ and "10e9" in retention.__doc__
