"""The free memory and the load of the devices, by a fake NVML."""

from __future__ import annotations

import sys
import types

import psutil
import pytest

from icelaunch_nb.client.devices import usable_cpus
from icelaunch_nb.notebook.form.device_usage import device_usage


class FakeNvml(types.ModuleType):
    """Two GPUs. The second is a MIG slice, for which NVML reports little."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.uuids = ["GPU-aa", "MIG-bb"]

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return self.uuids[index]

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        return uuid.decode()

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"NVIDIA H100"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> types.SimpleNamespace:
        if handle.startswith("MIG"):
            raise self.NVMLError("Not Supported")
        return types.SimpleNamespace(free=60_000_000_000, total=80_000_000_000)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(gpu=37)


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    yield fake
    assert fake.open == 0


def test_the_cpu_comes_first_with_its_cores_and_its_memory():
    cpu = device_usage({"CUDA_VISIBLE_DEVICES": ""})[0]
    assert (
        cpu["device"] == "cpu"
        and cpu["total"] == psutil.virtual_memory().total
        and 0 < cpu["free"] <= cpu["total"]
    )
    assert cpu["note"].startswith(f"{usable_cpus()} core")


def test_gpus_report_what_nvml_knows(nvml):
    assert device_usage({})[1:] == [
        {
            "device": "cuda:0",
            "about": "NVIDIA H100",
            "free": 60_000_000_000,
            "total": 80_000_000_000,
            "note": "37 % busy",
        },
        {"device": "cuda:1", "about": "NVIDIA H100", "free": 0, "total": 0, "note": ""},
    ]


def test_only_visible_gpus_are_shown_and_by_cudas_numbers(nvml):
    assert [
        (one["device"], one["free"]) for one in device_usage({"CUDA_VISIBLE_DEVICES": "1,0"})[1:]
    ] == [("cuda:0", 0), ("cuda:1", 60_000_000_000)]
    assert device_usage({"CUDA_VISIBLE_DEVICES": ""})[1:] == []
