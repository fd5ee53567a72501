"""What a notebook's functions refer to is pickled with them, or refused before any process starts.

The message of a refusal says what to do instead.
"""

from __future__ import annotations

from typing import Any

import pytest

HAND_MADE = """
import sys, types
class Config(types.ModuleType):
    def twice(self):
        return 2 * self.x
config = Config("config_of_this_cell"); config.x = 5
shadow = types.ModuleType("json"); shadow.x = 6
stub = types.ModuleType("stub_of_this_cell"); stub.__path__ = []
stub.inner = types.ModuleType("stub_of_this_cell.inner"); stub.inner.outer = stub
code = "count = 1\\nclass Kind: pass\\ndef more(): return count + 1, Kind().__class__ is Kind"
exec(code, stub.inner.__dict__)
sys.modules.update({"stub_of_this_cell": stub, "stub_of_this_cell.inner": stub.inner})
from stub_of_this_cell.inner import more
"""
LAZY = """
import importlib.util, sys, types
def lazily(name):
    spec = importlib.util.find_spec(name)
    loader = spec.loader = importlib.util.LazyLoader(spec.loader)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
colours = lazily("colorsys")
class Later(types.ModuleType):
    def __getattr__(self, name):
        vars(self).update(vars(importlib.import_module(self.__name__)))
        return vars(self)[name]
asleep, awake = Later("fractions"), Later("fractions")
awake.Fraction
"""

FILES = """
import importlib.util
folder = HOME / "elsewhere" / "parts"
folder.mkdir(parents=True, exist_ok=True)
(folder / "__init__.py").write_text("from . import inner")
(folder / "inner.py").write_text(
    "import enum\\nclass K: pass\\nclass E(enum.Enum):\\n    A = 1\\ndef g(): return K()"
)
(folder.parent / "shadow.py").write_text("x = 7")
(folder.parent / "gone.py").write_text("x = 8\\ndef g(): return x")
def from_file(name, file, **options):
    spec = importlib.util.spec_from_file_location(name, file, **options)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
package = from_file(
    "parts_of_this_cell", folder / "__init__.py", submodule_search_locations=[str(folder)]
)
shadow = from_file("this", folder.parent / "shadow.py")
gone = from_file("gone_with_its_file", folder.parent / "gone.py")
(folder.parent / "gone.py").unlink()
from parts_of_this_cell.inner import E, K, g
"""
OPERATORS = """
import torch
@torch.library.custom_op("cells::add", mutates_args=())
def add(x: torch.Tensor, n: int = 1) -> torch.Tensor:
    return x + n
@add.register_kernel("cpu")
def _(x, n=1):
    return x + 10 * n
@add.register_fake
def _(x, n=1):
    return torch.empty_like(x)
def backward(ctx, grad):
    return add(grad), None
add.register_autograd(backward)
@torch.library.custom_op("cells::double", mutates_args={"x"}, device_types="cpu")
def double(x: torch.Tensor) -> None:
    x.mul_(2)
@torch.library.triton_op("cells_by_triton::half", mutates_args=())
def half(x: torch.Tensor) -> torch.Tensor:
    return x / 2
by_name, namespace = torch.ops.cells.add, torch.ops.cells
(HOME / "operators_of_a_module.py").write_text(
    "import torch\\nlib = torch.library.Library('of_a_module', 'DEF')\\n"
    "lib.define('same(Tensor x) -> Tensor')\\nlib.impl('same', lambda x: x, 'CPU')")
import operators_of_a_module
"""
SCRIPTED = """
import torch
from typing import List
def plus(x: torch.Tensor, n: int = 3):
    return x + n
@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    n: List[int] = [3]
    return plus(x, n[0])
@torch.jit.script
def named(x: torch.Tensor):
    return plus(x, n=4)
traced = torch.jit.trace(lambda x: x * 2, torch.ones(1))
net = torch.jit.script(torch.nn.Linear(1, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.within = net
    def forward(self, x):
        return named(self.within(x))
exported = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(2),))
"""
MISLEADING = """
class Named:
    def __init__(self, of):
        object.__setattr__(self, "of", of)
    def __getattr__(self, name):
        return getattr(self.of, name)
    @property
    def __class__(self):
        return type(self.of)
class Silent:
    __class__ = dict
class Listed(list):
    __class__ = type(lambda: 0)
class Deep:
    __slots__ = ("__dict__", "slotted")
    def __init__(self):
        self.inner, self.slotted = {"x": 3}, 4
    def __getattr__(self, name):
        return self.inner[name]
class Options(dict):
    def __init__(self, **given):
        super().__init__(**given)
        self.__dict__["frozen"] = True
    def __getattr__(self, name):
        return self.parent[name]
class Any:
    def __getattr__(self, name):
        raise RuntimeError(name)
named, silent, listed, deep = Named([1, 2]), Silent(), Listed([5]), Deep()
options, anything = Options(a=1), Any()
from unittest.mock import MagicMock
mock = MagicMock(spec=dict); mock.get.return_value = 6
"""
WEAK = """
import weakref
class Node:
    every, by_name = weakref.WeakSet(), weakref.WeakValueDictionary()
    def __init__(self, name, parent=None):
        self.name, self.children, self.parent = name, [], parent and weakref.ref(parent)
        Node.every.add(self); Node.by_name[name] = self
    def say(self):
        return self.name
root = Node("root"); root.children.append(Node("leaf", root))
leaf, say = weakref.ref(root.children[0]), weakref.WeakMethod(root.say)
proxy, dead = weakref.proxy(root), weakref.ref(Node("gone"))
notes = weakref.WeakKeyDictionary({root: "noted"})
"""
LIBRARIES = """
import ctypes
libc, libm = ctypes.CDLL("libc.so.6"), ctypes.cdll.LoadLibrary("libm.so.6")
everything = ctypes.CDLL(None)
libm.sqrt.restype, libm.sqrt.argtypes = ctypes.c_double, [ctypes.c_double]
root, api = libm.sqrt, ctypes.pythonapi
Pair, Callback = ctypes.c_int * 2, ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
class Both(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("bytes", ctypes.c_ubyte * 4)]
class Part(ctypes.Structure):
    _pack_, _anonymous_, _layout_ = 1, ("both",), "ms"
    _fields_ = [("both", Both), ("letter", ctypes.c_char)]
    def more(self):
        return self.number + 1
class Link(ctypes.Structure): pass
Link._fields_ = [("value", ctypes.c_int), ("next", ctypes.POINTER(Link))]
part = Part(); part.number = 3
"""

