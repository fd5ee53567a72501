"""Devices, NCCL and CUDA contexts, on a machine with a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pynvml
import pytest
import torch

import icelaunch_nb as ice
from icelaunch_nb.client.devices import count_gpus
from icelaunch_nb.client.host_pool import hosts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


def device_of_me() -> tuple[str, int]:
    return str(ice.get_context().device), torch.cuda.current_device()


def test_a_launch_works_after_cuda_was_initialised_here() -> None:
    torch.zeros(1).cuda()
    assert ice.launch(device_of_me).result(100)[0] == ("cuda:0", 0)


def test_the_rank_has_its_device_and_cudas_current_one_is_it() -> None:
    last = count_gpus(os.environ) - 1
    run = ice.launch(device_of_me, devices=[last])
    assert run.devices == {0: f"cuda:{last}"}
    assert run.result(100) == {0: (f"cuda:{last}", last)}


def test_auto_means_a_rank_for_each_gpu() -> None:
    assert (
        len(ice.launch(device_of_me).result(100))
        == torch.cuda.device_count()
        == count_gpus(os.environ)
    )


def test_an_all_reduce_by_nccl() -> None:
    def nccl() -> float:
        import torch.distributed as dist

        dist.init_process_group("nccl", device_id=ice.get_context().device)
        total = torch.ones(1, device=ice.get_context().device)
        dist.all_reduce(total)
        dist.destroy_process_group()
        return total.item()

    count = count_gpus(os.environ)
    assert ice.launch(nccl).result(100) == dict.fromkeys(range(count), float(count))


def test_a_cuda_tensor_arrives_on_the_cpu() -> None:
    value = ice.launch(lambda: {"weights": torch.arange(1 << 20, device="cuda")}).result(100)[0][
        "weights"
    ]
    assert value.device.type == "cpu"
    assert (value == torch.arange(1 << 20)).all()


def test_more_ranks_than_gpus_are_refused() -> None:
    with pytest.raises(ice.ConfigError, match="visible GPUs"):
        ice.launch(device_of_me, nproc_per_node=count_gpus(os.environ) + 1)


def test_no_context_in_the_host_or_its_forkserver() -> None:
    ice.launch(device_of_me).result(100)
    import psutil

    host = psutil.Process(hosts.for_environ(os.environ).process.pid)
    ours = {host.pid, *(child.pid for child in host.children())}
    pynvml.nvmlInit()
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            on_gpu = {
                p.pid
                for p in pynvml.nvmlDeviceGetComputeRunningProcesses(
                    pynvml.nvmlDeviceGetHandleByIndex(index)
                )
            }
            assert not ours & on_gpu
    finally:
        pynvml.nvmlShutdown()


def test_launching_makes_no_context_here() -> None:
    """In a process that has imported torch, as a user's kernel has, and not touched CUDA."""
    code = (
        "import torch, icelaunch_nb as ice\n"
        "print(ice.launch(lambda: str(ice.get_context().device)).result(100)[0], "
        "torch.cuda.is_initialized())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=True
    )
    assert done.stdout.splitlines()[-1] == "cuda:0 False"
