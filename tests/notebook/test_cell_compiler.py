"""The compiler makes a function of a cell's body: its free variables, its result, its errors."""

from __future__ import annotations

import ast
import linecache
import pickle
import sys
import textwrap
import traceback
import types

import cloudpickle
import pytest

from icelaunch_nb import IcelaunchError
from icelaunch_nb.notebook.magic.cell_compiler import CellSource, compile_cell
from icelaunch_nb.notebook.magic.free_variables import find_free_variables
from icelaunch_nb.pickling import packing

FIRST_LINE = "%%icelaunch -n 2"


def cell_of(body: str, flags: int = 0, **notebook):
    body = textwrap.dedent(body).strip("\n") + "\n"
    source = CellSource(f"{FIRST_LINE}\n{body}", 2, "Cell In[7]", "/nowhere/ipykernel_1/7.py")
    return compile_cell(source, body, {"__name__": "__main__", **notebook}, flags=flags)


@pytest.fixture
def run(monkeypatch):
    """Runs a body here, as rank 1 of 2."""
    for name, value in {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "ICELAUNCH_DEVICE": "cpu",
    }.items():
        monkeypatch.setenv(name, value)
    return lambda body, flags=0, **notebook: cell_of(body, flags, **notebook).function()


VALUES = {
    "the last expression": ("1\n2", 2),
    "no last expression": ("x = 1", None),
    "an empty body": ("", None),
    "a comment": ("# NBVAL_IGNORE_OUTPUT", None),
    "comments around": ("# NBVAL_IGNORE_OUTPUT\n1\n# the end", 1),
    "one docstring": ('"""Only words."""', "Only words."),
    "a docstring and more": ('"""Words."""\nlen("ab")', 2),
    "a semicolon is no loss": ("3;", 3),
    "several on one line": ("a = 1; b = 2; a + b", 3),
    "who am I": ("rank, local_rank, world_size, str(device), ctx.rank", (1, 1, 2, "cpu", 1)),
    "torch is there": ("torch.tensor(3.0).item()", 3.0),
    "a function sees the rank": ("def f():\n    return rank\nf()", 1),
    "global": ("n = 0\ndef up():\n    global n\n    n += 1\nup(); up()\nn", 2),
    "a global that only a function binds": (
        "def f():\n    global made\n    made = 5\nf()\nmade",
        5,
    ),
    "recursion": ("def fact(n):\n    return n * fact(n - 1) if n else 1\nfact(5)", 120),
    "functions that see each other": ("def a():\n    return b()\ndef b():\n    return 4\na()", 4),
    "nested functions": (
        "def f(x):\n"
        "    def g(y):\n"
        "        nonlocal x\n"
        "        x += y\n"
        "        return x\n"
        "    return g(2)\n"
        "f(1)",
        3,
    ),
    "a class": (
        "class A:\n    x = 1\n    y = x + 1\n    def f(self):\n        return self.y, A.x\nA().f()",
        (2, 1),
    ),
    "a subclass with super": (
        "class A:\n"
        "    def f(self):\n"
        "        return 1\n"
        "class B(A):\n"
        "    def f(self):\n"
        "        return super().f() + 1\n"
        "B().f()",
        2,
    ),
    "a class is main's": ("class A: pass\nA.__module__, A.__qualname__", ("__main__", "A")),
    "a comprehension": ("n = 2\n[x * n for x in range(3) if x != n]", [0, 2]),
    "a comprehension in a class": (
        "class A:\n    xs = [1, 2]\n    ys = [x for x in xs]\nA.ys",
        [1, 2],
    ),
    "a walrus in a comprehension": ("[last := x for x in range(3)]\nlast", 2),
    "nested comprehensions": ("[[x + y for y in range(x)] for x in range(3)]", [[], [1], [2, 3]]),
    "star import": ("from math import *\nfloor(2.5)", 2),
    "a future": (
        "from __future__ import annotations\ndef f(x: Nonsense): return f.__annotations__\nf(1)",
        {"x": "Nonsense"},
    ),
    "an annotated name": ("x: int = 3\nx", 3),
    "match": (
        "match [1, {'k': 2}]:\n    case [a, {'k': b, **rest}]:\n        pass\n(a, b, rest)",
        (1, 2, {}),
    ),
    "with and for and try": (
        "import contextlib\n"
        "with contextlib.nullcontext(1) as a:\n"
        "    b = a\n"
        "for c in [3]:\n"
        "    pass\n"
        "try:\n    d = {}['x']\nexcept KeyError as e:\n    d = str(e)\na, b, c, d",
        (1, 1, 3, "'x'"),
    ),
    "await": ("import asyncio\nawait asyncio.sleep(0, 'slept')", "slept"),
    "await before the end": (
        "import asyncio\nx = await asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2))\nx",
        [1, 2],
    ),
    "async for and with": (
        "async def count():\n    yield 1\n    yield 2\n[x async for x in count()]",
        [1, 2],
    ),
    "braces and dollars stay": ("n = 1\n'{n} $n'", "{n} $n"),
    "percent and exclamation in plain Python": (
        "a, b = 7, 4\n(a\n % b, a != b, '!ls', '%time')",
        (3, True, "!ls", "%time"),
    ),
    "a question mark in a string": ("'what?'", "what?"),
    "non-ASCII names": ("größe = 3\ngröße", 3),
    "a test for a notebook": (
        "try:\n    where = get_ipython()\nexcept NameError:\n    where = None\nwhere",
        None,
    ),
    "a name whose absence is handled": (
        "def has():\n"
        "    try:\n"
        "        return cupy\n"
        "    except (ImportError, NameError):\n"
        "        return 0\n"
        "has()",
        0,
    ),
    "an exit that is caught": (
        "try:\n    exit(1)\nexcept SystemExit as e:\n    code = e.code\ncode",
        1,
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_the_value(name, run):
    body, value = VALUES[name]
    assert run(body) == value


FROM_THE_NOTEBOOK = {
    "read": ("x + 1", {"x": 1}, 2),
    "changed": ("x += 1\nx", {"x": 1}, 2),
    "made of itself": ("x = x * 2\nx", {"x": 4}, 8),
    "read in a function": ("def f():\n    return x\nf()", {"x": 1}, 1),
    "read in a class body": ("class A:\n    y = x\nA.y", {"x": 1}, 1),
    "read in a class body that binds it": ("class A:\n    x = x + 1\nA.x", {"x": 1}, 2),
    "read in a lambda's default": ("(lambda y=x: y)()", {"x": 1}, 1),
    "read in a comprehension": ("[x for _ in range(1)]", {"x": 1}, [1]),
    "read in an f-string": ("f'{x:{w}}'", {"x": 1, "w": 3}, "  1"),
    "bound in one branch only": ("if not rank:\n    x = 2\nx", {"x": 1}, 1),
    "bound in a loop that doesn't run": ("for _ in []:\n    x = 2\nx", {"x": 1}, 1),
    "bound after a function reads it": ("def f():\n    return x\ny = f()\nx = 2\ny", {"x": 1}, 1),
    "deleted": ("x = 2\ndel x", {"x": 1}, None),
    "only deleted": ("del x", {"x": 1}, None),
    "bound where an error is suppressed": (
        "import contextlib\nwith contextlib.suppress(KeyError):\n    {}['a']; x = 2\nx",
        {"x": 1},
        1,
    ),
    "bound right of an and": ("if False and (x := 3): pass\nx", {"x": 1}, 1),
    "bound right of an or": ("1 or (x := 3) or x\nx", {"x": 1}, 1),
    "bound and read right of an and": ("(x := 3) and (y := x) and y", {}, 3),
    "bound in a ternary": ("(x := 2) if rank == 7 else 0\nx", {"x": 1}, 1),
    "bound in both of a ternary": ("(x := 2) if rank else (x := 3)\nx", {"x": 1}, 2),
    "bound in a chained comparison": ("1 > 2 > (x := 3)\nx", {"x": 1}, 1),
    "bound in a branch of a class": (
        "class A:\n    if rank == 7:\n        x = 2\n    y = x\nA.y",
        {"x": 1},
        1,
    ),
    "deleted in a class": ("class A:\n    x = 2\n    del x\n    y = x\nA.y", {"x": 1}, 1),
    "a shadowed builtin": ("len('abc')", {"len": lambda _: 7}, 7),
    "its rank is not ours": ("rank", {"rank": 99}, 1),
    "its torch is its own": ("torch", {"torch": "a name like any other"}, "a name like any other"),
}


@pytest.mark.parametrize("name", FROM_THE_NOTEBOOK)
def test_names_of_the_notebook(name, run):
    body, notebook, value = FROM_THE_NOTEBOOK[name]
    assert run(body, **notebook) == value


def carried(body: str, **notebook) -> set[str]:
    return {name for name, _ in packing.captured(cell_of(body, **notebook).function.carried)}


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("a", {"a"}),
        ("a = 1\na", set()),
        ("a = a", {"a"}),
        ("import a\na.x", set()),
        ("def a(): pass\na()", set()),
        ("class a:\n    def f(self): return a", set()),
        ("a = 1\ndef f():\n    return a", set()),
        ("def f():\n    a = 1\n    return a", set()),
        ("def f(a): return a", set()),
        ("def f():\n    global a\n    return a", {"a"}),
        ("lambda a: a", set()),
        ("[a for a in b]", {"b"}),
        ("{a: b for a, b in c}", {"c"}),
        ("with a as b:\n    b", {"a"}),
        ("with a:\n    b = 1\nb", {"a"}),
        ("if a:\n    b = 1\nelse:\n    b = 2\nb", {"a"}),
        ("if a:\n    b = 1\nb", {"a", "b"}),
        ("try:\n    a = 1\nexcept b:\n    a = 2\na", {"b"}),
        ("try:\n    a = 1\nfinally:\n    pass\na", set()),
        ("while a:\n    b = 1", {"a"}),
        ("for a in b:\n    a", {"b"}),
        ("a.b = c", {"a", "c"}),
        ("a[b] = c", {"a", "b", "c"}),
        ("x: a = b", {"a", "b"}),
        ("@a\ndef f(x: b = c) -> a: pass", {"a", "b", "c"}),
        ("def f():\n    x: a = 1", {"a"}),
        ("with open(a):\n    b = 1\nb", {"a"}),
        ("import contextlib\nwith contextlib.suppress(a):\n    b = 1\nb", {"a", "b"}),
        ("a < (b := 1)\nb", {"a"}),
        ("open(a)", {"a"}),
        ("print('a', b=1)", set()),
        ("'a {b}'", set()),
        ("match a:\n    case b: b", {"a"}),
        ("exit; quit", set()),
    ],
)
def test_only_the_names_that_the_body_needs_are_pickled(body, names):
    everything = {name: object() for name in ("a", "b", "c", "exit", "quit")}
    assert carried(body, **everything) == names


