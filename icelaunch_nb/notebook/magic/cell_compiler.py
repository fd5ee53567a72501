"""From the body of a ``%%icelaunch`` cell to a function that `launch` takes, with the notebook's names that it uses.

The body runs in a rank as a cell runs in a notebook: as a module, whose names are the globals of ``__main__``. So
``model = model.to(device)``, ``global`` and functions that see each other mean what they mean in any other cell.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import difflib
import linecache
import os
import re
import sys
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from icelaunch_nb.body import FROM_THE_RANK, RESULT, Body
from icelaunch_nb.errors import IcelaunchError
from icelaunch_nb.notebook.magic.names import Names, read_names

_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_OF_EVERY_MODULE = {
    "__name__",
    "__doc__",
    "__package__",
    "__loader__",
    "__spec__",
    "__builtins__",
    "__annotations__",
}
_OF_THE_SHELL = {
    "get_ipython",
    "display",
}  # IPython puts them among the builtins, and a rank has no IPython shell
_LEFT_HERE = {"exit", "quit", *_OF_EVERY_MODULE}  # a rank has its own

_CONTEXT = 2  # lines shown before and after the wrong one, as IPython does


@dataclass(frozen=True)
class Source:
    """A cell as its user sees it.

    Attributes:
        text: The whole cell, the magic's line included.
        first: Number of the body's first line in it.
        label: What tracebacks call it (``Cell In[3]``).
        filename: What its code objects call it.
    """

    text: str
    first: int
    label: str
    filename: str

    def register(self) -> None:
        """Puts it where tracebacks and `inspect` look, in this process, and where `packing` finds it for the ranks."""
        lines = [line + "\n" for line in self.text.splitlines()]
        linecache.cache[self.filename] = (len(self.text), None, lines, self.filename)

    def excerpt(self, lineno: int) -> list[str]:
        """The lines around one, as IPython shows them."""
        lines = self.text.splitlines()
        shown = range(max(1, lineno - _CONTEXT), min(len(lines), lineno + _CONTEXT) + 1)
        width = len(str(shown[-1])) if shown else 1
        return [
            f"{self.label}, line {lineno}",
            *(
                f"{'----> ' if n == lineno else '      '}{n:>{width}} {lines[n - 1]}".rstrip()
                for n in shown
            ),
        ]


@dataclass(frozen=True)
class Cell:
    """What became of a cell's body.

    Attributes:
        function: What to launch.
        shows: Whether its last statement is an expression, whose value is to be shown.
        silenced: Whether a semicolon after the last statement says that nothing is to be shown.
        spare: Names that are carried although the body may have bound them itself by the time it reads them.
    """

    function: Body
    shows: bool
    silenced: bool
    spare: tuple[str, ...]


def read_cell(
    source: Source,
    body: str,
    namespace: dict[str, Any],
    *,
    flags: int = 0,
    without: Collection[str] = (),
) -> Cell:
    """Makes the function.

    Args:
        source: The cell around the body; its numbers and its text are those of all errors.
        body: What stands below the magic's line.
        namespace: The notebook's names. Those that the body uses are carried over, the others aren't.
        flags: The ``__future__`` features of the notebook so far, as compile takes them.
        without: Those of `Cell.spare` that are not to be carried.

    Raises:
        SyntaxError: The body is no Python.
        IcelaunchError: It has a shell escape or a magic in it, or asks for the IPython shell.
        NameError: It uses a name that is defined nowhere.
    """
    source.register()
    flags = (flags & _FUTURES) | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    # Empty lines before it: then the parser's own numbers are the cell's.
    padded = "\n" * (source.first - 1) + (
        textwrap.dedent(body) if re.match(r"(?:[ \t]*\n)*[ \t]+\S", body) else body
    )  # as IPython dedents a cell
    try:
        tree = compile(
            padded, source.filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True
        )
    except SyntaxError:  # IPython shows one its own way, with all frames; nothing that is raised from a magic can change that
        _refuse_escapes(source, body)
        raise
    names = read_names(
        tree, annotated_late=sys.version_info >= (3, 14) or _has_late_annotations(tree, flags)
    )
    _check(names, source, namespace)
    silenced = bool(tree.body) and _silenced(padded, tree.body[-1])
    shows = bool(tree.body) and isinstance(tree.body[-1], ast.Expr)
    if shows:
        _keep_last_value(tree)
    code = compile(tree, source.filename, "exec", flags, dont_inherit=True)
    left = {*_LEFT_HERE, *FROM_THE_RANK, *without}
    carried = [
        name
        for name in names.needed
        if name in namespace
        and name not in left
        and not (name == "open" and _of_ipython(namespace[name]))
    ]
    spare = tuple(name for name in carried if name in names.bound and name not in names.certain)
    return Cell(
        Body(code, _carrier(carried, code, source, namespace), source.label),
        shows and not silenced,
        silenced,
        spare,
    )


def _has_late_annotations(tree: ast.Module, flags: int) -> bool:
    imported = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for alias in node.names
    }
    return bool(flags & __future__.annotations.compiler_flag) or "annotations" in imported


def _of_ipython(value: Any) -> bool:
    """IPython lays an `open` of its own among the notebook's names; a rank has Python's."""
    return "IPython" in getattr(getattr(value, "__code__", None), "co_filename", "").split(os.sep)


def _keep_last_value(tree: ast.Module) -> None:
    last = tree.body[-1]
    assert isinstance(last, ast.Expr)
    target = ast.copy_location(ast.Name(RESULT, ast.Store()), last.value)
    tree.body[-1] = ast.copy_location(ast.Assign([target], last.value), last)


def _silenced(text: str, last: ast.stmt) -> bool:
    """Whether a semicolon follows the last statement."""
    lines = text.splitlines()
    rest = lines[(last.end_lineno or 1) - 1].encode()[last.end_col_offset :]
    return rest.lstrip().startswith(b";")


def _carrier(
    names: list[str], code: types.CodeType, source: Source, namespace: dict[str, Any]
) -> types.FunctionType:
    """A function that refers to `names`.

    cloudpickle also looks for submodules (``import xml.dom`` binds ``xml``) among the attributes that a function names, so it
    gets those of the body.
    """
    module = compile(
        f"lambda: ({''.join(name + ', ' for name in names)})",
        source.filename,
        "eval",
        dont_inherit=True,
    )
    [inner] = [constant for constant in module.co_consts if isinstance(constant, types.CodeType)]
    attributes = {name for one in _code_objects(code) for name in one.co_names}.difference(
        inner.co_names
    )
    inner = inner.replace(co_names=(*inner.co_names, *sorted(attributes)))
    carrier = types.FunctionType(inner, namespace, source.label)
    carrier.__qualname__ = source.label
    return carrier


def _code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_objects(constant)


# What is wrong before anything was started.


def _check(names: Names, source: Source, namespace: Mapping[str, Any]) -> None:
    """Refuses names that are defined nowhere, the first one in the cell."""
    own = names.bound | names.lenient | _OF_EVERY_MODULE | {*FROM_THE_RANK, "torch"}
    for name, node in sorted(
        names.needed.items(), key=lambda item: (item[1].lineno, item[1].col_offset)
    ):
        if name in names.bound:
            continue
        if name == "get_ipython" or (name in _OF_THE_SHELL and name not in namespace):
            _complain(
                IcelaunchError(f"{name}: a rank has no IPython shell; {_INSTEAD[name]}"),
                source,
                node.lineno,
            )
        if name in own or name in namespace or hasattr(builtins, name) or names.star:
            continue
        known = [
            other
            for other in (*namespace, *names.bound, *dir(builtins), *FROM_THE_RANK)
            if name[0] == "_" or other[0] != "_"
        ]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else "neither the notebook nor this cell defines it"
        )
        _complain(
            NameError(f"name {name!r} is not defined: {hint}", name=name), source, node.lineno
        )


_INSTEAD = {
    "get_ipython": "do that in a cell of its own",
    "display": "print, or let the value be the cell's last expression and show what comes back",
    "time": "use time.perf_counter()",
    "timeit": "use timeit.timeit()",
    "cd": "use os.chdir(), or change the directory in a cell of its own: ranks start in the notebook's",
    "env": "use --env NAME=VALUE on the %%icelaunch line",
    "set_env": "use --env NAME=VALUE on the %%icelaunch line",
    "debug": "ice.launch(fn, inline=True) runs a function where %debug works",
    "pdb": "ice.launch(fn, inline=True) runs a function where %debug works",
    "run": "use runpy.run_path()",
    "icelaunch": "launch from a cell of its own",
}


def _refuse_escapes(source: Source, body: str) -> None:
    """Names the first shell escape, magic or question mark, by IPython's own reading of them."""
    from IPython.core import inputtransformer2 as ipython

    lines = body.splitlines(keepends=True)
    lines[-1:] = [line.rstrip("\n") + "\n" for line in lines[-1:]]
    try:
        tokens = ipython.make_tokens_by_line(lines)
        found = [
            one.find(tokens)
            for one in (
                ipython.MagicAssign,
                ipython.SystemAssign,
                ipython.EscapedCommand,
                ipython.HelpEnd,
            )
        ]
        places = sorted((one.start_line, one.start_col) for one in found if one is not None)
    except Exception:  # what IPython can't read either is a plain SyntaxError
        return
    if not places:
        return
    row, column = places[0]
    text = lines[row][column:].strip()
    magic = re.match(r"%%?\s*(\w+)", text)
    if magic:
        instead = _INSTEAD.get(magic[1], "run it in a cell of its own")
        said = f"{magic[0]}: magics don't work in what ranks run; {instead}"
    elif text.startswith("!"):
        said = f"{text}: shell escapes don't work in what ranks run; use subprocess.run(…, shell=True), or run it in a cell of its own"
    else:
        said = f"{text}: IPython's short forms don't work in what ranks run; use plain Python, or a cell of its own"
    _complain(IcelaunchError(said), source, source.first + row)


def _complain(error: Exception, source: Source, lineno: int) -> NoReturn:
    """Raises an error that IPython shows at its place in the cell, and not with the frames of the magic."""
    show_as(error, [*source.excerpt(lineno), ""])
    raise error


def show_as(error: BaseException, lines: list[str]) -> None:
    """Has IPython show these lines and what the error says, instead of the frames that it came through."""
    red, off = "\x1b[31m", "\x1b[39m"
    said = str(error)
    shown = [*lines, f"{red}{type(error).__name__}{off}{': ' if said else ''}{said}"]
    error._render_traceback_ = lambda: shown  # type: ignore[attr-defined]
