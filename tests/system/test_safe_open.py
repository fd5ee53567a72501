"""Tests of `safe_open`: the kind, the owner and the directory of open files are checked."""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icelaunch_nb as ice
from icelaunch_nb.errors import IcelaunchError, SharedLogDirWarning, UntrustedFileError
from icelaunch_nb.events import Events
from icelaunch_nb.notebook.panel import summary
from icelaunch_nb.notebook.panel.log_search import search
from icelaunch_nb.notebook.panel.metric_bins import MetricBins
from icelaunch_nb.notebook.panel.view_model import ViewModel
from icelaunch_nb.pickling import packing
from icelaunch_nb.rundir import agent_requests, metrics
from icelaunch_nb.rundir.checkpoint import read_checkpoint
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal import JournalWriter, read_events
from icelaunch_nb.rundir.journal_events import (
    AgentStarted,
    AttemptStarted,
    Ended,
    RankEntry,
    TimelineEvent,
)
from icelaunch_nb.rundir.paths import RunDir, make_run_dir
from icelaunch_nb.rundir.source_locations import read_sources
from icelaunch_nb.rundir.spec import read_spec
from icelaunch_nb.rundir.step_board import steps_made
from icelaunch_nb.system import safe_open
from icelaunch_nb.system.safe_open import read_lines, writable_by_others

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
STRANGER = 12345
KINDS = ("FIFO", "socket", "directory", "symbolic link", "device")


