"""A run's directory has the files of ARCHITECTURE.md, and they go when that says."""

from __future__ import annotations

import re
from pathlib import Path

from waiting import wait_for

import icelaunch_nb as ice

DOCUMENT = Path(__file__).parents[3] / "ARCHITECTURE.md"
# Children of a script's ranks run the script's own file.
OF_NOTEBOOKS = {
    "attempt_<k>/<local_rank>/child_main_<n>.py",
    "attempt_<k>/<local_rank>/child_main_<n>.pkl",
}
KINDS = {"<k>": r"\d+", "<local_rank>": r"\d+", "<n>": r"\d+", "<mark>": r"[\w.-]+"}


def everything() -> str:
    """Makes ranks write every file that they can write."""
    ctx = ice.get_context()
    for step in ctx.steps(range(3)):
        ctx.report(loss=step)
    if ctx.restart_count == 0:
        ctx.checkpoint_saved("checkpoint.pt")
        raise ValueError("the first attempt fails")
    if ctx.rank == 0:
        breakpoint()
    return "done"


def documented() -> dict[str, str]:
    """When each file goes, by its path in the document."""
    (table,) = re.findall(
        r"<!-- table: paths -->\n(.*?)<!-- end of table -->", DOCUMENT.read_text(), re.DOTALL
    )
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {path: end for paths, _, _, end in rows for path in re.findall(r"`([^`]+)`", paths)}


def seen(run: ice.Run) -> set[str]:
    """The files of a run, each by the document's path, or by its own if there is none."""
    patterns = {
        path: re.sub("|".join(KINDS), lambda kind: KINDS[kind[0]], path.replace(".", r"\."))
        for path in documented()
    }
    found = set()
    for path in Path(run.log_dir).rglob("*"):
        name = str(path.relative_to(run.log_dir))
        if not path.is_dir() and not path.name.startswith("."):  # a draft is about to get its name
            found.add(
                next(
                    (known for known, pattern in patterns.items() if re.fullmatch(pattern, name)),
                    name,
                )
            )
    return found


def test_every_file_of_a_run_is_documented_and_goes_when_that_says():
    run = ice.launch(everything, nproc_per_node=2, devices="cpu", max_restarts=1)
    wait_for(lambda: 0 in run._run_state.debugged and run._dir.rank(1, 1).result.exists(), 120)
    during = seen(run)
    run.stop()
    run.wait()
    after = seen(run)
    assert during | after == set(documented()) - OF_NOTEBOOKS
    assert {documented()[path] for path in after} == {"stays", "goes with the handle"}
