"""A thousand bad days: launch after launch in one kernel, each with a fault.

All end as they must, and no process, thread, file or memory piles up.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    "days",
    [
        pytest.param(40, marks=pytest.mark.slow),
        pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
    ],
)
def test_every_bad_day_ends_well_and_nothing_piles_up(days: int, fresh_kernel: Any) -> None:
    seed = int(os.environ.get("BAD_DAYS_SEED", random.randrange(10**6)))
    print(f"BAD_DAYS_SEED={seed}")
    fresh_kernel.does(
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport bad_days, contextlib"
    )
    for name, reason in fresh_kernel.value(
        "[(day.__name__, why) for day in bad_days.DAYS if (why := bad_days.why_not(day))]"
    ):
        print(f"not run here: {name}: {reason}")
    fresh_kernel.does("""
bad_days.nobody_waits(None)
bad_days.the_agent_is_killed(None)
for _ in range(3):
    bad_days.nothing_happens(bad_days.random.Random(1))
""")
    fresh_kernel.does("print('x' * 10**7)")  # for large messages pyzmq starts a thread, once
    # The next agent starts as many ranks as the last launch had. So there are a host, a resource
    # tracker, a forkserver, an agent with its own resource tracker, and three ranks.
    fresh_kernel.does(
        "until(lambda: len(bad_days.resources()['children']) == 8); before = bad_days.resources()"
    )
    assert (
        fresh_kernel.run(f"wrong = bad_days.live({days}, {seed})\nwrong", timeout=3500).literal
        == []
    )
    fresh_kernel.does("bad_days.nothing_happens(bad_days.random.Random(1))")
    fresh_kernel.does("""
def settled():
    global left
    left = bad_days.more(bad_days.resources(), before)
    return not left
with contextlib.suppress(AssertionError):
    until(settled, 15)
""")
    print(*fresh_kernel.value("bad_days.tree()"), sep="\n")
    assert fresh_kernel.value("{kind: dict(names) for kind, names in left.items()}") == {}
