"""A process that a rank's code forks is no rank.

Its end is printed on stderr, as that of any script's child is.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import icelaunch_nb as ice


class Marker(Exception):
    pass


def fork_and(how: str) -> Any:
    """Goes on in the child as `how` says; the child's exit code in the rank."""
    with warnings.catch_warnings():
        # Since Python 3.12 a fork beside threads warns, and an import of torch starts some.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if how == "raise":
        try:
            {}["key"]
        except KeyError as error:
            raise Marker("of the child") from error
    if how == "exit 3":
        sys.exit(3)
    if how == "exit text":
        sys.exit("text of the child")
    if how == "hook":
        sys.excepthook = lambda kind, error, trace: (
            os.write(2, f"hooked {error} {trace.tb_frame.f_code.co_name}\n".encode()) and None
        )
        raise Marker("for a hook")
    return "the child's"


def test_what_a_forked_child_does_is_not_the_ranks(runs: Path) -> None:
    def forks() -> Any:
        codes = []
        for how in ("raise", "exit 3", "exit text", "hook"):
            codes.append(fork_and(how))
        value = fork_and("return")
        if value == "the child's":
            return value
        time.sleep(0)
        return [*codes, value]

    run = ice.launch(forks, devices="cpu", post_mortem=True)
    assert run.result(30) == {0: [1, 3, 1, 1, 0]}
    assert run.state == "SUCCEEDED" and not run.in_debugger
    folder = Path(run.log_dir, "attempt_0", "0")
    assert not (folder / "error.json").exists() and not (folder / "error.pkl").exists()
    stderr = run.logs(0, stream="stderr")
    first, _, rest = stderr.partition("Marker: of the child\n")
    assert (
        first.startswith("Traceback (most recent call last):")
        and "KeyError: 'key'" in first
        and "direct cause" in first
    )
    assert 'raise Marker("of the child") from error' in first and "in forks" in first
    assert rest == "text of the child\nhooked for a hook forks\n"
    assert "icelaunch_nb/" not in stderr and "multiprocessing" not in stderr


def test_a_child_may_fail_after_its_rank_and_be_restarted_with_it() -> None:
    def leaves_a_child() -> int:
        attempt = ice.get_context().restart_count
        if os.fork() == 0:
            raise Marker(f"child of attempt {attempt}")
        os.wait()
        if not attempt:
            raise RuntimeError("the rank's own")
        return attempt

    run = ice.launch(leaves_a_child, devices="cpu", max_restarts=1)
    assert run.result(30) == {0: 1}
    assert [restart.cause for restart in run._run_state.restarts] == [
        "RuntimeError: the rank's own"
    ]
    assert "Marker: child of attempt 0" in run.logs(0, stream="stderr", attempt=0)


def test_a_rank_is_multiprocessings_main_process() -> None:
    def names() -> list[Any]:
        process = multiprocessing.current_process()
        child = multiprocessing.get_context("fork").Process(target=print, args=("from a child",))
        child.start()
        child.join()
        return [
            process.name,
            multiprocessing.parent_process(),
            child.name,
            child.exitcode,
            process.daemon,
            process.is_alive(),
        ]

    run = ice.launch(names, devices="cpu")
    assert run.result(30) == {0: ["MainProcess", None, "ForkProcess-1", 0, False, True]}
    assert run.logs(0) == "from a child\n"
