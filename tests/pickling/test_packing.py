"""What crosses from process to process: whole, out of band, and with words for what can't cross."""

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


def there_and_back(value, folder: Path, **how):
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
def test_arrays_arrive_as_they_were(array, tmp_path):
    again = there_and_back(array, tmp_path)
    assert again.dtype == array.dtype and again.shape == array.shape
    assert (again == array).all()


@pytest.mark.parametrize("count", [10, MB], ids=["read", "mapped"])
def test_arrays_can_be_written_after_loading_and_the_file_stays(count, tmp_path):
    again = there_and_back(np.zeros(count), tmp_path)
    again[:] = 1
    assert again.sum() == count
    assert packing.load(tmp_path / "it.pkl").sum() == 0


def test_large_arrays_lie_on_disk_once_and_aligned(tmp_path):
    array = np.arange(MB, dtype=np.float64)
    again = there_and_back({"a": array, "again": array}, tmp_path)
    size = (tmp_path / "it.pkl").stat().st_size
    assert array.nbytes <= size < array.nbytes + 2000
    assert again["a"] is again["again"]
    assert again["a"].ctypes.data % 64 == 0


def test_buffers_of_any_length_lie_end_to_end(tmp_path):
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


def test_a_file_that_is_removed_after_loading_is_no_loss(tmp_path):
    again = there_and_back(np.arange(MB), tmp_path)
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
def test_tensors_arrive_as_they_were(tensor, tmp_path):
    again = there_and_back(tensor, tmp_path)
    assert (
        again.dtype == tensor.dtype
        and again.shape == tensor.shape
        and again.stride() == tensor.stride()
    )
    assert again.requires_grad == tensor.requires_grad
    assert torch.equal(again, tensor)


def test_sparse_quantized_and_meta_tensors_arrive(tmp_path):
    sparse = torch.tensor([[0, 1.0], [2, 0]]).to_sparse()
    assert torch.equal(there_and_back(sparse, tmp_path).to_dense(), sparse.to_dense())
    meta = there_and_back(torch.empty(3, 4, device="meta"), tmp_path)
    assert meta.device.type == "meta" and meta.shape == (3, 4)


def test_tensors_that_share_storage_still_share_it(tmp_path):
    base = torch.zeros(4, 4)
    row, flat, again = there_and_back((base[1], base.view(16), base), tmp_path)
    again[1, 2] = 5
    assert row[2] == 5 and flat[6] == 5


def test_views_of_another_type_still_share(tmp_path):
    base = torch.zeros(4, dtype=torch.int32)
    a, b = there_and_back((base, base.view(torch.uint8)), tmp_path)
    a[0] = 1
    assert int(b.sum()) == 1


def test_a_shared_storage_lies_on_disk_once(tmp_path):
    base = torch.zeros(MB)
    there_and_back([base, base[1:], base.view(1024, 1024)], tmp_path)
    assert (tmp_path / "it.pkl").stat().st_size < 4 * MB + 4000


def test_tensors_can_be_written_and_own_their_bytes(tmp_path):
    tensor = torch.zeros(MB)
    again = there_and_back(tensor, tmp_path)
    again += 1
    assert float(tensor.sum()) == 0 and float(again.sum()) == MB
    assert float(packing.load(tmp_path / "it.pkl").sum()) == 0


def test_parameters_modules_and_tied_weights_arrive(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    net[1].weight = net[0].weight
    again = there_and_back(net, tmp_path)
    assert isinstance(again[0].weight, torch.nn.Parameter) and again[0].weight.requires_grad
    assert again[1].weight is again[0].weight
    assert torch.equal(again(torch.ones(4)), net(torch.ones(4)))
    torch.optim.SGD(again.parameters(), lr=1.0).zero_grad()


def test_a_tensor_that_numpy_owns_arrives(tmp_path):
    assert torch.equal(there_and_back(torch.from_numpy(np.arange(5)), tmp_path), torch.arange(5))


# The file.


def test_the_file_is_its_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        packing.dump([1], tmp_path / "it.pkl")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "it.pkl").stat().st_mode) == 0o600


def test_nothing_but_the_file_is_left(tmp_path):
    there_and_back(np.arange(MB), tmp_path)
    assert os.listdir(tmp_path) == ["it.pkl"]


def test_a_failed_dump_leaves_nothing_and_keeps_what_was_there(tmp_path):
    packing.dump("old", tmp_path / "it.pkl")
    with pytest.raises(TypeError):
        packing.dump([np.arange(MB), threading.Lock()], tmp_path / "it.pkl")
    assert os.listdir(tmp_path) == ["it.pkl"]
    assert packing.load(tmp_path / "it.pkl") == "old"


