"""``python -m benchmarks``: measures, prints the table, and writes it to ``--out``."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.session import Session
from benchmarks.table import render


def main() -> None:
    """Reads the options and runs one session."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="icelaunch_nb beside its peers, side by side."
    )
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions: to see that it works, not to quote"
    )
    parser.add_argument(
        "--repetitions", type=int, default=10, help="launches per figure and contender (10)"
    )
    parser.add_argument(
        "--cold-repetitions",
        type=int,
        default=3,
        help="of torchrunx, which takes seconds per launch (3)",
    )
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as scratch:
        session = Session(
            Path(scratch),
            repetitions=3 if options.quick else options.repetitions,
            cold_repetitions=1 if options.quick else options.cold_repetitions,
        )
        rows = session.run()
    table = render(
        rows,
        load_before=load_before,
        load_after=os.getloadavg()[0],
        launches_without_torch=session.launches_without_torch,
    )
    if options.out:
        options.out.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