def put(kind: str, path: Path, target: Path) -> None:
    """Creates something at `path` that is not a regular file."""
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            folder = os.open(path.parent, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
            os.close(folder)
    elif kind == "directory":
        path.mkdir()
    elif kind == "symbolic link":
        path.symlink_to(target)
    else:
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero, which never ends
        except PermissionError:
            pytest.skip("no device can be made here")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A run that has ended, with each of its files."""
    made = make_run_dir(str(tmp_path / "base"), "run")
    rank = made.rank(0, 0)
    rank.path.mkdir(parents=True)
    Board().move_to(made.board)
    made.write_json(made.spec, {"run_id": "run", "name": "f", "time": time.time(), "program": []})
    made.write_json(made.checkpoint, {"path": "/c", "time": 1.0, "rank": 0, "step": 3})
    made.write_json(made.sources, {"<cell>": {"name": "Cell In[1]", "source": "x = 1"}})
    for path in (rank.stdout, rank.stderr, rank.stacks):
        path.write_text("said\n")
    metrics.Metrics(rank.metrics).add(0, 0, {"loss": 1.0})
    packing.dump("the result", rank.result)
    with JournalWriter(made.journal) as journal:
        journal.write(AgentStarted(pid=os.getpid(), started=0.0))
        entry = RankEntry(rank=0, local_rank=0, pid=os.getpid(), started=0.0)
        journal.write(AttemptStarted(attempt=0, world_size=1, ranks=[entry]))
        journal.write(Ended(state="SUCCEEDED"))
    return made


def ways_to_read(run_dir: RunDir) -> dict[str, tuple[Path, object]]:
    """The files of a run, each with a reader that must neither hang nor read something else."""
    run, rank = ice.attach(run_dir.path), run_dir.rank(0, 0)
    run.state
    return {
        "spec": (run_dir.spec, lambda: read_spec(run_dir)),
        "checkpoint": (run_dir.checkpoint, lambda: read_checkpoint(run_dir)),
        "sources": (run_dir.sources, lambda: read_sources(run_dir)),
        "journal": (run_dir.journal, lambda: read_events(run_dir.journal, 0)),
        "board": (run_dir.board, lambda: Events.of_run(run_dir.path)),
        "steps": (run_dir.steps(0), lambda: steps_made(run_dir.steps(0), 1)),
        "stdout": (rank.stdout, run.logs),
        "stderr": (rank.stderr, lambda: run.logs(stream="stderr")),
        "live_state": (run_dir.board, lambda: ViewModel(run).live_state({}, {})),
        "summary": (rank.stdout, lambda: summary.text(run)),
        "metrics_of_panel": (
            rank.metrics,
            lambda: MetricBins(run_dir, run._run_state.attempts[0]).poll(),
        ),
        "search": (
            rank.stderr,
            lambda: search(run_dir, run._run_state.attempts[0], "secret").lines,
        ),
        "metrics": (rank.metrics, run.metrics),
        "result": (rank.result, run.result),
        "wait": (rank.stdout, run.wait),
        "attach": (run_dir.spec, lambda: ice.attach(run_dir.path)),
        "state": (run_dir.journal, lambda: ice.attach(run_dir.path).state),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "spec",
        "checkpoint",
        "sources",
        "journal",
        "board",
        "steps",
        "stdout",
        "stderr",
        "metrics",
        "result",
        "wait",
        "attach",
        "state",
        "live_state",
        "summary",
        "metrics_of_panel",
        "search",
    ],
)
def test_reading_a_non_file_neither_hangs_nor_reads_it(name, kind, run_dir, tmp_path):
    path, read = ways_to_read(run_dir)[name]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("secret")
    put(kind, path, elsewhere)
    try:
        found = read()
    except (OSError, ValueError, IcelaunchError) as error:
        assert "secret" not in str(error)
    else:
        assert "secret" not in str(found)


def test_error_names_the_kind_of_a_non_file(run_dir, tmp_path):
    for kind in KINDS[:4]:
        put(kind, run_dir.checkpoint, tmp_path / "nowhere")
        with pytest.raises(
            UntrustedFileError, match=f"checkpoint.json is a {kind} where a file must be"
        ):
            run_dir.open(run_dir.checkpoint)
        run_dir.checkpoint.rmdir() if kind == "directory" else run_dir.checkpoint.unlink()


def test_file_behind_a_linked_directory_is_not_read(run_dir, tmp_path):
    (tmp_path / "elsewhere" / "0").mkdir(parents=True)
    (tmp_path / "elsewhere" / "0" / "stdout.log").write_text("secret")
    run_dir.attempt(0).rename(tmp_path / "moved")
    run_dir.attempt(0).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link where a directory must be"):
        ice.attach(run_dir.path).logs()


@pytest.mark.parametrize("kind", ["file", "symbolic link"])
def test_request_is_not_written_into_a_regular_file(kind, run_dir, tmp_path):
    mine = tmp_path / "precious"
    mine.write_text("precious")
    run_dir.control.unlink()
    if kind == "file":
        mine.rename(run_dir.control)
        mine = run_dir.control
    else:
        run_dir.control.symlink_to(mine)
    assert not agent_requests.send(run_dir, agent_requests.Kill())
    run_dir.journal.write_text("")
    with pytest.raises(UntrustedFileError):
        ice.attach(run_dir.path).kill()
    assert mine.read_text() == "precious"


def test_attaching_creates_no_file_behind_a_link(run_dir, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run_dir.path / "watchers").symlink_to(tmp_path / "elsewhere")
    run = ice.attach(run_dir.path)
    assert run.state == "SUCCEEDED" and os.listdir(tmp_path / "elsewhere") == []


# Owners, and directories that are swapped.


@as_root
@pytest.mark.parametrize("name", ["spec", "journal", "sources", "board", "result"])
def test_file_of_another_user_is_not_read(name, run_dir):
    path, read = ways_to_read(run_dir)[name]
    os.chown(path, STRANGER, STRANGER)
    try:
        assert read() == {}
    except (ice.RunFailed, UntrustedFileError) as error:
        assert "belongs to user 12345" in str(error)


@as_root
def test_logs_and_metrics_of_a_rank_that_changed_its_user_are_read(run_dir):
    rank = run_dir.rank(0, 0)
    for path in (rank.stdout, rank.metrics):
        os.chown(path, STRANGER, STRANGER)
    run = ice.attach(run_dir.path)
    assert run.logs() == "said\n" and len(run.metrics()) == 1


class Planted:
    """Creates the directory `mark` when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)

    def __init__(self, mark: Path) -> None:
        self.mark = mark


def plant(run_dir: RunDir, at: Path, mark: Path, owner: int) -> None:
    """Creates a copy of a run's directory whose result is a `Planted`."""
    subprocess.run(["cp", "-a", run_dir.path, at], check=True)
    packing.dump(Planted(mark), RunDir(at).rank(0, 0).result)
    for path in (at, *at.rglob("*")):
        os.chown(path, owner, owner)


def test_replaced_run_directory_is_refused(run_dir, tmp_path):
    run = ice.attach(run_dir.path)
    assert run.state == "SUCCEEDED"
    plant(run_dir, tmp_path / "other", tmp_path / "trap", os.geteuid())
    run_dir.path.rename(tmp_path / "moved")
    (tmp_path / "other").rename(run_dir.path)
    with pytest.raises(ice.RunFailed, match="not the directory that it was"):
        run.result()
    with pytest.raises(UntrustedFileError, match="not the directory that it was"):
        run.logs()
    assert not (tmp_path / "trap").exists()


