"""Every process is killed in every way: `python tests/kill_matrix.py` prints the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MATRIX = Path(__file__).parent.parent / "kill_matrix.py"


def check(ipykernel: str, *options: str) -> None:
    """Runs the matrix, which fails where a cell is not as promised."""
    command = [sys.executable, MATRIX, "--ipykernel", ipykernel, *options]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_cell_of_each_kind_is_as_promised(request):
    check(request.config.getoption("ipykernel"), "--one-of-each")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_cell_is_as_promised(request):
    check(request.config.getoption("ipykernel"))
