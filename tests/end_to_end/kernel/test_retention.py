"""A kernel that launches again and again keeps as many runs as the environment says.

Runs that live, or that somebody looks at, stay too.
"""

from __future__ import annotations

from typing import Any


def runs_on_disk(kernel: Any) -> list[str]:
    return sorted(
        path.name.partition("_")[0] for path in next(kernel.home.glob("icelaunch_nb-*")).iterdir()
    )


def test_old_runs_go_by_themselves(fresh_kernel: Any) -> None:
    fresh_kernel.does(
        "os.environ['ICELAUNCH_KEEP_RUNS'] = '3'\n"
        "kept = launch(lambda: 1, run_id='kept'); kept.result()"
    )
    fresh_kernel.does(
        "living = launch(lambda: ice.get_context().events.resume.wait(60), run_id='living')"
    )
    fresh_kernel.does("for n in range(6):\n    results(lambda: 1, run_id=f'run{n}')")
    fresh_kernel.until(
        lambda: runs_on_disk(fresh_kernel) == ["kept", "living", "run3", "run4", "run5"],
        "the old ones are gone",
    )
    fresh_kernel.does(
        "panel = ice.attach('run5').panel()\nfor n in range(6, 10):\n"
        "    results(lambda: 1, run_id=f'run{n}')"
    )
    fresh_kernel.until(
        lambda: runs_on_disk(fresh_kernel) == ["kept", "living", "run5", "run7", "run8", "run9"],
        "a panel holds its run",
    )
    fresh_kernel.does(
        "del kept; panel.close(); del panel; _ = None\nresults(lambda: 1, run_id='run10')\n"
        "living.resume(); living.result()"
    )
    assert (
        fresh_kernel.value(
            "kept_there = [run.run_id for run in ice.runs()]; 'living' in kept_there"
        )
        is True
    )


def test_a_log_dir_of_the_users_own_is_left_alone(fresh_kernel: Any) -> None:
    fresh_kernel.does(
        "os.environ['ICELAUNCH_KEEP_RUNS'] = '0'\nfor n in range(4):\n"
        "    results(lambda: 1, log_dir=HOME / 'logs')"
    )
    fresh_kernel.does("gone = launch(lambda: 1); gone.result(); gone = None")
    fresh_kernel.until(
        lambda: runs_on_disk(fresh_kernel) == [], "the one in the default place is gone"
    )
    assert len(list((fresh_kernel.home / "logs").iterdir())) == 4
