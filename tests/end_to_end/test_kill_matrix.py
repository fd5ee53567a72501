"""The whole kill matrix; `python tests/kill_matrix.py` prints its table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MATRIX = Path(__file__).parent.parent / "kill_matrix.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_cell_is_as_promised(request):
    command = [sys.executable, MATRIX, "--ipykernel", request.config.getoption("ipykernel")]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
