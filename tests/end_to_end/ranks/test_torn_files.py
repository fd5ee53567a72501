"""A process that is killed within a write leaves a directory that can be attached to.

Files of recorded runs are cut, and no `Run` says anything untrue. `make test` cuts them at every
seventh byte, `make test-long` at every byte.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import jobs
import pytest

import icelaunch_nb as ice
from icelaunch_nb.events import Events
from icelaunch_nb.notebook.panel import summary
from icelaunch_nb.notebook.panel.view_model import ViewModel
from icelaunch_nb.rundir import retention
from icelaunch_nb.rundir.journal import JournalWriter, read_events
from icelaunch_nb.rundir.journal_events import Ended
from icelaunch_nb.rundir.paths import RunDir

pytestmark = pytest.mark.slow
OVER = {"SUCCEEDED", "FAILED", "STOPPED", "LOST"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """Directories of real runs that are over. Their times say that they ran a week ago."""
    base = tmp_path_factory.mktemp("recorded")
    runs = {
        "restarted": ice.launch(
            jobs.fail_until,
            (1, 0),
            nproc_per_node=2,
            max_restarts=2,
            log_dir=base,
            run_id="restarted",
        ),
        "failed": ice.launch(
            jobs.end_by, ("SIGKILL",), nproc_per_node=2, log_dir=base, run_id="failed"
        ),
    }
    for run in runs.values():
        assert run.wait(60)
        for path in (run.log_dir, *map(str, Path(run.log_dir).rglob("*"))):
            os.utime(path, (time.time() - 604800,) * 2)
    return {name: RunDir(Path(run.log_dir)) for name, run in runs.items()}


@pytest.fixture(
    params=[
        pytest.param(7, id="every_7th_byte"),
        pytest.param(1, id="every_byte", marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
    ]
)
def stride(request: pytest.FixtureRequest) -> int:
    """Bytes between two places where a file is cut."""
    return request.param


def lengths(data: bytes, stride: int) -> list[int]:
    """Where to cut a file, its last byte included."""
    return sorted({*range(0, len(data), stride), *([len(data) - 1] if data else [])})


@pytest.fixture
def copy(recorded: dict[str, RunDir], tmp_path: Path, request: pytest.FixtureRequest) -> RunDir:
    """A copy of a directory, whose files the test may cut."""
    path = tmp_path / request.param
    shutil.copytree(
        recorded[request.param].path, path, ignore=shutil.ignore_patterns("control", "agent_alive")
    )
    run_dir = RunDir(path)
    for fifo in (run_dir.control, run_dir.agent_alive):
        os.mkfifo(fifo, 0o600)
    spec = json.loads(run_dir.spec.read_text())
    run_dir.write_json(run_dir.spec, {**spec, "time": spec["time"] - 604800})
    return run_dir


every = pytest.mark.parametrize("copy", ["restarted", "failed"], indirect=True)


def cut(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, (time.time() - 604800,) * 2)


def read_all(run_dir: RunDir) -> ice.Run:
    """A new `Run`, of which everything was read that a notebook reads."""
    run = ice.Run(run_dir.path)
    assert repr(run) and summary.text(run) and summary.html(run)
    assert ViewModel(run).run_state()["state"] == str(run.state)
    for rank in (0, 1) if run._run_state.attempts else ():
        run.logs(rank), run.logs(rank, "stderr")
    assert (run.pids, run.elapsed >= 0, len(run.failures) < 3) == ({}, True, True)
    list(run.metrics()), run.last_checkpoint, run.stacks()
    return run


@every
def test_the_journal_cut(copy: RunDir, stride: int) -> None:
    data = copy.journal.read_bytes()
    truth = json.loads(data.splitlines()[-1])["state"]
    last = len(data.rstrip(b"\n").rpartition(b"\n")[0]) + 1
    for length in sorted({*lengths(data, stride), last, len(data)}):
        cut(copy.journal, data[:length])
        run = read_all(copy)
        assert run.state == (truth if length == len(data) else "LOST"), length
        whole = [
            json.loads(line)
            for line in data[:length].splitlines(keepends=True)
            if line.endswith(b"\n")
        ]
        assert len(run._run_state.attempts) == sum(event["event"] == "attempt" for event in whole)
        assert [restart.to_line() for restart in run._run_state.restarts] == [
            event for event in whole if event["event"] == "restart"
        ]
        if length in (0, last, len(data) - 1):
            with pytest.raises(ice.RunLost, match="vanished"):
                run.result(1)
        assert not retention.is_living(copy.path) or not any(
            event["event"] == "agent" for event in whole
        )


@every
def test_what_is_added_after_a_torn_line_is_read(copy: RunDir, stride: int) -> None:
    data = copy.journal.read_bytes()
    for length in lengths(data, stride):
        cut(copy.journal, data[:length])
        with JournalWriter(copy.journal) as journal:
            journal.write(Ended(state="LOST", note="its agent was killed by SIGKILL"))
        events, _ = read_events(copy.journal, 0)
        # A line that lacks only its newline is whole.
        whole = data[: length + 1] if data[length : length + 1] == b"\n" else data[:length]
        assert [event.name for event in events[:-1]] == [
            json.loads(line)["event"]
            for line in whole.splitlines(keepends=True)
            if line.endswith(b"\n")
        ], length
        assert (events[-1].name, ice.Run(copy.path).state) == ("end", "LOST")


@every
def test_the_board_cut(copy: RunDir, stride: int) -> None:
    data, truth = copy.board.read_bytes(), ice.Run(copy.path).state
    for length in lengths(data, stride):
        copy.board.write_bytes(data[:length])
        assert (ice.Run(copy.path) if length % (64 * stride) else read_all(copy)).state == truth
        with pytest.raises(ValueError, match="is no events board"):
            Events.of_run(copy.path)
    copy.board.unlink()
    assert read_all(copy).state == truth


@every
def test_a_living_run_without_its_board_is_never_over(copy: RunDir) -> None:
    """Its agent lives: the journal names this process."""
    me = retention.Process.of(os.getpid())
    for board in (None, b"", b"iceboard"):
        copy.board.unlink(missing_ok=True)
        if board is not None:
            copy.board.write_bytes(board)
        copy.journal.write_text(
            json.dumps({"t": 1.0, "event": "agent", "pid": me.pid, "started": me.started}) + "\n"
        )
        assert str(ice.Run(copy.path).state) not in OVER
    copy.journal.unlink()  # `runs` would call that agent left behind


@every
def test_a_directory_whose_spec_is_cut_is_no_run(copy: RunDir, stride: int) -> None:
    data = copy.spec.read_bytes()
    for length in lengths(data, stride):
        copy.spec.write_bytes(data[:length])
        with pytest.raises(ice.IcelaunchError, match="is not the directory of a run"):
            ice.attach(copy.path)


@pytest.mark.parametrize("copy", ["restarted"], indirect=True)
def test_a_result_that_is_cut_is_not_claimed(copy: RunDir, stride: int) -> None:
    path = copy.rank(1, 0).result
    data = path.read_bytes()
    assert ice.Run(copy.path).result(1) == {0: 1, 1: 1}
    for length in lengths(data, stride):
        path.write_bytes(data[:length])
        with pytest.raises(ice.RunFailed, match="rank 0's result can't be built here"):
            ice.Run(copy.path).result(1)


@pytest.mark.parametrize("copy", ["failed"], indirect=True)
@pytest.mark.parametrize(
    "name", ["error.json", "error.pkl", "metrics.jsonl", "result.pkl", "stacks.txt"]
)
def test_a_ranks_files_that_are_cut_change_no_state(name: str, copy: RunDir, stride: int) -> None:
    for rank in (0, 1):
        path = copy.rank(0, rank).path / name
        data = (
            path.read_bytes()
            if path.exists()
            else b'{"rank": 0, "step": 1, "time": 2.5, "loss": 0.25}\n' * 2
        )
        for length in lengths(data, stride):
            path.write_bytes(data[:length])
            run = read_all(copy)
            with pytest.raises(ice.RunFailed, match="killed by SIGKILL"):
                run.result(1)


@every
@pytest.mark.parametrize(
    "draft", [".spec.json.1", ".result.pkl.1", ".error.json.1", ".checkpoint.json.1"]
)
def test_a_half_written_draft_is_ignored(draft: str, copy: RunDir) -> None:
    truth = ice.Run(copy.path).state
    for folder in (copy.path, copy.rank(0, 0).path):
        (folder / draft).write_bytes(b"half a f")
    assert read_all(copy).state == truth