# What to run in one cell; what to evaluate in the next; what that must be.
CELLS: dict[str, tuple[str, str, Any]] = {
    "flags of torch's backends": (
        "import torch\ndef seed(s):\n    torch.manual_seed(s)\n"
        "    torch.backends.cudnn.deterministic = True\n"
        "    torch.backends.mkldnn.enabled\n    torch.backends.cuda.matmul.allow_tf32 = True\n"
        "    return torch.backends.cudnn.deterministic",
        "results(seed, 3, ranks=1)",
        {0: True},
    ),
    "modules of a class of their own, under a name, as a default, in a class, "
    "in a closure and as an argument": (
        "import torch\nimport torch._dynamo.config as dynamo\nfrom torch.backends import cudnn\n"
        "class Holder:\n    held = torch.backends.mkldnn\n"
        "def outer():\n    inside = torch.classes\n"
        "    def use(given, usual=torch.ops):\n"
        "        return [given is torch.backends, usual is torch.ops, inside is torch.classes, "
        "Holder.held is torch.backends.mkldnn,\n"
        "                cudnn is torch.backends.cudnn, dynamo is torch._dynamo.config]\n"
        "    return use",
        "results(outer(), torch.backends, ranks=1)",
        {0: [True] * 6},
    ),
    "torch's operators": (
        "import torch\naten, add, overload = torch.ops.aten, torch.ops.aten.add, "
        "torch.ops.aten.add.Tensor\n"
        "def use(x):\n    return aten is torch.ops.aten, add is aten.add, "
        "overload is add.Tensor, add(x, 1).item()",
        "results(use, torch.ones(1), ranks=1)",
        {0: (True, True, True, 2.0)},
    ),
    "limits of torch's dtypes": (
        "import torch\nhalf, byte = torch.finfo(torch.float16), torch.iinfo(torch.uint8)\n"
        "def use():\n    return half.max, byte.max, byte",
        "results(use, ranks=1)[0] == (65504.0, 255, byte)",
        True,
    ),
    "a package that loads itself on first use": (
        "import transformers\ndef use():\n"
        "    return transformers.__version__ == expected, type(transformers).__name__\n"
        "expected = transformers.__version__",
        "results(use, ranks=1)",
        {0: (True, "_LazyModule")},
    ),
    "modules that load themselves on first use": (
        LAZY + "def use():\n    return colours.rgb_to_hsv(1, 0, 0), "
        "asleep.Fraction(1, 2) + awake.Fraction(1, 2), colours is sys.modules['colorsys']",
        "results(use, ranks=1)[0] == ((0.0, 1.0, 1), 1, True)",
        True,
    ),
    "a module whose class was patched": (
        "import types, wave\nclass Loud(types.ModuleType): pass\nwave.__class__ = Loud\n"
        "def use():\n    return wave.__name__, wave.Error.__name__",
        "results(use, ranks=1)",
        {0: ("wave", "Error")},
    ),
    "modules made by hand": (
        HAND_MADE + "def use():\n    import stub_of_this_cell.inner as found\n"
        "    return config.twice(), shadow.x, more(), stub.inner is found, found.outer is stub",
        "results(use, ranks=1)",
        {0: (10, 6, (2, True), True, True)},
    ),
    "a module as a value": (
        "import torch\ndef use():\n    return torch.backends.cudnn",
        "results(use, ranks=1)[0] is torch.backends.cudnn",
        True,
    ),
    "compiled functions": (
        "import torch\nmade = 0\ndef backend(graph, inputs):\n    global made\n    made += 1\n"
        "    return graph.forward\n"
        "@torch.compile(backend=backend)\ndef down(x, n):\n"
        "    return x if n == 0 else down(x * 2, n - 1)\n"
        "plain = torch.compile(lambda x: x + 1, backend=backend, dynamic=True, fullgraph=True)\n"
        "plain(torch.ones(1))\n"
        "class Trainer:\n    @torch.no_grad()\n    @torch.compile(backend='eager')\n"
        "    def step(self, x):\n        return x * 3\n"
        "def use():\n    x = torch.ones(1)\n"
        "    return down(x, 1).sum().item(), plain(x).sum().item(), "
        "Trainer().step(x).sum().item(), made > 1, plain",
        "made, [(*r[:4], r[4](torch.ones(1)).item()) for r in results(use).values()]",
        (1, [(2.0, 2.0, 3.0, True, 2.0)] * 2),
    ),
    "compiled modules": (
        "import torch\nnet = torch.nn.Linear(2, 2)\n"
        "twin = torch.compile(net, backend='eager', dynamic=False)\n"
        "own = torch.nn.Linear(2, 2)\nown.compile(backend='eager')\n"
        "def use(x):\n    return twin._orig_mod is net, type(twin).__name__, "
        "own._compiled_call_impl is not None, own(x).detach(), twin(x).detach()",
        "x = torch.ones(1, 2); r = results(use, x, ranks=1)[0]; "
        "(*r[:3], torch.equal(r[3], own(x)), torch.equal(r[4], net(x)))",
        (True, "OptimizedModule", True, True, True),
    ),
    "modules that were loaded from files off the path": (
        FILES + "kept = K()\ndef use(given=kept):\n"
        "    return type(g()) is type(given) is package.inner.K, E.A, given, shadow.x, "
        "gone.g(), package.__name__",
        "r = results(use, ranks=1)[0]; r[0], r[1] is E.A, type(r[2]) is K, r[3:]",
        (True, True, True, (7, 8, "parts_of_this_cell")),
    ),
    "operators of cells": (
        OPERATORS + "def use():\n    x, y = torch.ones(1, requires_grad=True), torch.ones(1)\n"
        "    by_name(x, 2).sum().backward()\n    double(y)\n"
        "    fake = torch.compile(add, backend='eager', fullgraph=True)(y)\n"
        "    return x.grad.item(), y.item(), fake.item(), namespace.add(y).item(), "
        "half(y).item(), torch.ops.of_a_module.same(y).item(), add",
        "r = results(use, ranks=1)[0]; r[:6], r[6] is add",
        ((11.0, 2.0, 12.0, 12.0, 1.0, 2.0), True),
    ),
    "operators that are named alone": (
        OPERATORS.replace("cells", "more_cells") + "def use():\n    def inner():\n        return "
        "torch.ops.more_cells.add(torch.ones(1)).item()\n    return inner()",
        "results(use, ranks=1)",
        {0: 11.0},
    ),
    "scripted, traced and exported code": (
        SCRIPTED + "def use():\n    x, before = torch.ones(1), net.weight.item()\n"
        "    calls = torch.jit.script(Net())\n "
        "   net(x).backward()\n    optimizer.step()\n"
        "    return scripted(x).item(), named(x).item(), traced(x).item(), "
        "round(before - net.weight.item(), 3), type(named).__name__, calls(x).shape, "
        "exported.module()(torch.ones(2)).shape, named, net",
        "r = results(use, ranks=1)[0]; r[:5], list(r[5] + r[6]), r[7](torch.ones(1)).item(), "
        "[n for n, _ in r[8].named_parameters()]",
        ((4.0, 5.0, 2.0, 1.0, "ScriptFunction"), [1, 2], 5.0, ["weight", "bias"]),
    ),
    "instances that say they are of another class, or answer to every name": (
        MISLEADING + "def use():\n    return (named.__len__(), type(named) is Named, "
        "isinstance(silent, dict), type(silent) is Silent, list.__len__(listed), "
        "deep.x, deep.slotted, options['a'], options.frozen, type(anything) is Any, mock.get(1), "
        "named, silent, listed, deep)",
        "r = results(use, ranks=1)[0]; r[:11], [type(one).__name__ for one in r[11:]], r[14].x",
        (
            (2, True, True, True, 1, 3, 4, 1, True, True, 6),
            ["Named", "Silent", "Listed", "Deep"],
            3,
        ),
    ),
    "weak references": (
        WEAK + "def use():\n    return (leaf().name, leaf().parent().children[0] is leaf(), "
        "say()(), proxy.name, "
        "type(proxy).__name__, dead(), sorted(n.name for n in Node.every), "
        "sorted(Node.by_name), len(notes), notes[leaf().parent()])",
        "results(use, ranks=1)",
        {
            0: (
                "leaf",
                True,
                "root",
                "root",
                "ProxyType",
                None,
                ["leaf", "root"],
                ["leaf", "root"],
                1,
                "noted",
            )
        },
    ),
    "libraries of ctypes": (
        LIBRARIES + "def use():\n    n = Link(3)\n    m = Link(4, ctypes.pointer(n))\n"
        "    return (libc.abs(-3), root(4.0), libm.sqrt(9.0), everything.abs(-1), "
        "api.Py_IsInitialized(), "
        "list(Pair(1, 2)), Callback(lambda x: x + 1)(3), part.number, "
        "part.bytes[0], part.more(), ctypes.sizeof(Part), m.next.contents.value, part)",
        "r = results(use, ranks=1)[0]; r[:12], type(r[12]) is Part, r[12].number",
        ((3, 2.0, 3.0, 1, 1, [1, 2], 4, 3, 3, 4, 5, 3), True, 3),
    ),
    "keys that compare, bound classes and storages": (
        "import functools, torch\nkey = functools.cmp_to_key(lambda a, b: b - a)\n"
        "three = key(3)\nclass A:\n"
        "    def m(self):\n        return 1\nclass B(A): pass\n"
        "bound, stored = super(B, B()), torch.ones(2).untyped_storage()\n"
        "@functools.singledispatch\ndef kind(x):\n    return 'any'\n"
        "@kind.register\ndef _(x: int):\n    return 'int'\ndef use():\n"
        "    return sorted([1, 3, 2], key=key), "
        "three < key(1), bound.m(), stored.nbytes(), kind(1), kind('')",
        "results(use, ranks=1)",
        {0: ([3, 2, 1], True, 1, 8, "int", "any")},
    ),
    "a test for a notebook": (
        "def in_notebook():\n    try:\n"
        "        return get_ipython().__class__.__name__ == 'ZMQInteractiveShell'\n"
        "    except NameError:\n"
        "        return 'get_ipython' in globals()",
        "in_notebook(), results(in_notebook)",
        (True, {0: False, 1: False}),
    ),
    "exit, quit and open": (
        "end, reading = exit, open\ndef use(other=quit):\n    import builtins, sys\n    try:\n"
        "        exit(3)\n    except SystemExit as error:\n"
        "        return error.code, end is other is builtins.exit, "
        "open is reading is builtins.open, 'IPython' in sys.modules",
        "results(use, ranks=1)",
        {0: (3, True, True, False)},
    ),
    "what happens where a body asks for the shell, and handles that there is none": (
        "run = get_ipython().run_cell_magic('icelaunch', "
        "'--nproc-per-node 1 --out found --no-panel',\n"
        "    'try:\\n    where = get_ipython().__class__\\nexcept NameError:\\n    "
        "where = None\\nwhere, in_notebook()')",
        "found",
        {0: (None, False)},
    ),
}


