"""Anything that a cell can define can be launched, and comes back."""

from __future__ import annotations

from typing import Any

import pytest

# What to run in one cell; what to evaluate in the next; what that must be.
CELLS: dict[str, tuple[str, str, Any]] = {
    "a function": (
        "def double(x):\n    return 2 * x",
        "results(double, 21)",
        {0: 42, 1: 42},
    ),
    "a function that knows its rank": (
        "def who():\n    context = ice.get_context()\n    return context.rank, context.world_size",
        "results(who)",
        {0: (0, 2), 1: (1, 2)},
    ),
    "a lambda": ("square = lambda x: x * x", "results(square, 3)", {0: 9, 1: 9}),
    "a closure": (
        "def adder(n):\n    def add(x):\n        return x + n\n    return add",
        "results(adder(5), 1)",
        {0: 6, 1: 6},
    ),
    "a closure with nonlocal state": (
        "def counter():\n    count = 0\n    def up():\n        nonlocal count\n"
        "        count += 1\n        return count\n    return up\n"
        "up = counter(); up()",
        "results(up), up()",
        ({0: 2, 1: 2}, 2),
    ),
    "a nested function": (
        "def outer(x):\n    def inner(y):\n        return x * y\n"
        "    return [inner(y) for y in range(3)]",
        "results(outer, 2)",
        {0: [0, 2, 4], 1: [0, 2, 4]},
    ),
    "a decorated function": (
        "import functools\n"
        "def twice(fn):\n    @functools.wraps(fn)\n    def both(*args):\n"
        "        return [fn(*args), fn(*args)]\n    return both\n"
        "@twice\ndef greet(name):\n    return 'hello ' + name",
        "results(greet, 'you')",
        {0: ["hello you"] * 2, 1: ["hello you"] * 2},
    ),
    "a cached function": (
        "import functools\n@functools.cache\ndef fib(n):\n"
        "    return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "def use():\n    return fib(30)",
        "results(use)",
        {0: 832040, 1: 832040},
    ),
    "a single-dispatch function": (
        "import functools\n@functools.singledispatch\ndef show(x):\n    return 'any'\n"
        "@show.register\ndef _(x: int):\n    return 'int'\ndef use():\n"
        "    return show(1), show('')",
        "results(use)",
        {0: ("int", "any"), 1: ("int", "any")},
    ),
    "a function decorated by torch": (
        "import torch\n@torch.no_grad()\ndef use():\n    return torch.is_grad_enabled()",
        "results(use)",
        {0: False, 1: False},
    ),
    "a context manager": (
        "import contextlib\n@contextlib.contextmanager\ndef opened():\n    yield 4\ndef use():\n"
        "    with opened() as v:\n        return v",
        "results(use)",
        {0: 4, 1: 4},
    ),
    "a partial": (
        "from functools import partial\ndef power(base, exponent):\n    return base ** exponent",
        "results(partial(power, exponent=3), 2)",
        {0: 8, 1: 8},
    ),
    "keyword arguments and defaults": (
        "def listed(a, /, b=2, *rest, c, **others):\n    return a, b, rest, c, others",
        "ice.launch(listed, (1,), {'c': 3, 'd': 4}, nproc_per_node=1).result()",
        {0: (1, 2, (), 3, {"d": 4})},
    ),
    "a recursive function": (
        "def depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)",
        "results(depth, 50)",
        {0: 50, 1: 50},
    ),
    "a class with super()": (
        "class Base:\n    def name(self):\n        return 'base'\n"
        "class Child(Base):\n    def name(self):\n        return 'child of ' + super().name()\n"
        "def use():\n    return Child().name()",
        "results(use)",
        {0: "child of base", 1: "child of base"},
    ),
    "a bound method": (
        "class Scale:\n    def __init__(self, by):\n        self.by = by\n"
        "    def __call__(self, x):\n        return x * self.by\n"
        "    def apply(self, x):\n        return self(x)",
        "results(Scale(4).apply, 2), results(Scale(4), 2)",
        ({0: 8, 1: 8}, {0: 8, 1: 8}),
    ),
    "static methods, class methods and properties": (
        "class Kit:\n    size = 3\n    @staticmethod\n    def add(a, b):\n        return a + b\n"
        "    @classmethod\n    def big(cls):\n        return cls.size * 10\n    @property\n"
        "    def half(self):\n        return self.size / 2\n"
        "def use():\n    return Kit.add(1, 2), Kit.big(), Kit().half",
        "results(use)",
        {0: (3, 30, 1.5), 1: (3, 30, 1.5)},
    ),
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass Config:\n    lr: float = 0.5\n"
        "    steps: int = 3\n"
        "def use(config):\n    return Config(config.lr * 2, config.steps)",
        "[(isinstance(c, Config), c == Config(0.2, 3)) "
        "for c in results(use, Config(0.1)).values()]",
        [(True, True)] * 2,
    ),
    "a slotted, frozen dataclass": (
        "from dataclasses import dataclass\n@dataclass(frozen=True, slots=True)\nclass Point:\n"
        "    x: int\n"
        "def use(p):\n    return Point(p.x + 1)",
        "[p == Point(2) for p in results(use, Point(1)).values()]",
        [True] * 2,
    ),
    "an enum": (
        "from enum import Enum\nclass Mode(Enum):\n    TRAIN = 1\n    TEST = 2\n"
        "def use(mode):\n    assert mode is Mode.TRAIN\n    return Mode.TEST",
        "[m is Mode.TEST for m in results(use, Mode.TRAIN).values()]",
        [True] * 2,
    ),
    "a dataclass with slots": (
        "from dataclasses import dataclass\n@dataclass(slots=True)\nclass Point:\n    x: int\n"
        "def use(p):\n    return Point(p.x + 1)",
        "[p == Point(2) for p in results(use, Point(1)).values()]",
        [True] * 2,
    ),
    "classes with __slots__": (
        "class Slotted:\n    __slots__ = ('a', '__private')\n    def __init__(self):\n"
        "        self.a, self.__private = 1, 2\n"
        "    def both(self):\n        return self.a, self.__private\nclass More(Slotted):\n"
        "    __slots__ = 'b'\n"
        "def use():\n    more = More()\n    more.b = 3\n    return more, hasattr(more, '__dict__')",
        "[(type(more) is More, more.both(), more.b, free) for more, free in results(use).values()]",
        [(True, (1, 2), 3, False)] * 2,
    ),
    "a cached property and a cached method": (
        "import functools\nclass Lazy:\n    @functools.cached_property\n    def x(self):\n"
        "        return 5\n"
        "    @functools.lru_cache\n    def y(self):\n        return 6\ndef use():\n"
        "    lazy = Lazy()\n    return lazy.x, lazy.y(), vars(lazy)",
        "results(use)",
        {0: (5, 6, {"x": 5}), 1: (5, 6, {"x": 5})},
    ),
    "types of one's own in annotations": (
        "from typing import Generic, NewType, Protocol, TypedDict, TypeVar\n"
        "UserId = NewType('UserId', int)\nT = TypeVar('T')\n"
        "class Box(Generic[T]):\n    pass\nclass Row(TypedDict):\n    a: int\n"
        "class Named(Protocol):\n    name: str\n"
        "def use(x: UserId, box: Box[int] | None = None, named: Named | None = None) -> Row:\n"
        "    return Row(a=x)",
        "results(use, UserId(3))",
        {0: {"a": 3}, 1: {"a": 3}},
    ),
    "a gradient of one's own": (
        "import torch\nclass Triple(torch.autograd.Function):\n    @staticmethod\n"
        "    def forward(ctx, x):\n        return x * 2\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return g * 3\n"
        "def use():\n    x = torch.ones(1, requires_grad=True)\n    Triple.apply(x).backward()\n"
        "    return x.grad.item()",
        "results(use)",
        {0: 3.0, 1: 3.0},
    ),
    "processes of the rank's own": (
        "import multiprocessing\ndef square(x):\n    return x * x\ndef use():\n"
        "    with multiprocessing.Pool(2) as pool:\n"
        "        return pool.map(square, [1, 2, 3])",
        "results(use, ranks=1)",
        {0: [1, 4, 9]},
    ),
    "a named tuple": (
        "from typing import NamedTuple\nclass Pair(NamedTuple):\n    a: int\n    b: int\n"
        "def use():\n    return Pair(1, 2)",
        "[isinstance(p, Pair) and p.b == 2 for p in results(use).values()]",
        [True] * 2,
    ),
    "an abstract class and a metaclass": (
        "import abc\nclass Shape(abc.ABC):\n    @abc.abstractmethod\n    def area(self): ...\n"
        "class Square(Shape):\n    def area(self):\n        return 4\n"
        "class Meta(type):\n    def __len__(cls):\n        return 7\n"
        "class Odd(metaclass=Meta): pass\n"
        "def use():\n    return Square().area(), len(Odd), isinstance(Square(), Shape)",
        "results(use)",
        {0: (4, 7, True), 1: (4, 7, True)},
    ),
    "a generator used inside": (
        "def numbers(n):\n    for i in range(n):\n        yield i\ndef total():\n"
        "    return sum(numbers(5))",
        "results(total)",
        {0: 10, 1: 10},
    ),
    "an async function used inside": (
        "import asyncio\nasync def later(x):\n    await asyncio.sleep(0)\n    return x\n"
        "def use():\n    return asyncio.run(later(3))",
        "results(use)",
        {0: 3, 1: 3},
    ),
    "functions and globals of other cells": (
        "offset = 100\ndef helper(x):\n    return x + offset\n",
        "exec('def use():\\n    return helper(helper(1))') or results(use)",
        {0: 201, 1: 201},
    ),
    "functions that call each other": (
        "def even(n):\n    return True if n == 0 else odd(n - 1)\ndef odd(n):\n"
        "    return False if n == 0 else even(n - 1)",
        "results(even, 10)",
        {0: True, 1: True},
    ),
    "the global statement": (
        "total = 1\ndef more():\n    global total\n    total += 1\n    return total\ndef use():\n"
        "    more()\n    return more(), total",
        "results(use), total",
        ({0: (3, 3), 1: (3, 3)}, 1),
    ),
    "a module imported in a cell": (
        "import math as m\nfrom collections import Counter\ndef use():\n"
        "    return m.factorial(4), Counter('aab')['a']",
        "results(use)",
        {0: (24, 2), 1: (24, 2)},
    ),
    "an exception class as a value": (
        "class Odd(ValueError):\n    def __init__(self, code):\n        super().__init__(code)\n"
        "        self.code = code\n"
        "def use():\n    return Odd(7)",
        "[(type(e) is Odd, e.code) for e in results(use).values()]",
        [(True, 7)] * 2,
    ),
    "a class as a value": (
        "class Thing: pass\ndef use():\n    return Thing",
        "[cls is Thing for cls in results(use).values()]",
        [True] * 2,
    ),
    "containers of instances": (
        "class Item:\n    def __init__(self, n):\n        self.n = n\ndef use():\n"
        "    shared = Item(1)\n    return {'a': [shared, (shared,)]}",
        "[isinstance(r['a'][0], Item) and r['a'][0] is r['a'][1][0] "
        "for r in results(use).values()]",
        [True] * 2,
    ),
    "an instance with its class's new method": (
        "class Late:\n    pass\nlate = Late()\nLate.hello = lambda self: 'hello'\ndef use():\n"
        "    return late.hello()",
        "results(use)",
        {0: "hello", 1: "hello"},
    ),
    "a module of one's own": (
        "import torch\n"
        "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer = torch.nn.Linear(3, 2)\n"
        "    def forward(self, x):\n        return self.layer(x)\n"
        "net = Net()\ndef use(net):\n    return net, net(torch.ones(1, 3)).detach()",
        "[(isinstance(n, Net), torch.equal(n.layer.weight, net.layer.weight), "
        "torch.allclose(net(torch.ones(1, 3)), out))"
        " for n, out in results(use, net).values()]",
        [(True, True, True)] * 2,
    ),
    "a data set with DataLoader workers": (
        "import torch\n"
        "class Squares(torch.utils.data.Dataset):\n    def __len__(self):\n        return 8\n"
        "    def __getitem__(self, i):\n        return scale(i)\n"
        "def scale(i):\n    return i * i\n"
        "def use():\n    loader = torch.utils.data.DataLoader(Squares(), batch_size=4, "
        "num_workers=2)\n"
        "    return [batch.tolist() for batch in loader]",
        "results(use)",
        {rank: [[0, 1, 4, 9], [16, 25, 36, 49]] for rank in (0, 1)},
    ),
    "a model saved and loaded by name in the rank": (
        "import io, torch\nclass Tiny(torch.nn.Linear): pass\n"
        "def use():\n    file = io.BytesIO()\n    torch.save(Tiny(1, 1), file)\n    file.seek(0)\n"
        "    return type(torch.load(file, weights_only=False)) is Tiny",
        "results(use)",
        {0: True, 1: True},
    ),
    "a collective": (
        "def use():\n    import torch, torch.distributed as dist\n"
        "    dist.init_process_group('gloo')\n"
        "    x = torch.tensor([dist.get_rank() + 1.0])\n    dist.all_reduce(x)\n"
        "    dist.destroy_process_group()\n    return x.item()",
        "results(use)",
        {0: 3.0, 1: 3.0},
    ),
}


