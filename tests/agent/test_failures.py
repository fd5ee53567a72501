"""Why a rank ended, from files and exit codes that real processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from icelaunch_nb.agent.failures import convert_reserve, make_failure, sort_by_cause
from icelaunch_nb.rundir.error_file import RankError, format_error, read_error
from icelaunch_nb.rundir.paths import RunDir

LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "


@pytest.fixture
def rank_dir(tmp_path):
    rank_dir = RunDir(tmp_path).rank(0, 1)
    rank_dir.path.mkdir(parents=True)
    return rank_dir


def run(rank_dir, code, cwd=None):
    """Runs code with its stderr in the rank's log. Returns the failure of that rank."""
    with open(rank_dir.stderr, "wb") as stderr:
        exitcode = subprocess.run(
            [sys.executable, "-c", LIMITED + code], stderr=stderr, cwd=cwd, check=False
        ).returncode
    return failure(rank_dir, exitcode)


def failure(rank_dir, exitcode, *, rank=3, ended=100.0, oom="", unwatched=False):
    return make_failure(rank, 1, 0, 4242, exitcode, ended, rank_dir, oom, unwatched)


def an_error(message, at):
    return RankError(kind="raised", type_name="ValueError", message=message, traceback="", time=at)


def test_an_exit_shows_its_code_and_the_last_lines_of_stderr(rank_dir):
    code = "import sys; [print('line', n, file=sys.stderr) for n in range(100)]; sys.exit(3)"
    found = run(rank_dir, code)
    assert (found.kind, found.exitcode) == ("exited", 3)
    assert found.type_name == "exited with code 3 before it returned"
    assert found.traceback.splitlines() == [
        "the last lines of its stderr:",
        *(f"line {number}" for number in range(88, 100)),
    ]
    rank_dir.result.write_bytes(b"")
    assert failure(rank_dir, 3).type_name == "exited with code 3 after it had returned"


def test_a_crash_shows_faulthandlers_report_and_its_likely_cause(rank_dir):
    code = (
        "import faulthandler as f, sys; print('before', file=sys.stderr); f.enable(); f._sigsegv()"
    )
    found = run(rank_dir, code)
    assert (found.kind, found.type_name) == ("killed", "killed by SIGSEGV")
    assert found.traceback.startswith("Fatal Python error: Segmentation fault")
    assert "before" not in found.traceback and "Extension modules" not in found.traceback
    assert "a crash in C or C++ code" in found.hint


def test_a_kill_is_explained_by_the_cgroup_where_that_counted_it(rank_dir):
    found = run(rank_dir, "import os; os.kill(os.getpid(), 9)")
    assert (found.kind, found.type_name) == ("killed", "killed by SIGKILL")
    assert found.hint == "likely cause: out of memory, or somebody's kill -9"
    explained = failure(rank_dir, -9, oom=": the cgroup's oom_kill count rose by 1")
    assert explained.hint.endswith("kill -9: the cgroup's oom_kill count rose by 1")


def test_a_rank_without_its_forkserver_has_no_exit_code(rank_dir):
    found = failure(rank_dir, 255, unwatched=True)
    assert (found.kind, found.exitcode) == ("killed", None)
    assert found.type_name == "the forkserver that watched it was killed"


def test_the_error_that_a_rank_reported_comes_before_all_else(rank_dir):
    rank_dir.error.write_bytes(format_error(an_error("too small", 50.0), ""))
    found = failure(rank_dir, -9, unwatched=True)
    assert (found.kind, found.type_name, found.message) == ("raised", "ValueError", "too small")
    assert found.time == 50.0


def test_a_file_that_hides_a_standard_module_is_named(rank_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random.py").write_text("")
    found = run(rank_dir, "import random; random.randint(1, 2)", cwd=tmp_path)
    assert found.hint.startswith(f"{os.path.abspath('random.py')} was imported in place of")
    (tmp_path / "random.py").rename(tmp_path / "mine.py")
    assert run(rank_dir, "import random; random.nothing", cwd=tmp_path).hint == ""


def test_what_only_follows_from_another_ranks_end_comes_last(rank_dir):
    found = []
    for rank, (message, at) in enumerate(
        [("Connection closed by peer [127.0.0.1]", 1.0), ("the cause", 3.0), ("earlier", 2.0)]
    ):
        rank_dir.error.write_bytes(format_error(an_error(message, at), ""))
        found.append(failure(rank_dir, 1, rank=rank))
    assert [failure.rank for failure in sort_by_cause(found)] == [2, 1, 0]
    assert [failure.consequence for failure in found] == [True, False, False]


def test_a_reserve_becomes_the_error_file_unless_there_is_one(rank_dir):
    data = format_error(an_error("the disk was full", time.time()), "")
    rank_dir.error_reserve.write_bytes(data + bytes(1000))
    convert_reserve(rank_dir)
    assert not rank_dir.error_reserve.exists() and rank_dir.error.read_bytes() == data
    rank_dir.error_reserve.write_bytes(format_error(an_error("later", time.time()), ""))
    convert_reserve(rank_dir)
    assert not rank_dir.error_reserve.exists()
    assert read_error(rank_dir).message == "the disk was full"


def test_an_unused_reserve_leaves_no_error_file(rank_dir):
    rank_dir.error_reserve.write_bytes(bytes(4096))
    convert_reserve(rank_dir)
    assert not rank_dir.error_reserve.exists() and not rank_dir.error.exists()
