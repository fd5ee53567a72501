"""The kill matrix: every process of a run is killed in every way, at every moment of the run.

    python tests/kill_matrix.py [--victims host,agent] [--signals KILL] [--moments running]
                                [--at-once 4] [--ipykernel 6] [--one-of-each]

Each cell launches two ranks from a real kernel, waits for the moment, signals the victim, and
checks what is promised (tests/kill/promise.py):

- Within 5 s, the run goes on as its config says, or none of its processes is left. DataLoader
  workers and subprocesses count too.
- The journal's last line says who died and of what.
- What the ranks had written is on disk.
- The next launch in the same kernel works.

It prints a table, and below it what broke.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "kill"))

from cell import COLD, Broken, Cell
from kernel import Kernel
from promise import MOMENTS, SIGNALS, VICTIMS

Key = tuple[str, str, str]


class Matrix:
    """All cells, several at a time.

    Each thread has a kernel. It starts another one after a cell that killed or broke it.

    Args:
        cells: Victim, signal and moment of each cell.
        ipykernel: The folder of another ipykernel. None for the installed one.
    """

    def __init__(self, cells: list[Key], ipykernel: Path | None) -> None:
        self._waiting: queue.SimpleQueue[Key] = queue.SimpleQueue()
        self._ipykernel = ipykernel
        self.outcomes: dict[Key, str] = {}
        self.broken: dict[Key, str] = {}
        self._late: list[Key] = []
        for cell in cells:
            self._waiting.put(cell)

    def check(self, at_once: int) -> None:
        """Checks all cells, `at_once` at a time.

        It checks a cell that was late again, alone, so that other cells can't make it late.
        """
        threads = [threading.Thread(target=self._check_waiting) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        late, self._late = self._late, []
        for cell in late:
            print(f"once more, alone: {', '.join(cell)}: {self.broken.pop(cell)}", file=sys.stderr)
            self._waiting.put(cell)
            self._check_waiting()

    def _check_waiting(self) -> None:
        kernel: Kernel | None = None
        while True:
            try:
                key = self._waiting.get_nowait()
            except queue.Empty:
                break
            victim, _, moment = key
            cold = moment == "starting" and victim in COLD
            if kernel is not None and (cold or kernel.died):
                kernel.close()
                kernel = None
            try:
                kernel = kernel or Kernel(warm=not cold, python_path=self._ipykernel)
                self.outcomes[key] = Cell(kernel, *key).check()
            except Exception as error:
                if isinstance(error, Broken) and error.late:
                    self._late.append(key)
                self.outcomes[key], self.broken[key] = (
                    "**broken**",
                    f"{type(error).__name__}: {error}",
                )
                if kernel is not None:
                    kernel.died = True
            print(
                f"{', '.join(key)}: {self.broken.get(key, self.outcomes[key])}",
                file=sys.stderr,
                flush=True,
            )
        if kernel is not None:
            kernel.close()


@contextlib.contextmanager
def decoys() -> Iterator[list[bool]]:
    """Starts processes whose command lines look like ours; yields a list.

    At the end, the list gets for each of them whether it still lives.
    """
    command_lines = (
        ["-m", "icelaunch_nb.host", "3", "1"],
        ["--multiprocessing-fork", "tracker_fd=5", "pipe_handle=7"],
        ["rank 0"],
        ["agent"],
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", *arguments])
        for arguments in command_lines
    ]
    lived: list[bool] = []
    try:
        yield lived
        lived += [process.poll() is None for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, known in (("victims", VICTIMS), ("signals", SIGNALS), ("moments", MOMENTS)):
        parser.add_argument(
            f"--{name}",
            type=lambda text: text.split(","),
            default=list(known),
            help=", ".join(known),
        )
    parser.add_argument("--at-once", type=int, default=4, help="cells at a time (default: 4)")
    parser.add_argument(
        "--one-of-each",
        action="store_true",
        help="each victim by each signal at one moment, and each moment at least once",
    )
    parser.add_argument(
        "--ipykernel",
        choices=["6", "7"],
        default="7",
        help="the ipykernel that kernels run on; `make setup` installs both",
    )
    chosen = parser.parse_args()
    ipykernel = Path(sys.prefix) / "ipykernel6" if chosen.ipykernel == "6" else None
    began = time.monotonic()
    cells = [
        (victim, signum, moment)
        for moment in chosen.moments
        for victim in chosen.victims
        for signum in chosen.signals
    ]
    if chosen.one_of_each:
        pairs = [(victim, signum) for victim in chosen.victims for signum in chosen.signals]
        # Each round of the moments is shifted by one, so that a victim's signals differ in their
        # moments.
        cells = [
            (*pair, chosen.moments[(at + at // len(chosen.moments)) % len(chosen.moments)])
            for at, pair in enumerate(pairs)
        ]
    matrix = Matrix(
        sorted(cells, key=lambda cell: cell[2] == "starting" or cell[0] == "kernel"), ipykernel
    )
    with decoys() as lived:
        matrix.check(chosen.at_once)
    print(
        "| victim | signal | "
        + " | ".join(chosen.moments)
        + " |\n|"
        + "---|" * (len(chosen.moments) + 2)
    )
    for victim in chosen.victims:
        for signum in chosen.signals:
            print(
                f"| {victim} | {signum} | "
                + " | ".join(
                    matrix.outcomes.get((victim, signum, moment), "") for moment in chosen.moments
                )
                + " |"
            )
    print(f"\n{len(cells)} cells, {len(matrix.broken)} broken, {time.monotonic() - began:.0f} s")
    for key, what in matrix.broken.items():
        print(f"- {', '.join(key)}: {what}")
    print("no" if all(lived) else "**a**", "decoy was hurt")
    sys.exit(bool(matrix.broken) or not all(lived))


if __name__ == "__main__":
    main()