@pytest.mark.parametrize("what", CELLS)
def test_what_a_cell_defines_runs_on_every_rank(kernel: Any, what: str) -> None:
    definition, expression, expected = CELLS[what]
    kernel.does(definition)
    assert kernel.value(expression) == expected


def test_a_redefined_class_and_an_old_instance(kernel: Any) -> None:
    kernel.does("class Thing:\n    version = 1\n    def __init__(self):\n        self.n = 5")
    kernel.does("old = Thing()")
    kernel.does("class Thing:\n    version = 2\n    def __init__(self):\n        self.n = 6")
    kernel.does("def use(thing):\n    return thing.version, thing.n, Thing().version, thing")
    assert (
        kernel.value("OldThing = type(old); r = results(use, old); [v[:3] for v in r.values()]")
        == [(1, 5, 2)] * 2
    )
    assert (
        kernel.value("[(isinstance(v[3], OldThing), isinstance(v[3], Thing)) for v in r.values()]")
        == [(True, False)] * 2
    )


def test_a_redefined_function_runs_as_it_is_now(kernel: Any) -> None:
    kernel.does("def helper():\n    return 'old'\ndef use():\n    return helper()")
    assert kernel.value("results(use)") == {0: "old", 1: "old"}
    kernel.does("def helper():\n    return 'new'")
    assert kernel.value("results(use)") == {0: "new", 1: "new"}