def test_a_torn_file_is_refused_wherever_it_is_cut(tmp_path):
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
def test_something_else_is_refused(content, tmp_path):
    (tmp_path / "it.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="is not whole"):
        packing.load(tmp_path / "it.pkl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(IcelaunchError, match=r"nowhere\.pkl"):
        packing.load(tmp_path / "nowhere.pkl")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    packing.dump(Trap(), tmp_path / "it.pkl")
    os.chown(tmp_path / "it.pkl", 12345, 12345)
    with pytest.raises(IcelaunchError, match="belongs to user 12345"):
        packing.load(tmp_path / "it.pkl")
    assert not (tmp_path / "sprung").exists()


def test_dump_returns_the_functions_that_went_along(tmp_path):
    def helper():
        return 1

    def main():
        return helper()

    assert {f.__name__ for f in packing.dump(main, tmp_path / "it.pkl")} >= {"helper", "main"}


# From kernel to rank and back, each a process of its own.

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
        return {"mine": Mine(), "point": Point(counter), "colour": Colour.RED, "class": Mine, "error": Oops("x"), "said": helper()}
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


def test_what_a_rank_returns_is_an_instance_of_the_kernels_own_classes(tmp_path):
    said = kernel_and_rank(
        tmp_path,
        "",
        """
        assert type(back["mine"]) is Mine and isinstance(back["mine"], Base), type(back["mine"])
        assert back["class"] is Mine
        assert back["point"] == Point(5) and type(back["point"]) is Point
        assert back["colour"] is Colour.RED
        assert type(back["error"]) is Oops
        assert back["mine"].hello() == "mine base" and back["said"] == "helped"
        assert counter == 0
        print("held")
    """,
    )
    assert said == "held\n"


def test_a_functions_globals_are_the_ranks_main(tmp_path):
    kernel_and_rank(
        tmp_path,
        """
        assert fn.__globals__ is vars(main)
        assert main.counter == 5
        assert main.helper() == "helped"
        import pickle
        again = pickle.loads(pickle.dumps(value["mine"]))  # by name, as in a script
        assert type(again) is main.Mine is type(value["mine"])
    """,
        "",
    )


def test_classes_made_in_the_rank_arrive_too(tmp_path):
    said = kernel_and_rank(
        tmp_path,
        """
        class OfTheRank:
            x = 4
        OfTheRank.__module__ = "__main__"
        value = OfTheRank()
    """,
        "print(type(back).__name__, back.x)",
    )
    assert said == "OfTheRank 4\n"


def test_another_kernel_can_read_results_as_well(tmp_path):
    kernel_and_rank(tmp_path, "", "")
    said = run_python(
        """
        import sys
        from pathlib import Path
        from icelaunch_nb.pickling import packing
        back = packing.load(Path(sys.argv[1]) / "result.pkl")
        print(back["mine"].hello(), back["point"])
    """,
        tmp_path,
    )
    assert said == "mine base Point(x=5)\n"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is new in Python 3.12")
def test_parameters_and_aliases_of_the_type_syntax_arrive(tmp_path):
    kernel_and_rank(
        tmp_path,
        """
        given, alias, both = value["said"]
        assert given == 5 and main.Json is alias and alias.__name__ == "Json" and alias.__value__.__args__[0] == list[alias]
        assert [type(one).__name__ for one in both.__type_params__] == ["TypeVar", "TypeVarTuple", "ParamSpec"]
        value = {"said": alias, "mine": None, "point": None, "colour": None, "class": None, "error": None}
    """,
        """
        assert back["said"] is Json
    """,
        """
        type Json = list[Json] | dict[str, Json] | int
        class Both[T, *Ts, **P]: pass
        def first[T](given: list[T], alias: Json = 3) -> T: return given[0]
        def helper(): return first([5]), Json, Both
    """,
    )


# Sources of cells.


def test_code_keeps_the_name_of_its_file(tmp_path):
    namespace = {"__name__": "__main__"}
    exec(
        compile("def outer():\n    def inner():\n        pass\n    return inner", "cell 7", "exec"),
        namespace,
    )
    packing.dump(namespace["outer"], tmp_path / "call.pkl")
    outer = packing.load(tmp_path / "call.pkl")
    assert {outer.__code__.co_filename, outer().__code__.co_filename} == {"cell 7"}


def test_sources_of_cells_are_collected_and_those_of_files_are_not(tmp_path):
    import linecache

    name = "<cell of test_packing>"
    source = "def from_cell():\n    return 1  # a comment\n"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        namespace = {"__name__": "__main__"}
        exec(compile(source, name, "exec"), namespace)
        functions = packing.dump((namespace["from_cell"], there_and_back), tmp_path / "it.pkl")
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
def test_the_path_to_the_culprit_is_named(name, tmp_path):
    value, path = CULPRITS[name]
    with pytest.raises(Exception) as caught:  # whatever pickle says
        packing.dump(value, tmp_path / "it.pkl")
    error = explain.explain(caught.value, {"args[0]": [1, "fine"], "args[1]": value})
    assert isinstance(error, PackingError)
    assert error.path == f"args[1]{path}"
    assert error.type_name == ("generator" if name == "generator" else "_thread.lock")
    assert "pickle" in error.reason
    assert str(error).startswith(error.path)


def test_a_reduce_that_raises_is_told_in_its_own_words():
    class Sulky:
        def __reduce__(self):
            raise RuntimeError("not today")

    error = explain.explain(RuntimeError("not today"), {"result": {"k": Sulky()}})
    assert error.path == "result['k']" and "RuntimeError: not today" in error.reason


def test_explaining_what_holds_itself_comes_to_an_end():
    ring: list = [LOCK]
    ring.insert(0, ring)
    assert explain.explain(TypeError("x"), {"ring": ring}).path == "ring[1]"


def test_what_is_nested_too_deeply_is_told_without_its_levels(tmp_path):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    chain = None
    for _ in range(100_000):
        chain = Holder(after=chain)
    for value, path, kind in ((deep, "it['a']", "list"), (chain, "it['a']", "Holder")):
        with pytest.raises(Exception) as caught:  # whatever pickle says
            packing.dump({"a": value}, tmp_path / "it.pkl")
        error = explain.explain(caught.value, {"it": {"a": value}})
        assert error.path == path and error.type_name.endswith(kind)
        assert "nested too deeply" in str(error) and len(str(error)) < 200
    while chain is not None:  # level after level: all at once would be too deep for Python
        chain = chain.after
    while deep:
        deep = deep[0]


def test_a_long_path_is_cut_and_the_reason_comes_first():
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


def test_explaining_keeps_to_its_time():
    assert explain.explain(TypeError("x"), {"deep": [[[LOCK]]]}, seconds=0).path == "deep"


def test_a_failure_that_no_part_explains_is_told_as_it_was():
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


def test_a_big_global_is_named_with_its_size(small_limit, tmp_path):
    f = cell_function("def f(): return table, small", table=np.zeros(5 * MB, np.uint8), small=[1])
    (message,) = _warnings_of(f, tmp_path)
    assert "f captures `table` (5 MB)" in message


def test_a_big_closure_variable_and_a_big_tensor_are_named(small_limit, tmp_path):
    tensor = torch.zeros(3 * MB, dtype=torch.uint8)

    def user():
        return tensor

    (message,) = _warnings_of(user, tmp_path)
    assert "captures `tensor` (3 MB)" in message


def test_a_big_global_of_two_functions_is_named_once(small_limit, tmp_path):
    table = b"x" * (2 * MB)
    inner = cell_function("def f(): return table", table=table)
    f = cell_function("def f(): return table, inner()", table=table, inner=inner)
    assert len(_warnings_of(f, tmp_path)) == 1


def test_big_arguments_and_small_captures_are_not_warned_of(small_limit, tmp_path):
    f = cell_function("def f(x): return small", small=np.zeros(MB // 2, np.uint8))
    assert _warnings_of((f, (np.zeros(4 * MB, np.uint8),)), tmp_path) == []


def test_a_modules_own_globals_are_not_captures(small_limit, tmp_path):
    module = types.ModuleType("module_of_test_packing")
    exec("def f(): return table", module.__dict__)
    module.table = np.zeros(4 * MB, np.uint8)
    sys.modules[module.__name__] = module
    try:
        assert _warnings_of((module.f, np.zeros(4 * MB, np.uint8)), tmp_path) == []
    finally:
        del sys.modules[module.__name__]


def test_what_stands_in_for_a_module_is_found_after_a_look_at_them_all(monkeypatch, tmp_path):
    """A forkserver looks at all modules; what its children import and remove later counts too."""
    from icelaunch_nb.pickling import modules

    def as_packed(name: str) -> object:
        (tmp_path / f"{name}.py").write_text(
            f"import sys\nclass C: pass\nsys.modules[{name!r}] = C()\n"
        )
        packing.dump(importlib.import_module(name), tmp_path / "call.pkl")
        return packing.load(tmp_path / "call.pkl")

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(modules, "_scanned", {})
    assert as_packed("before_the_look") is sys.modules["before_the_look"]
    modules.scan_modules()
    assert as_packed("before_the_look") is sys.modules["before_the_look"]
    assert as_packed("after_the_look") is sys.modules["after_the_look"]
    del sys.modules[modules._scanned["last"]]
    assert as_packed("after_a_removal") is sys.modules["after_a_removal"]