@pytest.mark.parametrize("what", CELLS)
def test_what_a_function_refers_to_is_pickled_with_it(kernel: Any, what: str) -> None:
    definition, expression, expected = CELLS[what]
    kernel.does(definition)
    assert kernel.value(expression) == expected


def test_what_is_displayed_is_printed(kernel: Any) -> None:
    kernel.does("def show(x):\n    display(x, 2)\n    return x")
    cell = kernel.does("results(show, 'one', ranks=1)")
    assert "one 2\n" in cell.out and cell.literal == {0: "one"}
    assert (
        "from a body\n" in kernel.does("%%icelaunch --nproc-per-node 1\ndisplay('from a body')").out
    )


def test_the_shell_itself_is_refused_by_name(kernel: Any) -> None:
    kernel.does("shell = get_ipython()\ndef use():\n    return shell.user_ns")
    cell = kernel.run("results(use)")
    assert cell.ename == "PackingError"
    assert cell.evalue.startswith(
        "use → shell (a ipykernel.zmqshell.ZMQInteractiveShell) can't be pickled: "
    )
    assert cell.evalue.endswith("it is the notebook's IPython shell, and a rank has none")


REFUSED: dict[str, tuple[str, str, str]] = {
    "lock": (
        "import threading\nit = threading.Lock()",
        "use → it (a _thread.lock)",
        "make it in the function",
    ),
    "event": (
        "import threading\nit = {'e': [threading.Event()]}",
        "use → it['e'][0] (a threading.Event)",
        "make it in the function",
    ),
    "queue": (
        "import queue\nit = queue.Queue()",
        "use → it (a queue.Queue)",
        "make it in the function",
    ),
    "queue of multiprocessing": (
        "import multiprocessing\nit = multiprocessing.Queue()",
        "use → it (a multiprocessing.queues.Queue)",
        "return values from the function",
    ),
    "executor": (
        "import concurrent.futures\nit = concurrent.futures.ThreadPoolExecutor(1)",
        "use → it (a concurrent.futures.thread.ThreadPoolExecutor)",
        "make it in the",
    ),
    "generator": (
        "it = (i for i in range(3))",
        "use → it (a generator)",
        "pass a list of its values",
    ),
    "file": (
        "it = open(HOME / 'a-file', 'w')",
        "use → it (a _io.TextIOWrapper)",
        "open it in the function, by its path",
    ),
    "socket": (
        "import socket\nit = socket.socket()",
        "use → it (a socket.socket)",
        "make it in the function",
    ),
    "database": (
        "import sqlite3\nit = sqlite3.connect(':memory:')",
        "use → it (a sqlite3.Connection)",
        "connect in the function",
    ),
    "pointer": (
        "import ctypes\nit = ctypes.CFUNCTYPE(ctypes.c_int)(int)",
        "use → it (a ctypes.CFUNCTYPE.<locals>.CFunctionType)",
        "make it in the function",
    ),
    "library that is gone": (
        "import ctypes, shutil\npath = str(HOME / 'lib.so')\n"
        "shutil.copy(next(line.split()[-1] for line in open('/proc/self/maps') "
        "if 'libc.so.6' in line), path)\n"
        "it = ctypes.CDLL(path)\nos.remove(path)",
        "use → it (a ctypes.CDLL)",
        "lib.so, is gone",
    ),
    "operators of a Library": (
        "import torch\nit = torch.library.Library('refused_cells', 'DEF')\n"
        "it.define('same(Tensor x) -> Tensor')",
        "use → it (a torch.library.Library)",
        "torch.library.custom_op",
    ),
    "an operator that a cell defined": (
        "import torch\ntorch.library.define('refused_too::same', '(Tensor x) -> Tensor')\n"
        "def helper():\n    return torch.ops.refused_too.same\nit = [helper]",
        "use → it[0] (a function)",
        "torch.ops.refused_too.same is registered by the notebook alone",
    ),
    "one named by its name": (
        "import torch\nlib = torch.library.Library('refused_three', 'DEF')\n"
        "lib.define('same(Tensor x) -> Tensor')\nit = torch.ops.refused_three.same",
        "use → it (a torch._ops.OpOverloadPacket)",
        "define it with torch.library.custom_op, in a module, or in the function",
    ),
    "a scripted module that calls Python": (
        "import torch\nclass Net(torch.nn.Module):\n    @torch.jit.ignore\n"
        "    def side(self, x: int) -> int:\n        return x\n"
        "    def forward(self, x: int):\n        return self.side(x)\nit = torch.jit.script(Net())",
        "use → it (a torch.jit._script.RecursiveScriptModule)",
        "script it in the function",
    ),
    "a class that can't be found out": (
        "class C:\n    @property\n    def __class__(self):\n        raise RuntimeError('none')\n"
        "it = C()",
        "use (a function)",
        "`it` (a C) doesn't give its class: RuntimeError: none",
    ),
    "a reduction that leaves": (
        "class C:\n    def __reduce__(self):\n        raise SystemExit(3)\nit = C()",
        "use → it (a C)",
        "SystemExit: 3",
    ),
}