def test_names_that_the_body_may_bind_itself_are_optional():
    everything = {name: object() for name in ("a", "b", "c", "d")}
    body = "def f():\n    return a, d\nif a:\n    b = 1\nc = c\nd = 3\nb, (lambda: c)"
    assert set(cell_of(body, **everything).optional) == {"b", "d"}


def test_ipythons_open_is_not_pickled_but_the_users_own_is():
    code = compile(
        "def _modified_open(): pass", "/lib/IPython/core/interactiveshell.py", "exec"
    ).co_consts[0]
    shells = types.FunctionType(code, {})
    assert carried("open('x')", open=shells) == set()
    assert carried("open('x')", open=lambda path: path) == {"open"}
    assert carried("clear_output()", clear_output=shells) == {"clear_output"}


def test_a_name_that_the_body_doesnt_use_may_hold_anything():
    import threading

    made = cell_of("lock = 1\nlock", lock=threading.Lock())
    assert cloudpickle.dumps(made.function)


def test_submodules_that_the_body_uses_are_imported_for_it(run):
    import xml.dom.minidom

    made = cell_of("def f():\n    return xml.dom.minidom.__name__\nf()", xml=xml)
    assert b"xml.dom.minidom" in cloudpickle.dumps(made.function.carried)


def test_the_function_survives_cloudpickle(run):
    made = cell_of("def f(x):\n    return x + n\nf(1)", n=4)
    assert pickle.loads(cloudpickle.dumps(made.function))() == 5


