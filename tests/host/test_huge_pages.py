"""Huge pages for the memory that a forkserver shares with its children."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os
from icelaunch_nb.host import huge_pages

def huge():
    with open("/proc/self/smaps") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:"))

things = [str(number) * 20 for number in range(200_000)]
before = huge() if os.path.exists("/proc/self/smaps") else 0
huge_pages.collapse()
assert things == [str(number) * 20 for number in range(200_000)]
if os.path.exists("/proc/self/smaps"):
    print(huge() >= before)
else:
    print(True)
"""


def test_memory_keeps_its_content_and_is_in_huge_pages_where_there_are_some():
    assert subprocess.check_output([sys.executable, "-c", CODE], text=True, timeout=60) == "True\n"
