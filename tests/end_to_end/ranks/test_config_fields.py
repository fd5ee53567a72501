"""Every field of LaunchConfig does what its documentation says."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jobs
import pytest

import icelaunch_nb as ice

FAST = {"start_method": "forkserver", "max_restarts": 0}


def only_run(base: Path) -> Path:
    (journal,) = base.rglob("journal.jsonl")
    return journal.parent


@pytest.mark.parametrize("start_method", ["forkserver", "spawn", "fork"])
def test_every_start_method_runs_collectives(start_method: str) -> None:
    # The end waits for no interval: this one is longer than the test may take.
    config = ice.LaunchConfig(
        1, 1, 2, start_method=start_method, max_restarts=0, monitor_interval=1000
    )
    assert ice.launch_agent(config, jobs.all_reduce, []) == {0: 1.0, 1: 1.0}


@pytest.mark.parametrize(
    ("fields", "out", "err"),
    [
        ({}, {0, 1}, {0, 1}),
        ({"redirects": "3"}, set(), set()),
        ({"redirects": 1}, set(), {0, 1}),
        ({"redirects": ice.Std.ALL, "tee": {1: 3}}, {1}, {1}),
        ({"redirects": "0:3,1:1", "tee": "0:2"}, set(), {0, 1}),
        ({"tee": "3"}, {0, 1}, {0, 1}),
    ],
)
def test_every_stream_is_on_disk_and_the_right_ones_are_shown(
    fields: dict, out: set[int], err: set[int], runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ice.launch_agent(ice.LaunchConfig(1, 1, 2, **FAST, **fields), jobs.speak, ["hi"])
    shown = capfd.readouterr()
    for rank in (0, 1):
        folder = only_run(runs) / "attempt_0" / str(rank)
        on_disk = (folder / "stdout.log").read_text().splitlines()
        assert sorted(on_disk) == ["child hi", "print hi", "printf hi", "write hi"]
        assert (folder / "stderr.log").read_text() == "error hi\n"
        prefix = f"[default_role{rank}]:"
        assert [line for line in shown.out.splitlines() if line.startswith(prefix)] == [
            prefix + line for line in on_disk
        ] * (rank in out)
        assert [line for line in shown.err.splitlines() if line.startswith(prefix)] == [
            prefix + "error hi"
        ] * (rank in err)


def test_a_printed_line_is_on_disk_at_once(runs: Path) -> None:
    def print_and_wait() -> None:
        print("now")
        print("partial", end="")
        ice.get_context().events.resume.wait(30)

    run = ice.launch(print_and_wait)
    deadline = time.monotonic() + 20
    while run.logs(0) != "now\npartial" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run.logs(0) == "now\npartial"
    assert run.state == "RUNNING"
    run.resume()
    assert run.wait(20)


def test_log_dir_holds_a_folder_per_run(runs: Path) -> None:
    base = runs / "my logs'\"\n"
    for _ in range(2):
        ice.launch_agent(
            ice.LaunchConfig(1, 1, 1, run_id="../évil id", log_dir=str(base), **FAST),
            jobs.speak,
            ["x"],
        )
    folders = sorted(path for path in base.iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o700
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {"stdout.log", "stderr.log", "journal.jsonl", "agent.log"} <= {
            path.name for path in files
        }
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert not {"call.pkl", "disk.reserve"} & set(os.listdir(folder)), (
            "only a living run needs them"
        )


def test_run_id_and_role_reach_the_ranks(capfd: pytest.CaptureFixture[str]) -> None:
    config = ice.LaunchConfig(1, 1, 1, run_id="run 7", role="tr ainer", **FAST)
    me = ice.launch_agent(config, jobs.everything_of_me, [])[0]
    assert (me["run_id"], me["role"]) == ("run 7", "tr ainer")
    ice.launch_agent(config, jobs.speak, ["x"])
    assert "[tr ainer0]:print x" in capfd.readouterr().out


def test_an_empty_run_id_gets_a_generated_one() -> None:
    config = ice.LaunchConfig(1, 1, 1, **FAST)
    ids = {ice.launch_agent(config, jobs.everything_of_me, [])[0]["run_id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(ids)


def test_metrics_reach_torch_elastics_metrics(runs: Path) -> None:
    ice.launch_agent(
        ice.LaunchConfig(1, 1, 1, metrics_cfg={"handler": "console"}, **FAST), jobs.speak, ["x"]
    )
    assert (
        "workers.default_role.run_success_no_retries=1"
        in (only_run(runs) / "agent.log").read_text()
    )


@pytest.mark.parametrize("backend", ["c10d", "static"])
def test_one_node_with_an_endpoint_uses_torchs_own_rendezvous(
    backend: str, free_port: int, runs: Path
) -> None:
    config = ice.LaunchConfig(
        1, 1, 2, rdzv_backend=backend, rdzv_endpoint=f"localhost:{free_port}", **FAST
    )
    assert ice.launch_agent(config, jobs.all_reduce, []) == {0: 1.0, 1: 1.0}


@pytest.mark.parametrize("backend", ["", "static", "c10d"])
def test_restarts_work_with_late_ranks(backend: str, free_port: int) -> None:
    """After a restart gloo must not reach for the ports of dead ranks (pytorch#135712)."""

    def late() -> int:
        if ice.get_context().rank == 0 and ice.get_context().restart_count:
            time.sleep(0.7)
        return jobs.fail_until(1, culprit=1)

    fields = {"rdzv_backend": backend, "rdzv_endpoint": f"localhost:{free_port}"} if backend else {}
    config = ice.LaunchConfig(1, 1, 2, start_method="forkserver", max_restarts=1, **fields)
    assert ice.launch_agent(config, late, []) == {0: 1, 1: 1}


def test_a_rendezvous_that_nobody_joins_ends_after_its_timeout(free_port: int) -> None:
    config = ice.LaunchConfig(
        2, 2, 1, rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{free_port}", rdzv_timeout=2, **FAST
    )
    with pytest.raises(
        ice.RunFailed,
        match=r"rendezvous of 2 nodes at 127\.0\.0\.1:\d+ \(c10d, timeout 2 s\) failed",
    ):
        ice.launch_agent(config, jobs.all_reduce, [])


def test_a_program_runs_with_its_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    values = ice.launch_agent(
        ice.LaunchConfig(1, 1, 2, **FAST), "echo", ["local rank", "${local_rank}"]
    )
    assert values == {0: None, 1: None}
    assert sorted(capfd.readouterr().out.splitlines()) == [
        "[default_role0]:local rank 0",
        "[default_role1]:local rank 1",
    ]


def test_a_script_runs_with_its_arguments(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = runs / "a script.py"
    script.write_text(
        "import os, sys\nprint(sys.argv[1:], os.environ['RANK'], os.environ['OMP_NUM_THREADS'])\n"
    )
    ice.launch_agent(ice.LaunchConfig(1, 1, 1, **FAST), str(script), ["--lr", 3])
    assert "[default_role0]:['--lr', '3'] 0" in capfd.readouterr().out


def test_the_last_stderr_of_a_failing_program_is_in_the_error() -> None:
    config = ice.LaunchConfig(1, 1, 2, **FAST, redirects=3)
    with pytest.raises(ice.RunFailed) as caught:
        ice.launch_agent(
            config,
            sys.executable,
            ["-c", "import sys; print('who knows', file=sys.stderr); sys.exit(7)"],
        )
    assert "exited with code 7" in str(caught.value)
    assert caught.value.failures[0].exitcode == 7
    assert "who knows" in str(caught.value)
