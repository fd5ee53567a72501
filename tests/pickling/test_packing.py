"""Tests of `packing`: what is pickled survives a round trip, and errors explain what can't be."""

from __future__ import annotations

import functools
import importlib
import os
import stat
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from icelaunch_nb import BigCaptureWarning, IcelaunchError, PackingError
from icelaunch_nb.pickling import captures, cell_sources, explain, packing

MB = 1 << 20


def round_trip(value, folder: Path, **how):
    packing.dump(value, folder / "it.pkl", **how)
    return packing.load(folder / "it.pkl")


def run_python(code: str, *args: object) -> str:
    """Runs code as a script's ``__main__`` and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Arrays.


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10.0),
        np.arange(2 * MB, dtype=np.uint8),
        np.arange(12).reshape(3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(20)[::2],
        np.zeros((0, 3)),
        np.array(7),
        np.array(["a", "ü"]),
        np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array([{"an": "object"}, None], dtype=object),
    ],
    ids=[
        "small",
        "mapped",
        "matrix",
        "fortran",
        "strided",
        "empty",
        "0-dim",
        "text",
        "records",
        "objects",
    ],
)
def test_arrays_survive_a_round_trip(array, tmp_path):
    again = round_trip(array, tmp_path)
    assert again.dtype == array.dtype and again.shape == array.shape
    assert (again == array).all()


@pytest.mark.parametrize("count", [10, MB], ids=["read", "mapped"])
def test_writing_to_a_loaded_array_does_not_change_the_file(count, tmp_path):
    again = round_trip(np.zeros(count), tmp_path)
    again[:] = 1
    assert again.sum() == count
    assert packing.load(tmp_path / "it.pkl").sum() == 0


def test_large_array_is_on_disk_once_and_aligned(tmp_path):
    array = np.arange(MB, dtype=np.float64)
    again = round_trip({"a": array, "again": array}, tmp_path)
    size = (tmp_path / "it.pkl").stat().st_size
    assert array.nbytes <= size < array.nbytes + 2000
    assert again["a"] is again["again"]
    assert again["a"].ctypes.data % 64 == 0


def test_buffers_of_any_length_are_written_whole(tmp_path):
    lengths = [
        0,
        1,
        packing._PIECE - 1,
        packing._PIECE,
        packing._PIECE + 1,
        3 * packing._PIECE + 17,
    ]
    arrays = [np.arange(length, dtype=np.uint32) for length in lengths]
    packing.dump(arrays, tmp_path / "result.pkl")
    for arrived, array in zip(packing.load(tmp_path / "result.pkl"), arrays, strict=True):
        np.testing.assert_array_equal(arrived, array)


def test_loaded_array_outlives_its_file(tmp_path):
    again = round_trip(np.arange(MB), tmp_path)
    (tmp_path / "it.pkl").unlink()
    assert again[-1] == MB - 1


# Tensors.


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(10.0),
        torch.arange(2 * MB, dtype=torch.uint8),
        torch.arange(6).to(torch.bfloat16),
        torch.zeros(0, 3),
        torch.tensor(3.5),
        torch.tensor([1 + 2j]),
        torch.tensor([True, False]),
        torch.arange(12).reshape(3, 4).t(),
        torch.arange(20)[5:15:3],
        torch.tensor([1 + 2j]).conj(),
        torch.arange(4.0).requires_grad_(),
    ],
    ids=[
        "small",
        "mapped",
        "bfloat16",
        "empty",
        "0-dim",
        "complex",
        "bool",
        "transposed",
        "strided",
        "conj",
        "grad",
    ],
)
def test_tensors_survive_a_round_trip(tensor, tmp_path):
    again = round_trip(tensor, tmp_path)
    assert (
        again.dtype == tensor.dtype
        and again.shape == tensor.shape
        and again.stride() == tensor.stride()
    )
    assert again.requires_grad == tensor.requires_grad
    assert torch.equal(again, tensor)


def test_sparse_and_meta_tensors_survive_a_round_trip(tmp_path):
    sparse = torch.tensor([[0, 1.0], [2, 0]]).to_sparse()
    assert torch.equal(round_trip(sparse, tmp_path).to_dense(), sparse.to_dense())
    meta = round_trip(torch.empty(3, 4, device="meta"), tmp_path)
    assert meta.device.type == "meta" and meta.shape == (3, 4)


def test_tensors_still_share_their_storage(tmp_path):
    base = torch.zeros(4, 4)
    row, flat, again = round_trip((base[1], base.view(16), base), tmp_path)
    again[1, 2] = 5
    assert row[2] == 5 and flat[6] == 5


def test_views_of_another_dtype_still_share_their_storage(tmp_path):
    base = torch.zeros(4, dtype=torch.int32)
    a, b = round_trip((base, base.view(torch.uint8)), tmp_path)
    a[0] = 1
    assert int(b.sum()) == 1


def test_shared_storage_is_on_disk_once(tmp_path):
    base = torch.zeros(MB)
    round_trip([base, base[1:], base.view(1024, 1024)], tmp_path)
    assert (tmp_path / "it.pkl").stat().st_size < 4 * MB + 4000


def test_writing_to_a_loaded_tensor_does_not_change_the_file(tmp_path):
    tensor = torch.zeros(MB)
    again = round_trip(tensor, tmp_path)
    again += 1
    assert float(tensor.sum()) == 0 and float(again.sum()) == MB
    assert float(packing.load(tmp_path / "it.pkl").sum()) == 0


def test_parameters_modules_and_tied_weights_survive_a_round_trip(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    net[1].weight = net[0].weight
    again = round_trip(net, tmp_path)
    assert isinstance(again[0].weight, torch.nn.Parameter) and again[0].weight.requires_grad
    assert again[1].weight is again[0].weight
    assert torch.equal(again(torch.ones(4)), net(torch.ones(4)))
    torch.optim.SGD(again.parameters(), lr=1.0).zero_grad()


def test_tensor_in_numpy_memory_survives_a_round_trip(tmp_path):
    assert torch.equal(round_trip(torch.from_numpy(np.arange(5)), tmp_path), torch.arange(5))


# The file.


def test_file_mode_is_0600_under_any_umask(tmp_path):
    before = os.umask(0)
    try:
        packing.dump([1], tmp_path / "it.pkl")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "it.pkl").stat().st_mode) == 0o600


def test_dump_leaves_only_its_file(tmp_path):
    round_trip(np.arange(MB), tmp_path)
    assert os.listdir(tmp_path) == ["it.pkl"]


def test_failed_dump_keeps_the_old_file_and_leaves_no_other(tmp_path):
    packing.dump("old", tmp_path / "it.pkl")
    with pytest.raises(TypeError):
        packing.dump([np.arange(MB), threading.Lock()], tmp_path / "it.pkl")
    assert os.listdir(tmp_path) == ["it.pkl"]
    assert packing.load(tmp_path / "it.pkl") == "old"


def test_file_cut_anywhere_is_refused(tmp_path):
    packing.dump({"array": np.arange(1000), "text": "x" * 500}, tmp_path / "it.pkl")
    whole = (tmp_path / "it.pkl").read_bytes()
    torn = tmp_path / "torn.pkl"
    cuts = [*range(200), *range(200, len(whole) - 100, 97), *range(len(whole) - 100, len(whole))]
    for cut in cuts:
        torn.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="is not whole"):
            packing.load(torn)
    torn.write_bytes(whole)
    assert packing.load(torn)["text"] == "x" * 500


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\0" * 24, b"icepack1" * 3, b"\xff" * 16 + b"icepack1", b"\x80\x04N." * 100],
)
def test_other_content_is_refused(content, tmp_path):
    (tmp_path / "it.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="is not whole"):
        packing.load(tmp_path / "it.pkl")


def test_error_names_a_missing_file(tmp_path):
    with pytest.raises(IcelaunchError, match=r"nowhere\.pkl"):
        packing.load(tmp_path / "nowhere.pkl")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_another_user_is_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    packing.dump(Trap(), tmp_path / "it.pkl")
    os.chown(tmp_path / "it.pkl", 12345, 12345)
    with pytest.raises(IcelaunchError, match="belongs to user 12345"):
        packing.load(tmp_path / "it.pkl")
    assert not (tmp_path / "sprung").exists()


def test_dump_returns_the_pickled_functions(tmp_path):
    def helper():
        return 1

    def main():
        return helper()

    assert {f.__name__ for f in packing.dump(main, tmp_path / "it.pkl")} >= {"helper", "main"}


# From kernel to rank and back. Each is a process of its own.

KERNEL = """
    import subprocess, sys
    from dataclasses import dataclass
    from enum import Enum
    from pathlib import Path
    from icelaunch_nb.pickling import packing
    folder = Path(sys.argv[1])

    class Base:
        def hello(self): return "base"
    class Mine(Base):
        def hello(self): return "mine " + super().hello()
    @dataclass
    class Point:
        x: int
    class Colour(Enum):
        RED = 1
    class Oops(Exception):
        pass
    counter = 0
    def helper(): return "helped"
    def fn():
        global counter
        counter += 5
        return {
            "mine": Mine(),
            "point": Point(counter),
            "colour": Colour.RED,
            "class": Mine,
            "error": Oops("x"),
            "helper": helper(),
        }
    packing.dump((fn, (), {}), folder / "call.pkl")
    subprocess.run([sys.executable, "-c", sys.argv[2], str(folder)], check=True)
    back = packing.load(folder / "result.pkl")
