"""Temporary directories, homes and working directories as clusters and containers have them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import icelaunch_nb as ice

NOBODY = 61234  # a user without an entry in any database
as_nobody = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become somebody else"
)


def temporary_directories() -> tuple[str | None, str, dict[str, int]]:
    with multiprocessing.Manager() as manager:  # a socket of the rank's own
        shared = manager.dict(rank=ice.get_context().rank)
        return os.environ.get("TMPDIR"), tempfile.gettempdir(), dict(shared)


@pytest.mark.parametrize("kind", ["long", "missing", "unwritable"])
def test_a_launch_works_whatever_tmpdir_is_and_ranks_keep_it(
    kind: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {
        "long": runs / ("long" * 40),
        "missing": runs / "missing",
        "unwritable": Path("/proc"),
    }[kind]
    if kind == "long":
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)  # as in a process that was started with it
    usual = tempfile.gettempdir()
    monkeypatch.setattr(
        "icelaunch_nb.system.userdirs._SHARED", ("/tmp",) if kind == "long" else (str(runs),)
    )
    if kind != "long":
        monkeypatch.setattr(tempfile, "tempdir", str(folder))  # it has gone since Python chose it
    run = ice.launch(temporary_directories, nproc_per_node=2)
    assert run.result(60) == {rank: (str(folder), usual, {"rank": rank}) for rank in (0, 1)}
    assert Path(run.log_dir).parent.parent == (folder if kind == "long" else runs)
    assert run.log_dir in [found.log_dir for found in ice.runs()]


@pytest.fixture
def nobodys() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    for path in (folder, f"/tmp/icelaunch_nb-{NOBODY}"):
        shutil.rmtree(path, ignore_errors=True)


WITHOUT_A_HOME = """
import os, subprocess, sys
import icelaunch_nb as ice
assert not os.access(os.path.expanduser("~"), os.W_OK)

def wait():
    return ice.get_context().events.resume.wait(60)

def elsewhere(code):
    environ = {name: value for name, value in os.environ.items() if name not in ("HOME", "TMPDIR")}
    code = "import icelaunch_nb as ice\\n" + code
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)

for log_dir in (None, os.path.join(os.getcwd(), "logs")):
    run = ice.launch(wait, nproc_per_node=1, devices="cpu", log_dir=log_dir, run_id=f"in {log_dir}")
    assert run.log_dir in [found.log_dir for found in ice.runs()], "what lives is found"
    elsewhere(f"run = ice.attach({run.run_id!r}) if {log_dir!r} else ice.attach()\\nrun.resume()")
    assert run.result(60) == {0: True}
assert len(ice.runs()) == 2, ice.runs()
try:
    import ipywidgets
except RuntimeError:
    pass  # parso, which older IPythons import at once, insists on a home
else:
    ice.LaunchPanel()
del run
assert len(ice.runs().clean(keep=0)) == 2 and not ice.runs()
"""


@as_nobody
@pytest.mark.parametrize("home", ["/", None])
def test_runs_of_a_user_without_a_home_are_found_by_their_other_processes(
    home: str | None, nobodys: Path
) -> None:
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XDG_STATE_HOME", "HOME", "TMPDIR", "USER", "LOGNAME")
    }
    reading = "+dac_read_search"  # the interpreter may lie in root's home
    subprocess.run(
        [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "--inh-caps",
            reading,
            "--ambient-caps",
            reading,
            sys.executable,
            "-c",
            WITHOUT_A_HOME,
        ],
        env=environ | ({"HOME": home} if home else {}),
        cwd=nobodys,
        check=True,
        timeout=100,
    )
