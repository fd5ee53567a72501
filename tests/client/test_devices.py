"""Which rank gets which device, with a fake NVML and by CUDA's rules."""

from __future__ import annotations

import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelaunch_nb import ConfigError
from icelaunch_nb.client import devices
from icelaunch_nb.client.devices import (
    assign_devices,
    count_gpus,
    gpus_or_cpu,
    threads_per_rank,
    usable_cpus,
)

steady = settings(deadline=None, derandomize=True, database=None)
UUIDS = ["GPU-aa11", "GPU-aa22", "GPU-bb33", "GPU-cc44"]


class FakeNvml(types.ModuleType):
    """The functions of ``pynvml`` that we use. It counts the inits that had no shutdown yet."""

    class NVMLError(Exception):
        pass

    def __init__(self, uuids: list, *, driver: bool = True, lost: bool = False) -> None:
        super().__init__("pynvml")
        self._uuids, self._driver, self._lost = uuids, driver, lost
        self.open = 0

    def nvmlInit(self) -> None:
        if not self._driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self._uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple:
        if self._lost:
            raise self.NVMLError("GPU is lost")
        return ("handle", index)

    def nvmlDeviceGetUUID(self, handle: tuple):
        return self._uuids[handle[1]]


@pytest.fixture
def gpus(monkeypatch):
    def install(uuids, **how) -> FakeNvml:
        fake = FakeNvml(UUIDS[:uuids] if isinstance(uuids, int) else uuids, **how)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


# No GPU, some GPUs.


@pytest.mark.parametrize(
    ("named", "nproc", "assigned"),
    [
        ("auto", "auto", ["cpu"]),
        ("auto", 3, ["cpu"] * 3),
        ("cpu", "auto", ["cpu"]),
        ("cpu", 5, ["cpu"] * 5),
        ("cpu:0-3", "auto", ["cpu"] * 4),
        ("cpu:0-3", 2, ["cpu"] * 2),
        ("cpu:1,5", "auto", ["cpu"] * 2),
        (" cpu ", 1, ["cpu"]),
    ],
)
def test_without_gpus(gpus, named, nproc, assigned):
    gpus(0)
    assert assign_devices(named, nproc, {}) == assigned


@pytest.mark.parametrize(
    ("named", "nproc", "assigned"),
    [
        ("auto", "auto", [0, 1, 2, 3]),
        ("auto", 2, [0, 1]),
        ("cuda", "auto", [0, 1, 2, 3]),
        ("cuda", 3, [0, 1, 2]),
        ("cuda:2", "auto", [2]),
        ("cuda:0-2", "auto", [0, 1, 2]),
        ("cuda:1-1", "auto", [1]),
        ("cuda:0-1,3", "auto", [0, 1, 3]),
        ("cuda:3,0", "auto", [3, 0]),
        ("cuda: 3 , 0 - 1 ", "auto", [3, 0, 1]),
        ("cuda:3,0", 1, [3]),
        ([2, 0], "auto", [2, 0]),
        ((1,), 1, [1]),
        (range(1, 3), "auto", [1, 2]),
    ],
)
def test_with_four_gpus(gpus, named, nproc, assigned):
    gpus(4)
    assert assign_devices(named, nproc, {}) == [f"cuda:{i}" for i in assigned]