def test_what_cant_be_pickled_is_refused_with_what_to_do_instead(kernel: Any) -> None:
    for what, (definition, path, remedy) in REFUSED.items():
        cell = kernel.run(f"{definition}\ndef use():\n    return it\nresults(use)")
        assert cell.ename == "PackingError", (what, cell)
        assert cell.evalue.startswith(f"{path} can't be pickled: ") and remedy in cell.evalue, what


NAMED = """
import dataclasses, enum, sys, typing
from typing import Callable, Generic, NewType, ParamSpec, TypeVar
import typing_extensions
T, P, Seconds = TypeVar("T"), ParamSpec("P"), NewType("Seconds", int)
Ts = typing_extensions.TypeVarTuple("Ts")
Pair = typing_extensions.TypeAliasType("Pair", tuple[T, T], type_params=(T,))
Usual = typing_extensions.TypeVar("Usual", default=int)
def logged(fn: Callable[P, T]) -> Callable[P, T]:
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        return fn(*args, **kwargs)
    return inner
class Task(Generic[P, T]):
    def __init__(self, fn: Callable[P, T]):
        self.fn = fn
class Missing:
    __slots__ = ("note",)
    def __reduce__(self):
        return "MISSING"
MISSING = Missing()
MISSING.note = "none"
OLD = Missing()
class Only:
    made = None
    def __new__(cls):
        cls.made = cls.made or super().__new__(cls)
        return cls.made
    def __reduce__(self):
        return "only"
only = Only()
class Limit(int):
    def __reduce__(self):
        return "LIMIT"
LIMIT = Limit(7)
class Planet(enum.Enum):
    EARTH = (5.976e24, 6.37814e6)
    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius
class Label(str, enum.Enum):
    def __new__(cls, value, doc):
        member = str.__new__(cls, value)
        member._value_, member.doc = value, doc
        return member
    A = ("a", "first")
class Count(enum.Enum):
    def __new__(cls):
        member = object.__new__(cls)
        member._value_ = len(cls.__members__) + 1
        return member
    ONE = ()
    TWO = ()
@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    height: int
class Paper(Size, enum.Enum):
    A5 = 148, 210
    A4 = 210, 297
class Refused(Exception):
    def __init__(self, code, why):
        super().__init__(f"{code}: {why}")
        self.code = code
"""


