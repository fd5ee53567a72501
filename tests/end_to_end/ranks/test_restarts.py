"""Ranks are restarted as often as allowed, counted right, and not where it can't help."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jobs
import pytest

import icelaunch_nb as ice


def events(run: ice.Run, kind: str) -> list[dict]:
    lines = (Path(run.log_dir) / "journal.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_restart_is_counted_in_every_rank_and_written_down() -> None:
    run = ice.launch(jobs.fail_until, (2, 1), nproc_per_node=2, max_restarts=3)
    assert run.result(60) == {0: 2, 1: 2}
    assert (run.restarts, run.attempt, run.state) == (2, 2, "SUCCEEDED")
    for attempt in range(3):
        for rank in (0, 1):
            assert run.logs(rank, attempt=attempt) == f"attempt {attempt} env {attempt}\n"
    restarts = events(run, "restart")
    assert [(e["attempt"], e["rank"], e["cause"]) for e in restarts] == [
        (1, 1, "RuntimeError: not yet in attempt 0"),
        (2, 1, "RuntimeError: not yet in attempt 1"),
    ]
    assert all(e["t"] >= e["failed_at"] for e in restarts)


def test_when_no_restart_is_left_the_last_failure_is_raised() -> None:
    run = ice.launch(jobs.fail_until, (9, 0), nproc_per_node=2, max_restarts=2)
    with pytest.raises(ice.RunFailed, match="in attempt 2") as caught:
        run.result(60)
    assert str(caught.value).endswith("RuntimeError: not yet in attempt 2")
    assert run.restarts == 2


@pytest.mark.parametrize("error", ["NameError", "ImportError", "SyntaxError"])
def test_launch_doesnt_retry_what_a_retry_cant_cure(error: str) -> None:
    def wrong() -> None:
        if error == "NameError":
            undefined_name  # noqa: B018, F821
        if error == "ImportError":
            from os import nothing_of_the_kind  # noqa: F401
        compile("a b", "x", "exec")

    run = ice.launch(wrong, nproc_per_node=2, max_restarts=3)
    with pytest.raises(ice.RunFailed, match="not retried: a retry can't cure this"):
        run.result(60)
    assert run.restarts == 0


def test_launch_agent_retries_whatever_it_was_as_elastic_does(runs: Path) -> None:
    def wrong() -> None:
        undefined_name  # noqa: B018, F821

    config = ice.LaunchConfig(1, 1, 1, start_method="forkserver", max_restarts=2)
    with pytest.raises(ice.RunFailed, match="in attempt 2"):
        ice.launch_agent(config, wrong, [])


def test_after_a_crash_the_next_attempt_does_not_wait_for_the_monitor_interval() -> None:
    def crash_once() -> float:
        import os
        import time

        print(time.time(), flush=True)
        if ice.get_context().restart_count == 0:
            os._exit(3)
        return time.time()

    run = ice.launch(crash_once, nproc_per_node=2, max_restarts=1, monitor_interval=100)
    again = min(run.result(60).values())
    # One of the ranks may have been ended before it printed.
    crashed = max(
        float(text) for rank in (0, 1) for text in re.findall(r"[\d.]+", run.logs(rank, attempt=0))
    )
    assert again - crashed < 50


@pytest.mark.skipif(sys.platform != "linux", reason="start times count from the machine's start")
def test_the_next_attempts_ranks_are_started_ahead(tmp_path: Path) -> None:
    """The forkserver has eight children before the failure.

    They are this agent and its two ranks, the next agent and its two, and two for the next attempt.
    """

    def crash_once() -> None:
        import os
        import time

        import psutil

        if ice.get_context().restart_count == 0:
            while len(psutil.Process(os.getppid()).children()) < 8:
                time.sleep(0.01)
            (tmp_path / "crashed").write_text(str(time.clock_gettime(time.CLOCK_BOOTTIME)))
            raise RuntimeError("once")

    ice.launch(print, nproc_per_node=2).result(60)  # the next launch will probably want two ranks
    run = ice.launch(crash_once, nproc_per_node=2, max_restarts=1)
    run.result(60)
    attempts = events(run, "attempt")
    assert len(attempts) == 2
    assert all(
        rank["started"] < float((tmp_path / "crashed").read_text()) for rank in attempts[1]["ranks"]
    )