def test_removed_variables_are_not_there(kernel: Any) -> None:
    kernel.does("leftover = 1\ndef use():\n    return leftover")
    assert kernel.value("results(use, ranks=1)") == {0: 1}
    kernel.does("del leftover")
    cell = kernel.run("results(use, ranks=1)")
    assert cell.ename == "RunFailed"
    assert cell.error.splitlines()[-1] == "NameError: name 'leftover' is not defined"


def test_a_rank_sees_no_variable_that_it_does_not_use(kernel: Any) -> None:
    kernel.does("secret = 'unused'\ndef use():\n    return 'secret' in globals()")
    assert kernel.value("results(use, ranks=1)") == {0: False}


def test_what_a_rank_changes_stays_in_the_rank(kernel: Any) -> None:
    kernel.does("items = [1]\ndef use():\n    items.append(2)\n    return items")
    assert kernel.value("results(use), items") == ({0: [1, 2], 1: [1, 2]}, [1])


def test_a_big_captured_global_is_named_with_its_size(kernel: Any) -> None:
    kernel.does("table = bytearray(70 << 20)\ndef use():\n    return len(table)")
    cell = kernel.does("run = launch(use)\nrun.result()")
    assert cell.literal == {0: 70 << 20, 1: 70 << 20}
    assert "BigCaptureWarning" in cell.err
    assert "`table` (70 MB)" in cell.err
    kernel.does("del table")