@pytest.fixture(scope="module")
def named(kernel: Any) -> Any:
    kernel.does(NAMED)
    return kernel


def test_what_pickle_would_store_by_name_is_pickled_by_value(named: Any) -> None:
    named.does("""
@logged
def use(x: Seconds, *rest: Ts, given=MISSING, old=OLD, pair: "Pair[int]" = (1, 1),
        other: Usual = 1, blank=dataclasses.MISSING):
    import copy, pickle
    assert given is MISSING and given.note == "none" and type(old) is Missing and old is not MISSING
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING and copy.copy(P) is P
    assert pickle.loads(pickle.dumps(Seconds)) is Seconds
    assert Only() is only and LIMIT + 1 == 8 and blank is dataclasses.MISSING
    assert Seconds.__module__ == "__main__" and Seconds.__supertype__ is int
    assert Pair.__type_params__ == (T,)
    assert Task.__parameters__ == (P, T) and Task(len).fn("ab") == 2 and Usual.__default__ is int
    assert Planet.EARTH.radius == 6.37814e6 and Planet((5.976e24, 6.37814e6)) is Planet.EARTH
    assert Label("a") is Label.A == "a" and Label.A.doc == "first"
    assert Count(2) is Count.TWO and list(Count) == [Count.ONE, Count.TWO]
    assert Paper.A4.height == 297 and Paper(Paper.A5.value) is Paper.A5
    assert [p.width for p in Paper] == [148, 210] and isinstance(Paper.A4, Size)
    types = [T, P, Ts, Seconds, Pair, MISSING, only, Task]
    members = [Planet.EARTH, Label.A, Count.TWO, Paper.A4]
    return [*types, *members, Refused(3, "no")], LIMIT, x
""")
    names = (
        "[T, P, Ts, Seconds, Pair, MISSING, only, Task, Planet.EARTH, Label.A, Count.TWO, Paper.A4]"
    )
    assert (
        named.value(
            f"given = results(use, 5); [([a is b for a, b in zip(r[0], {names})], r[0][-1].code, "
            f"r[1] == LIMIT, r[2]) for r in given.values()]"
        )
        == [([True] * 12, 3, True, 5)] * 2
    )