"""
RANK = """
import sys, types
from pathlib import Path
main = types.ModuleType("__main__")
sys.modules["__main__"] = main
from icelaunch_nb.pickling import packing
folder = Path(sys.argv[1])
fn, args, kwargs = packing.load(folder / "call.pkl")
packing.adopt_main_classes()
value = fn(*args, **kwargs)
"""


def kernel_and_rank(tmp_path: Path, in_rank: str, in_kernel: str, defined: str = "") -> str:
    rank = (
        RANK
        + textwrap.dedent(in_rank)
        + "\npacking.dump(value, folder / 'result.pkl', to_kernel=True)\n"
    )
    kernel = textwrap.dedent(KERNEL).replace(
        "packing.dump(", textwrap.dedent(defined) + "packing.dump(", 1
    )
    return run_python(kernel + textwrap.dedent(in_kernel), tmp_path, rank)


def test_results_are_instances_of_the_kernels_classes(tmp_path):
    printed = kernel_and_rank(
        tmp_path,
        "",
        """
        assert type(back["mine"]) is Mine and isinstance(back["mine"], Base), type(back["mine"])
        assert back["class"] is Mine
        assert back["point"] == Point(5) and type(back["point"]) is Point
        assert back["colour"] is Colour.RED
        assert type(back["error"]) is Oops
        assert back["mine"].hello() == "mine base" and back["helper"] == "helped"
        assert counter == 0
        print("held")
    """,
    )
    assert printed == "held\n"


def test_function_globals_are_the_ranks_main(tmp_path):
    kernel_and_rank(
        tmp_path,
        """
        assert fn.__globals__ is vars(main)
        assert main.counter == 5
        assert main.helper() == "helped"
        import pickle
        # Pickled by name, as in a script.
        again = pickle.loads(pickle.dumps(value["mine"]))
        assert type(again) is main.Mine is type(value["mine"])
    """,
        "",
    )


def test_classes_made_in_a_rank_arrive_in_the_kernel(tmp_path):
    printed = kernel_and_rank(
        tmp_path,
        """
        class OfTheRank:
            x = 4
        OfTheRank.__module__ = "__main__"
        value = OfTheRank()
    """,
        "print(type(back).__name__, back.x)",
    )
    assert printed == "OfTheRank 4\n"


def test_another_kernel_reads_results(tmp_path):
    kernel_and_rank(tmp_path, "", "")
    printed = run_python(
        """
        import sys
        from pathlib import Path
        from icelaunch_nb.pickling import packing
        back = packing.load(Path(sys.argv[1]) / "result.pkl")
        print(back["mine"].hello(), back["point"])
    """,
        tmp_path,
    )
    assert printed == "mine base Point(x=5)\n"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is new in Python 3.12")
def test_parameters_and_aliases_of_the_type_syntax_arrive_in_a_rank(tmp_path):
    kernel_and_rank(
        tmp_path,
        """
        given, alias, both = value["helper"]
        assert given == 5 and main.Json is alias and alias.__name__ == "Json"
        assert alias.__value__.__args__[0] == list[alias]
        kinds = [type(one).__name__ for one in both.__type_params__]
        assert kinds == ["TypeVar", "TypeVarTuple", "ParamSpec"]
        value = dict.fromkeys(["mine", "point", "colour", "class", "error"])
        value["helper"] = alias
    """,
        """
        assert back["helper"] is Json
    """,
        """
        type Json = list[Json] | dict[str, Json] | int
        class Both[T, *Ts, **P]: pass
        def first[T](given: list[T], alias: Json = 3) -> T: return given[0]
        def helper(): return first([5]), Json, Both
    """,
    )


# Sources of cells.


def test_code_keeps_its_filename(tmp_path):
    namespace = {"__name__": "__main__"}
    exec(
        compile("def outer():\n    def inner():\n        pass\n    return inner", "cell 7", "exec"),
        namespace,
    )
    packing.dump(namespace["outer"], tmp_path / "call.pkl")
    outer = packing.load(tmp_path / "call.pkl")
    assert {outer.__code__.co_filename, outer().__code__.co_filename} == {"cell 7"}


def test_only_sources_of_cells_are_collected(tmp_path):
    import linecache

    name = "<cell of test_packing>"
    source = "def from_cell():\n    return 1  # a comment\n"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        namespace = {"__name__": "__main__"}
        exec(compile(source, name, "exec"), namespace)
        functions = packing.dump((namespace["from_cell"], round_trip), tmp_path / "it.pkl")
        assert cell_sources.cell_sources(functions) == {name: {"name": name, "source": source}}
    finally:
        del linecache.cache[name]


# What can't be pickled.


class Holder:
    def __init__(self, **parts):
        self.__dict__.update(parts)


class Slotted:
    __slots__ = ("fine", "lock")

    def __init__(self):
        self.fine, self.lock = 1, threading.Lock()


def cell_function(source: str, **names):
    """A function as a cell defines it, with these globals."""
    namespace = {"__name__": "__main__", **names}
    exec(textwrap.dedent(source), namespace)
    return namespace["f"]


def _closure():
    lock = threading.Lock()
    return lambda: lock


LOCK = threading.Lock()
CULPRITS = {
    "itself": (LOCK, ""),
    "dict": ({"fine": 1, "a": {"b": LOCK}}, "['a']['b']"),
    "list": ([1, [2, LOCK]], "[1][1]"),
    "tuple": ((1, LOCK), "[1]"),
    "attribute": (Holder(fine=1, inner=Holder(lock=LOCK)), ".inner.lock"),
    "slots": ([Slotted()], "[0].lock"),
    "closure": (_closure(), " → lock"),
    "global": (cell_function("def f(): return guard", guard=LOCK), " → guard"),
    "global of a global": (
        cell_function("def f(): return g()", g=cell_function("def f(): return guard", guard=LOCK)),
        " → g → guard",
    ),
    "default": (cell_function("def f(a, b=guard): pass", guard=LOCK), " → default b"),
    "method": (Holder(lock=LOCK).__init__, ".__self__.lock"),
    "partial argument": (functools.partial(print, 1, LOCK), ".args[1]"),
    "partial keyword": (functools.partial(print, end=LOCK), ".keywords['end']"),
    "partial function": (
        functools.partial(cell_function("def f(): return guard", guard=LOCK)),
        ".func → guard",
    ),
    "class attribute": (type("Fresh", (), {"guard": LOCK, "__module__": "__main__"}), ".guard"),
    "generator": ({"g": (i for i in ())}, "['g']"),
}


@pytest.mark.parametrize("name", CULPRITS)
def test_error_names_the_path_to_the_culprit(name, tmp_path):
    value, path = CULPRITS[name]
    with pytest.raises(Exception) as caught:  # of any type
        packing.dump(value, tmp_path / "it.pkl")
    error = explain.explain(caught.value, {"args[0]": [1, "fine"], "args[1]": value})
    assert isinstance(error, PackingError)
    assert error.path == f"args[1]{path}"
    assert error.type_name == ("generator" if name == "generator" else "_thread.lock")
    assert "pickle" in error.reason
    assert str(error).startswith(error.path)


def test_error_of_a_reduce_is_quoted():
    class Sulky:
        def __reduce__(self):
            raise RuntimeError("not today")

    error = explain.explain(RuntimeError("not today"), {"result": {"k": Sulky()}})
    assert error.path == "result['k']" and "RuntimeError: not today" in error.reason


def test_explaining_a_cycle_ends():
    ring: list = [LOCK]
    ring.insert(0, ring)
    assert explain.explain(TypeError("x"), {"ring": ring}).path == "ring[1]"


def test_error_of_deep_nesting_omits_the_levels(tmp_path):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    chain = None
    for _ in range(100_000):
        chain = Holder(after=chain)
    for value, path, kind in ((deep, "it['a']", "list"), (chain, "it['a']", "Holder")):
        with pytest.raises(Exception) as caught:  # of any type
            packing.dump({"a": value}, tmp_path / "it.pkl")
        error = explain.explain(caught.value, {"it": {"a": value}})
        assert error.path == path and error.type_name.endswith(kind)
        assert "nested too deeply" in str(error) and len(str(error)) < 200
    # Freed level by level, since Python can't free such a depth at once.
    while chain is not None:
        chain = chain.after
    while deep:
        deep = deep[0]


def test_long_path_is_cut_and_follows_the_reason():
    value: object = LOCK
    for number in range(60):
        value = {f"level {number}": value}
    error = explain.explain(TypeError("x"), {"it": value}, seconds=60)
    assert error.type_name == "_thread.lock" and error.path.endswith("['level 0']")
    assert (
        str(error).startswith("can't be pickled: ")
        and str(error).endswith("['level 0'] (a _thread.lock)")
        and len(str(error)) < 300
    )


def test_explaining_stops_at_its_time_limit():
    assert explain.explain(TypeError("x"), {"deep": [[[LOCK]]]}, seconds=0).path == "deep"


def test_unexplained_failure_is_quoted():
    error = explain.explain(ValueError("odd"), {"fn": 1})
    assert error.path == "fn" and error.reason == "ValueError: odd"


# Captures.


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(captures, "BIG", MB)


def _warnings_of(function, folder: Path) -> list[str]:
    functions = packing.dump(function, folder / "it.pkl")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        captures.warn_of_big_captures(functions, folder / "it.pkl", stacklevel=1)
    assert all(w.category is BigCaptureWarning and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


def test_warning_names_a_big_global_and_its_size(small_limit, tmp_path):
    f = cell_function("def f(): return table, small", table=np.zeros(5 * MB, np.uint8), small=[1])
    (message,) = _warnings_of(f, tmp_path)
    assert "f captures `table` (5 MB)" in message


def test_warning_names_a_big_tensor_in_a_closure(small_limit, tmp_path):
    tensor = torch.zeros(3 * MB, dtype=torch.uint8)

    def user():
        return tensor

    (message,) = _warnings_of(user, tmp_path)
    assert "captures `tensor` (3 MB)" in message


def test_big_global_of_two_functions_is_warned_of_once(small_limit, tmp_path):
    table = b"x" * (2 * MB)
    inner = cell_function("def f(): return table", table=table)
    f = cell_function("def f(): return table, inner()", table=table, inner=inner)
    assert len(_warnings_of(f, tmp_path)) == 1


def test_big_arguments_and_small_captures_are_not_warned_of(small_limit, tmp_path):
    f = cell_function("def f(x): return small", small=np.zeros(MB // 2, np.uint8))
    assert _warnings_of((f, (np.zeros(4 * MB, np.uint8),)), tmp_path) == []


def test_globals_of_a_module_are_not_captures(small_limit, tmp_path):
    module = types.ModuleType("module_of_test_packing")
    exec("def f(): return table", module.__dict__)
    module.table = np.zeros(4 * MB, np.uint8)
    sys.modules[module.__name__] = module
    try:
        assert _warnings_of((module.f, np.zeros(4 * MB, np.uint8)), tmp_path) == []
    finally:
        del sys.modules[module.__name__]


def test_non_modules_in_sys_modules_are_found_after_a_scan(monkeypatch, tmp_path):
    """A forkserver scans all modules. What its children import and remove later counts, too."""
    from icelaunch_nb.pickling import modules

    def as_packed(name: str) -> object:
        (tmp_path / f"{name}.py").write_text(
            f"import sys\nclass C: pass\nsys.modules[{name!r}] = C()\n"
        )
        packing.dump(importlib.import_module(name), tmp_path / "call.pkl")
        return packing.load(tmp_path / "call.pkl")

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(modules, "_scanned", {})
    assert as_packed("before_the_scan") is sys.modules["before_the_scan"]
    modules.scan_modules()
    assert as_packed("before_the_scan") is sys.modules["before_the_scan"]
    assert as_packed("after_the_scan") is sys.modules["after_the_scan"]
    del sys.modules[modules._scanned["last"]]
    assert as_packed("after_a_removal") is sys.modules["after_a_removal"]