def test_a_big_captured_tensor_of_a_closure_is_named_too(kernel: Any) -> None:
    kernel.does(
        "import torch\ndef make():\n    weights = torch.zeros(18 << 20)\n"
        "    return lambda: weights.numel()"
    )
    cell = kernel.does("results(make(), ranks=1)")
    assert cell.literal == {0: 18 << 20}
    assert "`weights` (72 MB)" in cell.err


def test_a_small_capture_gives_no_warning(kernel: Any) -> None:
    kernel.does("small = bytearray(1 << 20)\ndef use():\n    return len(small)")
    assert kernel.does("results(use)").err == ""


def test_the_payload_is_written_once_whatever_the_number_of_ranks(kernel: Any) -> None:
    size = kernel.value("""
blob = bytearray(os.urandom(8 << 20))
go = HOME / "go-payload"
def use():
    while not go.exists():
        time.sleep(0.01)
    return len(blob)
run = launch(use, ranks=3)
until(lambda: run.state == "RUNNING")
size = sum(f.stat().st_size for f in pathlib.Path(run.log_dir).rglob("*") if f.is_file())
go.touch()
run.result(), size
""")
    assert size[0] == dict.fromkeys(range(3), 8 << 20)
    assert 8 << 20 <= size[1] < 12 << 20
