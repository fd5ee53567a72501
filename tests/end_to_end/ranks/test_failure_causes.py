"""The cause of a rank's failure is known, whatever its code did to the process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import icelaunch_nb as ice

NOBODY = 12345
held = []


def use_up_descriptors() -> None:
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass


def lower(*names: str) -> None:
    for name in names:
        limit = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(limit, (0, 0))


def lower_softly() -> None:
    for name in ("FSIZE", "NOFILE", "AS"):
        limit = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(limit, (0, resource.getrlimit(limit)[1]))


def change_root() -> None:
    os.chroot(tempfile.mkdtemp())
    os.chdir("/")


def become_nobody() -> None:
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def give_all_up() -> None:
    os.umask(0o777)
    if os.geteuid() == 0:
        change_root()
        become_nobody()
    lower("FSIZE", "NOFILE")


def vanish() -> None:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")


@pytest.mark.parametrize(
    ("do", "returns"),
    [
        (use_up_descriptors, True),
        (lower_softly, True),
        (lambda: os.umask(0o777), True),
        (vanish, True),
        (lambda: sys.setrecursionlimit(30), True),
        (lambda: os.closerange(0, 4096), True),
        (lambda: lower("FSIZE"), "File too large"),
        (lambda: lower("NOFILE"), "Too many open files"),
        pytest.param(change_root, "No such file or directory", marks=as_root),
        pytest.param(become_nobody, "Permission denied", marks=as_root),
        (give_all_up, ""),
    ],
    ids=[
        "descriptors",
        "soft limits",
        "umask",
        "cwd",
        "recursion",
        "closed",
        "RLIMIT_FSIZE",
        "RLIMIT_NOFILE",
        "chroot",
        "setuid",
        "all",
    ],
)
def test_the_cause_is_known_and_a_result_arrives_or_the_error_says_why_not(
    do: Callable[[], None], returns: bool | str, runs: Path
) -> None:
    def work(raises: bool) -> int:
        do()
        if raises:
            raise ValueError("the cause")
        return 7

    run = ice.launch(work, (True,), devices="cpu")
    with pytest.raises(ice.RunFailed) as caught:
        run.result(30)
    assert (caught.value.failures[0].kind, caught.value.failures[0].type_name) == (
        "raised",
        "ValueError",
    )
    assert str(caught.value).endswith("ValueError: the cause") and "in work" in str(caught.value)
    folder = Path(run.log_dir, "attempt_0", "0")
    assert (folder / "error.json").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in folder.iterdir()} - {"error.pkl"} == {
        "error.json",
        "stacks.txt",
        "stdout.log",
        "stderr.log",
    }
    run = ice.launch(work, (False,), devices="cpu")
    if returns is True:
        assert run.result(30) == {0: 7}
        assert not Path(run.log_dir, "attempt_0", "0", "error.reserve").exists()
    else:
        with pytest.raises(ice.RunFailed, match=f"rank 0's result can't be written: {returns}"):
            run.result(30)


def test_limits_that_the_launching_process_has_lose_no_cause(runs: Path) -> None:
    """A rank inherits the limits, so they apply before its first line."""
    script = runs / "script.py"
    script.write_text("""
import resource, icelaunch_nb as ice
def work(): raise ValueError("the cause")
warm = ice.launch(int, devices="cpu").result(60)
run = ice.launch(int, devices="cpu")
run.result(60)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try: ice.launch(lambda: work() or bytes(10), devices="cpu").result(60)
except ice.RunFailed as error: print(str(error).splitlines()[-1])
try: ice.launch(lambda: bytes(300_000), devices="cpu").result(60)
except ice.RunFailed as error: print(str(error).splitlines()[-1])
""")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=runs,
    )
    assert done.stdout.splitlines()[-2:] == [
        "ValueError: the cause",
        "OSError: [Errno 27] rank 0's result can't be written: File too large",
    ], done


def test_the_reserve_of_a_killed_rank_is_removed() -> None:
    run = ice.launch(os.kill, (0, 9), devices="cpu")
    run.wait(30)
    assert run.failures[0].title == "killed by SIGKILL"
    assert list(Path(run.log_dir).rglob("error.reserve")) == []


@pytest.mark.parametrize(("limit", "signal"), [("CPU", "SIGXCPU")])
def test_a_limit_that_kills_is_named(limit: str, signal: str) -> None:
    def burn() -> None:
        number = getattr(resource, f"RLIMIT_{limit}")
        resource.setrlimit(number, (1, resource.getrlimit(number)[1]))
        while True:
            pass

    run = ice.launch(burn, devices="cpu")
    run.wait(60)
    assert (
        run.failures[0].title == f"killed by {signal}" and f"RLIMIT_{limit}" in run.failures[0].hint
    )
