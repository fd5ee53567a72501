"""What a run's ranks wrote and where they are: logs, metrics and stacks."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

from icelaunch_nb.rundir import metrics, source_locations, stacks
from icelaunch_nb.rundir.journal_events import AttemptStarted
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import RunState


def read_log(
    run_dir: RunDir, attempts: Sequence[AttemptStarted], rank: int, stream: str, attempt: int
) -> str:
    """A rank's log, as `Run.logs` returns it.

    Args:
        run_dir: The run directory.
        attempts: The attempts so far.
        rank: Global rank.
        stream: ``"stdout"`` or ``"stderr"``.
        attempt: Index in `attempts`; negative ones count from the newest.

    Raises:
        ValueError: There is no such rank, stream or attempt.
    """
    if stream not in ("stdout", "stderr"):
        raise ValueError(f"stream={stream!r}: must be 'stdout' or 'stderr'")
    if not attempts:
        return ""
    try:
        found = attempts[attempt]
        entry = None if isinstance(rank, bool) else found.entry(rank)
    except (IndexError, TypeError):
        raise ValueError(f"attempt={attempt!r}: there were {len(attempts)}, from 0") from None
    if entry is None:
        ranks = ", ".join(str(one.rank) for one in found.ranks)
        raise ValueError(f"rank={rank!r}: this machine has {ranks}")
    folder = run_dir.rank(found.attempt, entry.local_rank, entry.node)
    try:
        with open(run_dir.open_log(getattr(folder, stream)), "rb") as file:
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def read_metrics(run_dir: RunDir, attempts: Sequence[AttemptStarted]) -> Any:
    """The metrics of all ranks, as `Run.metrics` returns them."""
    rows = metrics.read(
        (
            (attempt.attempt, run_dir.rank(attempt.attempt, one.local_rank, one.node).metrics)
            for attempt in attempts
            for one in attempt.ranks
        ),
        run_dir.open_log,
    )
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        return rows
    return pandas.DataFrame(rows, columns=None if rows else list(metrics.COLUMNS))


def get_stacks(
    run_dir: RunDir, run_state: RunState, *, program: bool, timeout: float
) -> stacks.Stacks:
    """Returns the stacks of all ranks, as `Run.stacks` does. A run that is over has none.

    Args:
        run_dir: The run directory.
        run_state: The run's state.
        program: Whether the ranks run another program, which doesn't answer the signal.
        timeout: Seconds to wait at most for ranks that are slow to answer.
    """
    if run_state.state.over or not run_state.attempts:
        return stacks.Stacks({})
    newest = run_state.attempts[-1]
    deadline, names = time.monotonic() + timeout, source_locations.cell_names(run_dir)
    texts = stacks.collect(run_dir, newest.attempt, newest.ranks, timeout)
    found = stacks.Stacks(
        {rank: stacks.readable(text, names) for rank, text in texts.items()}, program=program
    )
    pids = stacks.known_pids(run_dir, newest.attempt, newest.ranks)
    # One rank of each group with equal stacks: py-spy takes half a second of a core for a rank.
    spied = stacks.dump_native(
        {rank: pids[rank] for rank in found.representatives if rank in pids},
        deadline - time.monotonic(),
    )
    return found.with_native({rank: stacks.readable(text, names) for rank, text in spied.items()})