@as_root
def test_swapping_directories_while_a_result_is_read_unpickles_nothing_planted(run_dir, tmp_path):
    mark, other, spare = tmp_path / "trap", tmp_path / "other", tmp_path / "spare"
    plant(run_dir, other, mark, STRANGER)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for folder, theirs in (
                (run_dir.path, other),
                (run_dir.rank(0, 0).path, other / "attempt_0" / "0"),
            ):
                folder.rename(spare)
                theirs.rename(folder)
                folder.rename(theirs)
                spare.rename(folder)

    attacker = threading.Thread(target=swap)
    attacker.start()
    read = refused = 0
    try:
        for _ in range(1000):
            try:
                read += packing.load(run_dir.rank(0, 0).result, run_dir) == "the result"
            except IcelaunchError:  # it was the other's file, or none was there at that moment
                refused += 1
    finally:
        over.set()
        attacker.join()
    assert not mark.exists()
    assert read + refused == 1000


def test_log_dir_that_others_may_write_to_is_reported(tmp_path):
    tmp_path.chmod(0o755)
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    assert writable_by_others(base) == ""
    base.chmod(0o777)
    assert writable_by_others(base) == f"everybody may write to {base}, which has no sticky bit"
    base.chmod(0o1777)
    assert writable_by_others(base) == ""
    tmp_path.chmod(0o777)
    assert str(tmp_path) in writable_by_others(base)


@as_root
def test_log_dir_of_a_group_or_another_user_is_reported(tmp_path):
    tmp_path.chmod(0o775)
    assert writable_by_others(tmp_path) == ""  # a group of the owner's own
    os.chown(tmp_path, -1, STRANGER)
    assert "group 12345" in writable_by_others(tmp_path)
    tmp_path.chmod(0o755)
    os.chown(tmp_path, STRANGER, -1)
    assert "belongs to user 12345" in writable_by_others(tmp_path / "base")


def test_launch_warns_of_a_shared_log_dir_once(tmp_path):
    base = tmp_path / "open"
    base.mkdir()
    base.chmod(0o777)
    with pytest.warns(SharedLogDirWarning, match="no sticky bit") as caught:
        run = ice.launch(int, nproc_per_node=1, devices="cpu", log_dir=str(base))
    assert [warning.filename for warning in caught] == [__file__]
    assert run.result(60) == {0: 0}
    # Another warning would be an error.
    ice.launch(int, nproc_per_node=1, devices="cpu", log_dir=str(base)).result(60)


def test_inline_launch_warns_of_a_shared_log_dir(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.warns(SharedLogDirWarning, match="no sticky bit") as caught:
        ice.launch(int, inline=True, devices="cpu", log_dir=str(tmp_path / "runs"))
    assert [warning.filename for warning in caught] == [__file__]


# Lines.


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=12),
    st.binary(max_size=5),
    st.integers(0, 8),
)
def test_read_lines_yields_each_line_and_its_end(tmp_path_factory, lines, rest, longest):
    rest = rest.replace(b"\n", b"")
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + rest)
    fd = os.open(path, os.O_RDONLY)
    found = list(read_lines(fd, 0, longest))
    os.close(fd)
    whole = found if len(rest) <= longest else found[:-1]
    assert [line for line, _ in whole] == [line if len(line) <= longest else b"" for line in lines]
    ends = [sum(len(line) + 1 for line in lines[: number + 1]) for number in range(len(lines))]
    assert [end for _, end in whole] == ends
    assert len(rest) <= longest or found[-1] == (b"", path.stat().st_size)


def test_lines_across_chunks_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_open, "_CHUNK", 7)
    (tmp_path / "x").write_bytes(b"one\ntwotwotwotwo\n\nthree\nfo")
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    assert list(read_lines(fd, 0, 100)) == [
        (b"one", 4),
        (b"twotwotwotwo", 17),
        (b"", 18),
        (b"three", 24),
    ]
    assert list(read_lines(fd, 4, 5)) == [(b"", 17), (b"", 18), (b"three", 24)]
    os.close(fd)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("name", ["journal", "metrics", "spec", "checkpoint", "sources"])
def test_hole_of_a_gigabyte_is_not_read(name, run_dir):
    path, read = ways_to_read(run_dir)[name]
    with open(path, "ab") as file:
        file.truncate(1 << 30)
    before, memory = bytes_read(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = read()
    except (IcelaunchError, OSError):
        found = None
    assert bytes_read() - before < 16 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 64 << 10
    if name == "journal":
        assert [event.name for event in found[0]] == ["agent", "attempt", "end"], (
            "events before the hole are read"
        )
        JournalWriter(path).write(TimelineEvent(kind="x", text="after"))
        events, end = read_events(path, found[1])
        assert [event.name for event in events] == ["timeline"] and end == path.stat().st_size
