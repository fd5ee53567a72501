"""A run on one node needs no network: no DNS, and it listens on loopback alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

CODE = """
import jobs, json, socket
import icelaunch_nb as ice
values = ice.launch(jobs.listeners, nproc_per_node=2, log_dir="{log_dir}").result(100)
print(json.dumps(sorted(set(sum(values.values(), [])))))
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"),
    reason="needs root, unshare and ip for a network namespace",
)
def test_a_run_works_without_dns_and_listens_on_loopback_alone(runs: Path) -> None:
    """In a namespace with loopback and one more address, and a host name that can't be resolved."""
    inside = (
        "ip link set lo up; ip link add d0 type veth peer name d1; "
        "ip addr add 10.99.0.1/24 dev d0; ip link set d0 up; "
        'hostname no-such-name-anywhere; exec "$@"'
    )
    done = subprocess.run(
        [
            "unshare",
            "-nu",
            "sh",
            "-ec",
            inside,
            "sh",
            sys.executable,
            "-c",
            CODE.format(log_dir=runs),
        ],
        env={**os.environ, "PYTHONPATH": os.path.dirname(jobs.__file__)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '["0100007F"]'
