"""Two agents on one machine form one world, by each backend of torch's registry."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest

NODE = """
import sys, json, jobs
import icelaunch_nb as ice
backend, endpoint, run_id, log_dir, rank, job = sys.argv[1:]
config = ice.LaunchConfig(
    2, 2, 2, run_id=run_id, rdzv_backend=backend, rdzv_endpoint=endpoint,
    rdzv_configs={"rank": int(rank), "timeout": 60}, start_method="forkserver",
    monitor_interval=1, max_restarts=1, log_dir=log_dir,
)
fn, args = (jobs.all_reduce, []) if job == "all_reduce" else (jobs.fail_until, [1, 3])
print(json.dumps(ice.launch_agent(config, fn, args)))
"""


def two_nodes(backend: str, endpoint: str, job: str, folder: Path) -> list[str]:
    """Runs the job on two nodes of two ranks each. Returns the last line that each printed."""
    env = {**os.environ, "PYTHONPATH": os.path.dirname(jobs.__file__)}
    nodes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                NODE,
                backend,
                endpoint,
                f"{backend}-{job}",
                str(folder),
                str(rank),
                job,
            ],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [node.communicate(timeout=100)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    return sorted(text.splitlines()[-1] for text in outputs)


@pytest.mark.parametrize("backend", ["c10d", "static"])
def test_two_launchers_form_one_world(backend: str, free_port: int, runs: Path) -> None:
    values = two_nodes(backend, f"127.0.0.1:{free_port}", "all_reduce", runs)
    assert values == ['{"0": 6.0, "1": 6.0}', '{"2": 6.0, "3": 6.0}']


def test_a_failure_on_one_node_restarts_both(free_port: int, runs: Path) -> None:
    assert two_nodes("c10d", f"127.0.0.1:{free_port}", "fail", runs) == [
        '{"0": 1, "1": 1}',
        '{"2": 1, "3": 1}',
    ]


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real etcd on loopback."""
    from torch.distributed.elastic.rendezvous.etcd_server import EtcdServer

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    server = EtcdServer()
    server.start(stderr=subprocess.DEVNULL)
    yield server.get_endpoint()
    server.stop()


@pytest.mark.parametrize("backend", ["etcd", "etcd-v2"])
def test_two_launchers_meet_at_etcd(backend: str, etcd: str, runs: Path) -> None:
    values = two_nodes(backend, etcd, "all_reduce", runs)
    assert values == ['{"0": 6.0, "1": 6.0}', '{"2": 6.0, "3": 6.0}']
