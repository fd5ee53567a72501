"""Compiles a ``%%icelaunch`` cell to a function that `launch` accepts.

The function carries those of the notebook's names that the cell uses. A rank runs the cell as a
notebook does: as a module whose names are the globals of ``__main__``. So
``model = model.to(device)``, ``global`` and functions that call each other work as in any cell.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import difflib
import linecache
import re
import sys
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from icelaunch_nb.errors import IcelaunchError
from icelaunch_nb.launching.cell_function import FROM_THE_RANK, RESULT, CellFunction
from icelaunch_nb.notebook.magic.free_variables import FreeVariables, find_free_variables
from icelaunch_nb.pickling.ipython_names import has_display, is_ipython_open

_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_MODULE_ATTRIBUTES = {
    "__name__",
    "__doc__",
    "__package__",
    "__loader__",
    "__spec__",
    "__builtins__",
    "__annotations__",
}
# A rank has its own value of each of these, or none.
_NOT_CARRIED = {"get_ipython", "exit", "quit", *_MODULE_ATTRIBUTES}

# Lines that are shown before and after the wrong one. IPython shows as many.
_CONTEXT_LINES = 2


@dataclass(frozen=True)
class CellSource:
    """The source of a cell.

    Attributes:
        text: The whole cell, including the magic's line.
        first: Number of the first line below the magic's line, from 1.
        label: The cell's name in tracebacks: ``Cell In[3]``.
        filename: The cell's name in code objects.
    """

    text: str
    first: int
    label: str
    filename: str

    def register(self) -> None:
        """Registers the source for tracebacks, for `inspect`, and for `packing`.

        `packing` sends it to the ranks.
        """
        lines = [line + "\n" for line in self.text.splitlines()]
        linecache.cache[self.filename] = (len(self.text), None, lines, self.filename)

    def excerpt(self, lineno: int) -> list[str]:
        """The lines around line `lineno`, as IPython shows them in a traceback."""
        lines = self.text.splitlines()
        shown = range(max(1, lineno - _CONTEXT_LINES), min(len(lines), lineno + _CONTEXT_LINES) + 1)
        width = len(str(shown[-1])) if shown else 1
        return [
            f"{self.label}, line {lineno}",
            *(
                f"{'----> ' if n == lineno else '      '}{n:>{width}} {lines[n - 1]}".rstrip()
                for n in shown
            ),
        ]


@dataclass(frozen=True)
class CompiledCell:
    """A compiled cell.

    Attributes:
        function: The function to launch.
        shows: Whether the cell shows the value of its last statement: that statement is an
            expression, and no semicolon follows it.
        suppressed: Whether a semicolon follows the last statement.
        optional: Carried names that the cell may bind before it reads them.
    """

    function: CellFunction
    shows: bool
    suppressed: bool
    optional: tuple[str, ...]


def compile_cell(
    source: CellSource,
    body: str,
    namespace: dict[str, Any],
    *,
    flags: int = 0,
    without: Collection[str] = (),
) -> CompiledCell:
    """Compiles a cell.

    Args:
        source: The whole cell. Errors show its text and its line numbers.
        body: The lines below the magic's line.
        namespace: The notebook's names. The function carries those that the cell uses.
        flags: The notebook's ``__future__`` features, as flags for ``compile``.
        without: Names of `CompiledCell.optional` that the function doesn't carry.

    Returns:
        The compiled cell.

    Raises:
        SyntaxError: The cell isn't Python.
        IcelaunchError: The cell contains a shell escape or a magic, or uses the IPython shell.
        NameError: The cell uses a name that is defined nowhere.
    """
    source.register()
    flags = (flags & _FUTURES) | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    # IPython dedents a cell whose first line is indented.
    indented = re.match(r"(?:[ \t]*\n)*[ \t]+\S", body)
    # Empty lines before the body make the parser's line numbers those of the cell.
    padded = "\n" * (source.first - 1) + (textwrap.dedent(body) if indented else body)
    try:
        tree = compile(
            padded, source.filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True
        )
    except SyntaxError:
        # IPython shows a SyntaxError with all frames, and a magic can't prevent that.
        _reject_escapes(source, body)
        raise
    names = find_free_variables(
        tree, annotated_late=sys.version_info >= (3, 14) or _has_late_annotations(tree, flags)
    )
    _check(names, source, namespace)
    suppressed = bool(tree.body) and _ends_with_semicolon(padded, tree.body[-1])
    shows = bool(tree.body) and isinstance(tree.body[-1], ast.Expr)
    if shows:
        _keep_last_value(tree)
    code = compile(tree, source.filename, "exec", flags, dont_inherit=True)
    excluded = {*_NOT_CARRIED, *FROM_THE_RANK, *without}
    carried = [
        name
        for name in names.needed
        if name in namespace
        and name not in excluded
        and not (name == "open" and is_ipython_open(namespace[name]))
    ]
    optional = tuple(
        name for name in carried if name in names.bound and name not in names.surely_free
    )
    if "display" in names.needed and "display" not in namespace and has_display():
        carried.append("display")
    return CompiledCell(
        CellFunction(code, _carrier(carried, code, source, namespace), source.label),
        shows and not suppressed,
        suppressed,
        optional,
    )


def _has_late_annotations(tree: ast.Module, flags: int) -> bool:
    imported = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for alias in node.names
    }
    return bool(flags & __future__.annotations.compiler_flag) or "annotations" in imported


def _keep_last_value(tree: ast.Module) -> None:
    last = tree.body[-1]
    assert isinstance(last, ast.Expr)
    target = ast.copy_location(ast.Name(RESULT, ast.Store()), last.value)
    tree.body[-1] = ast.copy_location(ast.Assign([target], last.value), last)


def _ends_with_semicolon(text: str, last: ast.stmt) -> bool:
    """Whether a semicolon follows the last statement."""
    lines = text.splitlines()
    rest = lines[(last.end_lineno or 1) - 1].encode()[last.end_col_offset :]
    return rest.lstrip().startswith(b";")


def _carrier(
    names: list[str], code: types.CodeType, source: CellSource, namespace: dict[str, Any]
) -> types.FunctionType:
    """A function that refers to `names`, so that cloudpickle carries their values.

    ``import xml.dom`` binds only ``xml``. cloudpickle finds such submodules among the attributes
    that a function names. So this function names those of the cell.
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