def test_an_exception_can_be_an_argument_as_well_as_a_result(named: Any) -> None:
    named.does("def use(error):\n    return error.code, str(error)")
    assert named.value("results(use, Refused(3, 'no'), ranks=1)") == {0: (3, "3: no")}


def test_what_a_rank_defines_itself_can_be_loaded_in_another_kernel(
    named: Any, another: Any
) -> None:
    named.does(
        "def use():\n    global Q\n    Q = ParamSpec('Q')\n    return Q, Seconds, Task\n"
        "run = launch(use, ranks=1); run.result()"
    )
    assert named.value("'Q' in globals()") is False
    path = named.value("run.log_dir")
    assert another.value(
        f"q, seconds, task = ice.attach({path!r}).result()[0]; "
        f"q.__name__, seconds(3), task(len).fn('ab'), 'Seconds' in globals()"
    ) == ("Q", 3, 2, False)


SPAWNING = """
import multiprocessing, torch
class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return scale(i)
factor = 10
def scale(i):
    return i * factor
def collate(items):
    return Batch(items)
class Batch(list): pass
"""
LOADING = """
loader = torch.utils.data.DataLoader(
    Squares(), batch_size=2, num_workers=1, collate_fn=collate, multiprocessing_context={how!r}
)
batches = list(loader)
with multiprocessing.get_context({how!r}).Pool(1) as pool:
    scaled = pool.map(scale, [1, 2])
"""


@pytest.mark.parametrize("how", ["spawn", "forkserver"])
def test_processes_that_a_rank_spawns_know_what_the_cells_define(kernel: Any, how: str) -> None:
    body = LOADING.format(how=how)
    kernel.does(
        SPAWNING
        + "def use():\n"
        + "".join(f"    {line}\n" for line in body.strip().splitlines())
        + "    return batches, scaled"
    )
    assert kernel.value("r = results(use, ranks=1)[0]; r, [type(b) is Batch for b in r[0]]") == (
        ([[0, 10], [20, 30]], [10, 20]),
        [True] * 2,
    )
    # The same for what the body of a magic cell defines.
    kernel.does("del Squares, scale, collate, Batch, factor")
    kernel.does(
        f"%%icelaunch --nproc-per-node 1 --out found --no-panel\n{SPAWNING}{body}\n"
        f"[list(b) for b in batches], scaled"
    )
    assert kernel.value("found") == {0: ([[0, 10], [20, 30]], [10, 20])}