UNDEFINED = {
    "at the top": ("x = 1\nprint(xx)", "xx", 3),
    "in a function": ("def f():\n    return missing\n", "missing", 3),
    "in a class": ("class A:\n    y = missing\n", "missing", 3),
    "in a method": ("class A:\n    def f(self):\n        return missing\n", "missing", 4),
    "in a comprehension": ("[x for x in range(3)]\n[missing for _ in [1]]", "missing", 3),
    "a comprehension's name outside": ("[x for x in range(3)]\nx", "x", 3),
    "an argument outside": ("def f(y):\n    return y\ny", "y", 4),
    "a class's name in its method": ("class A:\n    def f(self):\n        return w\n", "w", 4),
    "the first of several": ("first\nsecond", "first", 2),
    "as a base": ("class A(Missing): pass", "Missing", 2),
    "deleted": ("del missing", "missing", 2),
    "as a decorator": ("@missing\ndef f(): pass", "missing", 2),
    "as a default": ("def f(x=missing): pass", "missing", 2),
    "augmented": ("count += 1", None, 0),
    "in an f-string": ("f'{missing}'", "missing", 2),
    "in await": ("await missing", "missing", 2),
    "in except": ("try:\n    1\nexcept Missing:\n    pass", "Missing", 4),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_an_undefined_name_is_reported_with_its_line(name):
    body, missing, line = UNDEFINED[name]
    if missing is None:  # the body binds it, but too late: only running it shows that
        cell_of(body)
        return
    with pytest.raises(NameError) as caught:
        cell_of(body)
    assert caught.value.name == missing
    assert f"name {missing!r} is not defined" in str(caught.value)
    shown = "\n".join(caught.value._render_traceback_())
    assert f"Cell In[7], line {line}\n" in shown
    assert f"----> {line} {body.splitlines()[line - 2]}" in shown


@pytest.mark.parametrize(
    "body",
    [
        "def f():\n    global later\n    later = 1\nf()\nlater",
        "if rank:\n    maybe = 1\nmaybe",
        "print(__name__, __doc__, abs, Exception)",
        "def f(x: 'Nowhere') -> 'Nowhere': return x",
        "def f():\n    x: Nowhere = 1\n    return x",
        "class A:\n    def f(self):\n        x: Nowhere",
        "from __future__ import annotations\nx: Nowhere = 1",
        "class A:\n    if rank:\n        x = 1\n    y = x",
        "class A:\n    __private = 1\n    def f(self):\n        return __private",
        "from os.path import *\njoin",
        "del_me = 1\ndel del_me",
        "for i in []: pass\nelse: z = 1\ni, z",
    ],
)
def test_a_name_that_may_be_defined_is_accepted(body):
    cell_of(body)


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="annotations are evaluated when they are asked for"
)
@pytest.mark.parametrize(
    "body",
    [
        "def f(m: nn.Module): pass",
        "def f() -> nn.Module: pass",
        "x: nn.Module = 1",
        "class A:\n    x: nn.Module",
        "async def f(*m: nn.Module): pass",
        "class A:\n    def f(self, m: nn.Module): pass",
        "def f():\n    class A:\n        x: nn.Module",
        "def f():\n    def g(m: nn.Module): pass",
    ],
)
def test_a_name_in_an_annotation_is_refused_where_it_is_evaluated(body):
    import __future__

    with pytest.raises(NameError, match="'nn' is not defined"):
        cell_of(body)
    cell_of(body, __future__.annotations.compiler_flag)
    cell_of(f"from __future__ import annotations\n{body}")