# Errors that are raised before any process starts.


def _check(names: FreeVariables, source: CellSource, namespace: Mapping[str, Any]) -> None:
    """Raises for the first name in the cell that is defined nowhere."""
    allowed = names.bound | names.maybe_unused | _MODULE_ATTRIBUTES | {*FROM_THE_RANK, "torch"}
    for name, node in sorted(
        names.needed.items(), key=lambda item: (item[1].lineno, item[1].col_offset)
    ):
        if name in names.bound:
            continue
        if name == "get_ipython" and name not in names.maybe_unused:
            _raise_at(
                IcelaunchError(
                    "get_ipython: a rank has no IPython shell; do that in a cell of its own"
                ),
                source,
                node.lineno,
            )
        if name in allowed or name in namespace or hasattr(builtins, name) or names.star:
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
        _raise_at(
            NameError(f"name {name!r} is not defined: {hint}", name=name), source, node.lineno
        )


_ALTERNATIVES = {
    "time": "use time.perf_counter()",
    "timeit": "use timeit.timeit()",
    "cd": (
        "use os.chdir(), or change the directory in a cell of its own: "
        "ranks start in the notebook's"
    ),
    "env": "use --env NAME=VALUE on the %%icelaunch line",
    "set_env": "use --env NAME=VALUE on the %%icelaunch line",
    "debug": "ice.launch(fn, inline=True) runs a function where %debug works",
    "pdb": "ice.launch(fn, inline=True) runs a function where %debug works",
    "run": "use runpy.run_path()",
    "icelaunch": "launch from a cell of its own",
}


def _reject_escapes(source: CellSource, body: str) -> None:
    """Raises for the first shell escape, magic or question mark that IPython's parser finds."""
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
        positions = sorted((one.start_line, one.start_col) for one in found if one is not None)
    except Exception:
        # IPython's parser fails too, so this is a plain SyntaxError.
        return
    if not positions:
        return
    row, column = positions[0]
    text = lines[row][column:].strip()
    magic = re.match(r"%%?\s*(\w+)", text)
    if magic:
        instead = _ALTERNATIVES.get(magic[1], "run it in a cell of its own")
        message = f"{magic[0]}: magics don't work in what ranks run; {instead}"
    elif text.startswith("!"):
        message = (
            f"{text}: shell escapes don't work in what ranks run; "
            "use subprocess.run(…, shell=True), or run it in a cell of its own"
        )
    else:
        message = (
            f"{text}: IPython's short forms don't work in what ranks run; "
            "use plain Python, or a cell of its own"
        )
    _raise_at(IcelaunchError(message), source, source.first + row)


def _raise_at(error: Exception, source: CellSource, lineno: int) -> NoReturn:
    """Raises an error that IPython shows at a line of the cell, without the magic's frames."""
    set_rendered_traceback(error, [*source.excerpt(lineno), ""])
    raise error


def set_rendered_traceback(error: BaseException, lines: list[str]) -> None:
    """Makes IPython show these lines and the error's message instead of its frames."""
    red, off = "\x1b[31m", "\x1b[39m"
    message = str(error)
    shown = [*lines, f"{red}{type(error).__name__}{off}{': ' if message else ''}{message}"]
    error._render_traceback_ = lambda: shown  # type: ignore[attr-defined]