def test_devices_cpu_stays_cpu_where_there_are_gpus(gpus):
    fake = gpus(4)
    fake.nvmlInit = lambda: pytest.fail("NVML was queried")
    assert assign_devices("cpu", 2, {}) == ["cpu", "cpu"]
    assert assign_devices("cpu:0-1", "auto", {}) == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("named", "nproc", "field", "remedy"),
    [
        ("auto", 5, "nproc_per_node", "at most 4 ranks"),
        ("cuda", 5, "nproc_per_node", "at most 4 ranks"),
        ("cuda:0-1", 3, "nproc_per_node", "at most 2 ranks"),
        ("cpu:0-1", 3, "nproc_per_node", "at most 2 ranks"),
        ([0], 2, "nproc_per_node", "at most 1 rank"),
        ("cuda:4", "auto", "devices", "GPU 4 is not there"),
        ("cuda:0-7", "auto", "devices", "0 to 3"),
        ("cuda:0-99999", "auto", "devices", "GPU 4 is not there"),
        ([0, 9], "auto", "devices", "GPU 9 is not there"),
        ("cuda:0,0", "auto", "devices", "stands twice"),
        ("cuda:0-2,1", "auto", "devices", "stands twice"),
        ([1, 1], "auto", "devices", "stands twice"),
        ("cpu:3,3", "auto", "devices", "stands twice"),
        ("cpu:0-1500,7", "auto", "devices", "stands twice"),
        ("cuda:3-1", "auto", "devices", "backwards"),
        ("gpu", "auto", "devices", "must be"),
        ("CUDA", "auto", "devices", "must be"),
        ("", "auto", "devices", "must be"),
        ("cuda:", "auto", "devices", "must be"),
        ("cuda:a", "auto", "devices", "must be"),
        ("cuda:-1", "auto", "devices", "must be"),
        ("cuda:1-", "auto", "devices", "must be"),
        ("cuda:1--2", "auto", "devices", "must be"),
        ("cuda:0,,1", "auto", "devices", "must be"),
        ("cuda:0-1-2", "auto", "devices", "must be"),
        ("cuda:999999", "auto", "devices", "must be"),
        ("auto:0", "auto", "devices", "must be"),
        ("cuda:\u0661", "auto", "devices", "must be"),
        ("cuda\0", "auto", "devices", "must be"),
        ("cuda:0\n; rm", "auto", "devices", "must be"),
        ([], "auto", "devices", "must be"),
        ([-1], "auto", "devices", "must be"),
        ([True], "auto", "devices", "must be"),
        ([0.0], "auto", "devices", "must be"),
        (["0"], "auto", "devices", "must be"),
        ([10**30], "auto", "devices", "is not there"),
        (b"\x00", "auto", "devices", "must be"),
        (None, "auto", "devices", "must be"),
        (0, "auto", "devices", "must be"),
        ({0}, "auto", "devices", "must be"),
        ("auto", 0, "nproc_per_node", "at least 1"),
        ("auto", -2, "nproc_per_node", "at least 1"),
        ("auto", True, "nproc_per_node", "must be an int"),
        ("auto", 2.0, "nproc_per_node", "must be an int"),
        ("auto", "two", "nproc_per_node", '"auto"'),
        ("auto", None, "nproc_per_node", '"auto"'),
        ("cpu", 10**30, "nproc_per_node", "at most"),
    ],
    ids=ascii,
)
def test_the_error_for_wrong_devices_names_field_and_remedy(gpus, named, nproc, field, remedy):
    gpus(4)
    with pytest.raises(ConfigError) as caught:
        assign_devices(named, nproc, {})
    assert caught.value.field == field
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("named", ["cuda", "cuda:0", [0]])
def test_asking_for_a_gpu_where_there_is_none_says_what_to_do(gpus, named):
    gpus(0)
    with pytest.raises(ConfigError, match="devices='cpu'"):
        assign_devices(named, "auto", {})


def test_launch_agent_gives_gpus_where_there_are_enough(gpus):
    gpus(2)
    assert gpus_or_cpu(2, {}) == ["cuda:0", "cuda:1"]
    assert gpus_or_cpu(1, {}) == ["cuda:0"]
    assert gpus_or_cpu(3, {}) == ["cpu"] * 3
    assert gpus_or_cpu(2, {"CUDA_VISIBLE_DEVICES": "1"}) == ["cpu"] * 2


