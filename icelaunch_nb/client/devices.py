"""Assigns a device to each rank, in the kernel, without torch and without a CUDA context.

NVML counts the GPUs, through NVIDIA's own ``nvidia-ml-py``, since it creates no context.
``CUDA_VISIBLE_DEVICES`` has the meaning that CUDA gives it:
https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#cuda-environment-variables
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icelaunch_nb.errors import ConfigError

Devices = str | Sequence[int]
# Seconds for which the answer of NVML is kept. A form checks its fields at each key, and opening
# NVML takes milliseconds.
_CACHE_SECONDS = 2.0
_REMEDY = 'must be "auto", "cpu", "cuda", "cuda:0-2,7", "cpu:0-3" or a list of GPU indices'


def assign_devices(devices: Devices, nproc: int | str, environ: Mapping[str, str]) -> list[str]:
    """Assigns a device to each local rank.

    Args:
        devices: ``"auto"`` (a GPU per rank, or the CPU where there are no GPUs), ``"cpu"``,
            ``"cuda"``, ``"cuda:0-2,7"``, ``"cpu:0-3"`` or a list of GPU indices.
        nproc: Number of ranks. ``"auto"``: one per device named, else one per visible GPU, else
            one.
        environ: The environment that may hold ``CUDA_VISIBLE_DEVICES``.

    Returns:
        A device (``"cpu"``, ``"cuda:0"``) for each local rank.

    Raises:
        ConfigError: `devices` can't be read or names a device twice, a GPU is missing, or there are
            more ranks than devices.
    """
    if nproc != "auto" and (isinstance(nproc, bool) or not isinstance(nproc, int)):
        raise ConfigError("nproc_per_node", nproc, 'must be an int, or "auto"')
    if isinstance(nproc, int) and nproc < 1:
        raise ConfigError("nproc_per_node", nproc, "must be at least 1")
    if isinstance(nproc, int) and nproc > 100_000:
        raise ConfigError("nproc_per_node", nproc, "must be at most 100000")
    kind, indices = _parse_devices(devices)
    if kind == "cpu":
        if indices is None:
            return ["cpu"] * (1 if nproc == "auto" else int(nproc))
        count = _count_ranks(devices, nproc, len(indices))
        return ["cpu"] * count
    gpus = count_gpus(environ)
    if kind == "auto":
        if not gpus:
            return ["cpu"] * (1 if nproc == "auto" else int(nproc))
        if nproc != "auto" and int(nproc) > gpus:
            raise ConfigError(
                "nproc_per_node",
                nproc,
                f"there are {gpus} visible GPUs; ask for at most {gpus} ranks, or devices='cpu'",
            )
        indices = list(range(gpus))
    elif not gpus:
        raise ConfigError(
            "devices", devices, "no GPU is visible here; devices='cpu' runs on the CPU"
        )
    elif indices is None:
        indices = list(range(gpus))
    missing = [i for i in indices if i >= gpus]
    if missing:
        raise ConfigError(
            "devices", devices, f"GPU {missing[0]} is not there: {gpus} visible, 0 to {gpus - 1}"
        )
    return [f"cuda:{index}" for index in indices[: _count_ranks(devices, nproc, len(indices))]]


def gpus_or_cpu(nproc: int, environ: Mapping[str, str]) -> list[str]:
    """The devices of `launch_agent`: GPU n for rank n, or the CPU for all if GPUs are missing."""
    return [f"cuda:{i}" for i in range(nproc)] if count_gpus(environ) >= nproc else ["cpu"] * nproc


def _count_ranks(devices: Devices, nproc: int | str, named: int) -> int:
    if nproc == "auto":
        return named
    if int(nproc) > named:
        raise ConfigError(
            "nproc_per_node",
            nproc,
            f"devices={devices!r} has only {named}; ask for at most {named} ranks",
        )
    return int(nproc)


def _parse_devices(devices: object) -> tuple[str, list[int] | None]:
    if isinstance(devices, str):
        match = re.fullmatch(r"(auto|cpu|cuda)(?::([0-9,\- ]+))?", devices.strip())
        if not match or (match[1] == "auto" and match[2]):
            raise ConfigError("devices", devices, _REMEDY)
        return match[1], None if match[2] is None else _parse_ranges(devices, match[2])
    if isinstance(devices, Sequence) and not isinstance(devices, bytes):
        listed = list(devices)
        if not listed or not all(
            isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in listed
        ):
            raise ConfigError("devices", devices, _REMEDY)
        return "cuda", _check_distinct(devices, listed)
    raise ConfigError("devices", devices, _REMEDY)


def _parse_ranges(devices: str, ranges: str) -> list[int]:
    found: list[int] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?\s*", part)
        if not match:
            raise ConfigError("devices", devices, _REMEDY)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError("devices", devices, f"the range {part.strip()} runs backwards")
        found.extend(range(first, last + 1))
    return _check_distinct(devices, found)


def _check_distinct(devices: object, indices: list[int]) -> list[int]:
    seen: set[int] = set()
    for index in indices:
        if index in seen:
            raise ConfigError(
                "devices", devices, f"device {index} stands twice; each rank needs one of its own"
            )
        seen.add(index)
    return indices


def count_gpus(environ: Mapping[str, str]) -> int:
    """Number of GPUs that CUDA would show a process with this environment."""
    return len(visible_gpus(environ))


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """NVML's UUIDs of the GPUs that CUDA would show, in CUDA's order.

    Args:
        environ: The environment that may hold ``CUDA_VISIBLE_DEVICES``.
    """
    names = _nvml_uuids()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if not names or visible is None:
        return names
    seen: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        # CUDA ignores the entries from the first unknown one on, and all if one is named twice.
        if entry.isdecimal() and int(entry) < len(names):
            key = names[int(entry)]
        else:
            matches = [name for name in names if entry and name.startswith(entry)]
            if entry.startswith("MIG-"):
                matches = [entry]
            if len(matches) != 1:
                break
            key = matches[0]
        if key in seen:
            return []
        seen.append(key)
    return seen


# The module that was queried last, when, and the UUIDs. Tests replace the module.
_nvml_cache: list[tuple[Any, float, list[str]]] = []


def _nvml_uuids() -> list[str]:
    import pynvml

    for module, queried_at, uuids in _nvml_cache:
        if module is pynvml and time.monotonic() - queried_at < _CACHE_SECONDS:
            return list(uuids)
    uuids = _query_nvml(pynvml)
    _nvml_cache[:] = [(pynvml, time.monotonic(), uuids)]
    return list(uuids)


def _query_nvml(pynvml: Any) -> list[str]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
        return [uuid.decode() if isinstance(uuid, bytes) else uuid for uuid in uuids]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def threads_per_rank(nproc: int) -> int:
    """Each rank's share of the CPUs that this process may use. At least 1."""
    return max(1, usable_cpus() // nproc)


def usable_cpus() -> int:
    """The number of CPUs by affinity, limited by the cgroup's quota."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    for quota in (_cgroup_v2_quota(), _cgroup_v1_quota()):
        if quota is not None:
            count = min(count, max(1, math.floor(quota)))
    return count


def _cgroup_v2_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _cgroup_v1_quota() -> float | None:
    try:
        quota = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError):
        return None
