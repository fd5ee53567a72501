"""What a step of ``ctx.steps`` and a ``ctx.report`` cost: ``python -m benchmarks.steps``.

Each figure is the best of several rounds, less what an empty loop costs, in microseconds. The
bounds are 2 µs a step and 20 µs a report. The ranks of one machine share the board, so the figures
are also measured with two ranks that run at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import icelaunch_nb as ice

STEPS, ROUNDS = 200_000, 7


def best(loop: Callable[[], Iterable[object]], count: int = STEPS) -> float:
    """Returns the microseconds per item of a loop that does nothing, in its best round."""
    microseconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in loop():
            pass
        microseconds.append((time.perf_counter() - started) / count * 1e6)
    return min(microseconds)


def costs() -> dict[str, float]:
    """Measures in a rank; returns microseconds by what was measured."""
    ctx = ice.get_context()
    plain = best(lambda: range(STEPS))
    measured = {"a step": best(lambda: ctx.steps(range(STEPS))) - plain}
    for _ in ctx.steps(range(1)):
        measured["a step of an inner loop"] = best(lambda: ctx.steps(range(STEPS))) - plain
    started = time.perf_counter()
    for _ in range(10_000):
        ctx.should_checkpoint()
    measured["should_checkpoint()"] = (time.perf_counter() - started) / 10_000 * 1e6
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for step in range(5_000):
            ctx.report(loss=step / 7, lr=0.1)
        rounds.append((time.perf_counter() - started) / 5_000 * 1e6)
    measured["report(loss=…, lr=…)"] = min(rounds)
    return measured


def main() -> None:
    """Prints the table."""
    for ranks in (1, 2):
        results = ice.launch(costs, nproc_per_node=ranks).result()
        for name in results[0]:
            slowest = max(result[name] for result in results.values())
            print(f"{ranks} rank{'s' * (ranks > 1)}  {name:24} {slowest:6.2f} µs")


if __name__ == "__main__":
    main()
