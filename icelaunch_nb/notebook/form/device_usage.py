"""What is free on this machine's devices, as a form shows it. GPUs are asked through NVML, so no CUDA context comes to be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from icelaunch_nb.devices import usable_cpus, visible_gpus


def vacancy(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry per device that ranks can have: the CPU, then each visible GPU.

    Returns:
        ``device`` as `launch` takes it, ``about`` (its model), ``free`` and ``total`` memory in bytes (0: unknown), and ``note``, how busy
        it is.
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
            with contextlib.suppress(pynvml.NVMLError):  # a slice of a GPU may not tell everything
                handle = pynvml.nvmlDeviceGetHandleByUUID(name.encode())
                model = pynvml.nvmlDeviceGetName(handle)
                entry["about"] = model.decode() if isinstance(model, bytes) else model
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                entry["free"], entry["total"] = int(memory.free), int(memory.total)
                entry["note"] = f"{pynvml.nvmlDeviceGetUtilizationRates(handle).gpu} % busy"
            yield entry
    finally:
        pynvml.nvmlShutdown()
