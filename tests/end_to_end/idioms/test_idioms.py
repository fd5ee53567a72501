"""What people write in notebooks does in ranks what a plain script does under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from idioms import UNCHECKED, Idiom, agrees, expected, read  # noqa: E402

IDIOMS = read()

# Runs in the kernel, once: the outcome of a call, as literals.
OUTCOME = """
def outcome_of(call):
    try:
        return "returns", call()
    except Exception as error:
        return "raises", f"{type(error).__name__}: {error}"

def outcomes_of_ranks(run):
    try:
        return {rank: ("returns", value) for rank, value in run.result(45).items()}
    except TimeoutError as error:
        run.kill()
        run.wait()
        return {0: ("hangs", f"{error}")}
    except ice.RunFailed as failed:
        cause = failed.__cause__
        outcome = "raises", f"{type(cause).__name__}: {cause}"
        return {failure.rank: outcome for failure in failed.failures[:1]}
"""


@pytest.fixture(scope="module")
def notebook(kernel: Any) -> Any:
    kernel.does(OUTCOME)
    return kernel


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.id)
def test_an_idiom_has_its_outcome_in_ranks_and_kernel(notebook: Any, idiom: Idiom) -> None:
    try:
        notebook.does(idiom.code)
        found = notebook.value(
            f"outcomes_of_ranks(ice.launch(work, nproc_per_node={idiom.ranks}, devices='cpu'))"
        )
        assert found
        for rank, outcome in found.items():
            wanted = idiom.in_rank(rank)
            assert agrees(outcome, wanted), (
                f"rank {rank} {outcome[0]} {outcome[1]!r}, and not {wanted[1]!r}"
            )
        if idiom.kernel != UNCHECKED:
            outcome, wanted = notebook.value("outcome_of(work)"), expected(idiom.kernel)
            assert agrees(outcome, wanted), (
                f"the kernel {outcome[0]} {outcome[1]!r}, and not {wanted[1]!r}"
            )
    finally:
        if idiom.then:
            notebook.does(idiom.then)


def test_there_are_at_least_120_idioms_of_different_names() -> None:
    assert len(IDIOMS) >= 120
    assert len({idiom.id for idiom in IDIOMS}) == len(IDIOMS)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_same_under_torchrun(tmp_path: Path) -> None:
    """A rank of torchrun forks itself for each idiom, so each begins as a fresh script."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(HERE / "as_script.py"),
            str(tmp_path),
        ],
        cwd=tmp_path,
        env={
            **environ,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), environ.get("PYTHONPATH")])),
        },
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    wrong = []
    for rank in (0, 1):
        found = json.loads((tmp_path / f"outcomes-{rank}.json").read_text())
        for idiom in IDIOMS:
            if rank < idiom.ranks and agrees(
                tuple(found[idiom.id]), _jsonable(idiom.in_rank(rank))
            ) == bool(idiom.differs):
                wrong.append(f"{idiom.id}: rank {rank} {found[idiom.id]}")
    assert not wrong, "\n".join(wrong)


def _jsonable(outcome: tuple[str, Any]) -> tuple[str, Any]:
    return outcome[0], json.loads(json.dumps(outcome[1]))
