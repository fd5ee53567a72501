"""What a panel costs the ranks that it shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ranks_are_not_slowed_by_their_panel() -> None:
    """One of three measurements must be good. A busy machine may spoil the others."""
    command = [sys.executable, "-m", "benchmarks.watching", "--pairs", "3", "--lines", "100000"]
    outputs = []
    for _ in range(3):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            return
        outputs.append(done.stdout + done.stderr)
    pytest.fail("\n".join(outputs))