def test_the_nearest_name_is_suggested():
    with pytest.raises(NameError, match="did you mean 'learning_rate'"):
        cell_of("learning_rat", learning_rate=1)


REFUSED = {
    "a shell escape": ("x = 1\n!ls -l", "!ls -l", "subprocess", 3),
    "an indented one": ("if True:\n    !pwd", "!pwd", "subprocess", 3),
    "an assigned one": ("files = !ls", "!ls", "subprocess", 2),
    "two marks": ("!!ls", "!!ls", "subprocess", 2),
    "a line magic": ("%time f()", "%time", "time.perf_counter", 2),
    "an assigned magic": ("x = 1\ny = %timeit -o f()", "%timeit", "timeit.timeit", 3),
    "a cell magic": ("%%bash\nls", "%%bash", "cell of its own", 2),
    "pip": ("%pip install x", "%pip", "cell of its own", 2),
    "env": ("%env A=1", "%env", "--env NAME=VALUE", 2),
    "cd": ("%cd /tmp", "%cd", "os.chdir", 2),
    "help": ("print?", "print?", "plain Python", 2),
    "the shell": (
        "x = 1\nget_ipython().run_line_magic('pwd', '')",
        "get_ipython",
        "no IPython shell",
        3,
    ),
    "the shell, where something else is handled": (
        "try:\n    get_ipython()\nexcept KeyError: pass",
        "get_ipython",
        "no IPython shell",
        3,
    ),
    "the shell, after a test for it": (
        "try:\n    get_ipython\nexcept NameError: pass\nget_ipython()",
        "get_ipython",
        "no IPython shell",
        5,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_shell_escapes_and_magics_are_refused_with_a_remedy(name):
    body, what, instead, line = REFUSED[name]
    with pytest.raises(IcelaunchError) as caught:
        cell_of(body, get_ipython=object())
    assert str(caught.value).startswith(what) and instead in str(caught.value)
    assert f"Cell In[7], line {line}\n" in "\n".join(caught.value._render_traceback_())


@pytest.mark.parametrize(
    ("body", "line", "expected"),
    [
        ("x = 1\nx = (1", 3, "never closed"),
        ("x = 1\nreturn x", 3, "'return' outside function"),
        ("yield 1", 2, "'yield' outside function"),
        ("for x in y\n    pass", 2, "expected ':'"),
        ("x = 1\n  y = 2", 3, "unexpected indent"),
        ("a %% b", 2, "invalid syntax"),
        ("def f():\n    x = 1\n    global x", 4, "assigned to before global"),
    ],
)
def test_syntax_errors_have_the_cells_lines(body, line, expected):
    with pytest.raises(SyntaxError, match=expected) as caught:
        cell_of(body, y=[])
    assert (caught.value.lineno, caught.value.filename) == (line, "/nowhere/ipykernel_1/7.py")


def test_the_frames_of_an_error_are_the_cells_own(run):
    with pytest.raises(ZeroDivisionError) as caught:
        run("def f():\n    return 1 / 0  # here\n\nf()")
    frames = [
        (frame.name, frame.lineno, frame.line)
        for frame in traceback.extract_tb(caught.value.__traceback__)
    ]
    assert frames[-2:] == [("<module>", 5, "f()"), ("f", 3, "return 1 / 0  # here")]


def test_frames_of_the_event_loop_are_left_out(run):
    with pytest.raises(ZeroDivisionError) as caught:
        run("import asyncio\nawait asyncio.sleep(0)\n1 / 0")
    assert not any(
        "asyncio" in frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)
    )


def test_getsource_of_what_the_body_defines(run):
    assert (
        run("import inspect\ndef f():\n    # mine\n    return 1\ninspect.getsource(f)")
        == "def f():\n    # mine\n    return 1\n"
    )
    assert linecache.getline("/nowhere/ipykernel_1/7.py", 1) == FIRST_LINE + "\n"


def test_future_imports_of_the_notebook_apply_in_the_body(run):
    import __future__

    body = "def f(x: Nowhere): pass\nf.__annotations__"
    assert run(body, __future__.annotations.compiler_flag, Nowhere=1) == {"x": "Nowhere"}
    if sys.version_info < (3, 14):
        assert run(body, 0, Nowhere=1) == {"x": 1}


@pytest.mark.parametrize(
    ("body", "shows"),
    [
        ("1", True),
        ("x = 1", False),
        ("1;", False),
        ("1 ; # why", False),
        ("1 # ;", True),
        ("", False),
        ("'é'; 'ü';", False),
    ],
)
def test_whether_the_last_expression_is_shown(body, shows):
    assert cell_of(body).shows is shows


def test_names_of_the_standard_library_are_found():
    """Compiles each file of the standard library as a body. No free variable may be missed."""
    import argparse
    import ast as ast_module
    import asyncio.base_events
    import dataclasses
    import inspect
    import typing

    for module in (
        argparse,
        ast_module,
        asyncio.base_events,
        dataclasses,
        typing,
        pickle,
        textwrap,
    ):
        names = find_free_variables(ast.parse(inspect.getsource(module)))
        builtin = (
            set(dir(__builtins__)) if not isinstance(__builtins__, dict) else set(__builtins__)
        )
        missed = (
            names.needed.keys()
            - names.bound
            - names.maybe_unused
            - builtin
            - {"__name__", "__doc__", "__file__"}
        )
        assert names.star or missed == set(), module
