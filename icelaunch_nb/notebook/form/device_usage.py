"""How much of this machine's devices is in use.

GPUs are read by NVML, which creates no CUDA context.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from icelaunch_nb.client.devices import usable_cpus, visible_gpus


def device_usage(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Lists the devices that ranks can have: the CPU, then each visible GPU.

    Args:
        environ: The environment variables. ``CUDA_VISIBLE_DEVICES`` selects the GPUs.

    Returns:
        A dict for each device. ``device`` is its name for `launch` and ``about`` its model.
        ``free`` and ``total`` are its memory in bytes, 0 where that is unknown. ``note`` says how
        busy it is.
    """
    return [_cpu(), *_gpus(visible_gpus(environ))]


def _cpu() -> dict[str, Any]:
    cores, memory = usable_cpus(), psutil.virtual_memory()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    note = f"{cores} core{'s' * (cores != 1)}{load}"
    return {
        "device": "cpu",
        "about": "",
        "free": memory.available,
        "total": memory.total,
        "note": note,
    }


def _gpus(names: list[str]) -> Iterator[dict[str, Any]]:
    if not names:
        return
    import pynvml

    pynvml.nvmlInit()
    try:
        for index, name in enumerate(names):
            entry: dict[str, Any] = {
                "device": f"cuda:{index}",
                "about": "",
                "free": 0,
                "total": 0,
                "note": "",
            }
            # NVML may not report everything for a MIG slice.
            with contextlib.suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByUUID(name.encode())
                model = pynvml.nvmlDeviceGetName(handle)
                entry["about"] = model.decode() if isinstance(model, bytes) else model
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                entry["free"], entry["total"] = int(memory.free), int(memory.total)
                entry["note"] = f"{pynvml.nvmlDeviceGetUtilizationRates(handle).gpu} % busy"
            yield entry
    finally:
        pynvml.nvmlShutdown()