# CUDA_VISIBLE_DEVICES by CUDA's rules.


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("0", 1),
        ("3,1", 2),
        ("0,1,2,3", 4),
        (" 2 , 0 ", 2),
        ("", 0),
        ("-1", 0),
        ("0,-1,1", 1),
        ("0,1,9,2", 2),
        ("9", 0),
        ("NoDevFiles", 0),
        ("0,0", 0),
        ("1,2,1", 0),
        ("GPU-bb33", 1),
        ("GPU-bb", 1),
        ("GPU-cc44,GPU-aa11", 2),
        ("GPU-aa", 0),  # two UUIDs begin like this
        ("GPU-zz,0", 0),
        ("0,GPU-aa11", 0),  # the same GPU twice
        ("0,GPU-aa22", 2),
        ("MIG-1234", 1),
        ("MIG-1,MIG-2", 2),
        ("MIG-1,MIG-1", 0),
        (",", 0),
        ("0,", 1),
    ],
)
def test_visible_devices_are_counted_as_cuda_counts_them(gpus, visible, count):
    gpus(4)
    assert count_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == count


def test_indices_count_the_visible_gpus(gpus):
    gpus(4)
    environ = {"CUDA_VISIBLE_DEVICES": "3,2"}
    assert assign_devices("auto", "auto", environ) == ["cuda:0", "cuda:1"]
    with pytest.raises(ConfigError, match="GPU 2 is not there: 2 visible"):
        assign_devices([2], "auto", environ)


def test_gpus_are_counted_in_the_given_environment(gpus, monkeypatch):
    gpus(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert count_gpus({}) == 4


def test_uuids_may_be_bytes_as_in_older_nvml(gpus):
    gpus([b"GPU-aa11", b"GPU-bb22"])
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "GPU-bb22"}) == 1


@pytest.mark.parametrize("how", [{"driver": False}, {"lost": True}])
def test_a_broken_driver_counts_as_no_gpu(gpus, how):
    fake = gpus(4, **how)
    assert count_gpus({}) == 0
    assert fake.open == 0


def test_nvmls_answer_is_cached_for_a_while(gpus, monkeypatch):
    fake = gpus(2)
    inits = []
    fake.nvmlInit, init = lambda: inits.append(1) or init(), fake.nvmlInit
    assert (count_gpus({}), count_gpus({"CUDA_VISIBLE_DEVICES": "1"}), len(inits)) == (2, 1, 1)
    monkeypatch.setattr("icelaunch_nb.client.devices._CACHE_SECONDS", -1.0)
    assert (count_gpus({}), len(inits)) == (2, 2)


def test_nvml_is_closed_again(gpus):
    fake = gpus(4)
    count_gpus({})
    assert fake.open == 0


# Ranges.


@steady
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 20)), min_size=1, max_size=8))
def test_ranges_include_both_ends(pairs):
    text = ",".join(
        str(first) if length == 0 else f"{first}-{first + length}" for first, length in pairs
    )
    meant = [i for first, length in pairs for i in range(first, first + length + 1)]
    if len(set(meant)) < len(meant):
        with pytest.raises(ConfigError, match="stands twice"):
            assign_devices(f"cpu:{text}", "auto", {})
    else:
        assert devices._parse_ranges("?", text) == meant
        assert assign_devices(f"cpu:{text}", "auto", {}) == ["cpu"] * len(meant)


@steady
@given(st.text(max_size=30))
def test_every_text_gives_devices_or_a_config_error(text):
    try:
        assigned = assign_devices(f"cpu:{text}", "auto", {})
    except ConfigError as error:
        assert error.field == "devices"
    else:
        assert assigned and set(assigned) == {"cpu"}


# Threads.


def test_each_rank_gets_its_share_of_the_threads_and_at_least_one():
    cpus = usable_cpus()
    assert cpus >= 1
    assert threads_per_rank(1) == cpus
    assert threads_per_rank(cpus) == 1
    assert threads_per_rank(10 * cpus) == 1


def test_cpus_are_those_that_the_process_may_use():
    import os

    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@steady
@given(nproc=st.integers(1, 10_000))
def test_ranks_together_have_no_more_threads_than_there_are_cpus(nproc):
    share = threads_per_rank(nproc)
    assert share >= 1
    assert share == 1 or share * nproc <= usable_cpus()
