"""Python expressions that are typed into a form: read as they are typed, run only when nothing can come of it."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from typing import Any

# A name, an attribute, an item, a literal of them: looking at these costs nothing and changes nothing. A call may do anything, and
# an operator take for ever (10 ** 10 ** 10), so these wait for the launch.
_HARMLESS = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Attribute, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.Set, ast.Dict,
    ast.UnaryOp, ast.unaryop, ast.Starred,
)


class Waits(Exception):
    """The expression is Python, and is evaluated when the function is launched."""


def evaluate(text: str, namespace: dict[str, Any], *, now: bool) -> Any:
    """The value of an expression in the notebook's namespace.

    Args:
        text: What was typed.
        namespace: The notebook's names.
        now: Whether to evaluate it whatever it holds.

    Raises:
        Waits: It is right as far as can be seen without running it. Only where not `now`.
        ValueError: It is no expression, or evaluating it fails; the message says how.
    """
    try:
        tree = ast.parse(text.strip(), "<field>", "eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"not a Python expression: {said}") from None
    _check_names(tree, namespace)
    if not now and not all(isinstance(node, _HARMLESS) for node in ast.walk(tree)):
        raise Waits
    try:
        return eval(compile(tree, "<field>", "eval"), namespace)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _check_names(tree: ast.Expression, namespace: Mapping[str, Any]) -> None:
    """Names that are defined nowhere are told as they are typed, also where nothing is run yet."""
    from icelaunch_nb.notebook.magic.names import read_names

    module = ast.Module([ast.Expr(tree.body)], [])
    builtins = vars(__import__("builtins"))
    for name in read_names(module).needed:
        if name in namespace or name in builtins:
            continue
        close = difflib.get_close_matches(name, [known for known in namespace if known[:1] != "_"], n=1, cutoff=0.75)
        hint = f"did you mean {close[0]!r}?" if close else "the notebook doesn't define it"
        raise ValueError(f"name {name!r} is not defined: {hint}")
