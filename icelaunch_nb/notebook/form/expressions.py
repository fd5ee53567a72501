"""Python expressions that are typed into a form: read as they are typed, run only when nothing can come of it."""

from __future__ import annotations

import ast
import difflib
import io
import sys
import tokenize
import types
from collections.abc import Mapping
from typing import Any

_BLANK = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
# Exactly these types, by whose own code an attribute or an item is looked up: a class made from one may do anything then, as a
# defaultdict does, and a dataset may read a file.
_NUMBERS = (bool, int, float, complex)
_ITEMS = (list, tuple, dict, str, bytes, range)
_KEYS = (*_NUMBERS, str, bytes, types.NoneType, types.EllipsisType)


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
    try:
        _check_names(tree, namespace)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    try:
        if not now and not _harmless(tree.body, namespace):
            raise Waits
        return _value(tree.body, namespace)
    except Waits:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def written(text: str) -> str:
    """An expression as it can stand among other arguments: a tuple in parentheses, and without a comment behind it."""
    lines = text.strip().split("\n")
    row, column = [
        token.end
        for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline)
        if token.type not in _BLANK
    ][-1]
    text = "\n".join([*lines[: row - 1], lines[row - 1][:column]])
    node = ast.parse(text, mode="eval").body
    try:
        call = ast.parse(f"f(x=\n{text})", mode="eval").body
    except SyntaxError:  # 1, 2
        return f"({text})"
    assert isinstance(call, ast.Call)
    one = [keyword.value for keyword in call.keywords if not call.args]
    return text if [_span(value, 1) for value in one] == [_span(node, 0)] else f"({text})"


def _span(node: ast.expr, above: int) -> tuple[Any, ...]:
    return node.lineno - above, node.col_offset, (node.end_lineno or 0) - above, node.end_col_offset


def _value(node: ast.expr, namespace: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "<field>", "eval"), namespace)


def _harmless(node: ast.expr, namespace: dict[str, Any]) -> bool:
    """Whether looking at it costs nothing and changes nothing: a name, a literal of such, an attribute or an item of what is plain.

    A call may do anything, and an operator take for ever (10 ** 10 ** 10).

    Raises:
        Exception: What evaluating it raises.
    """

    def plain(one: ast.expr, *kinds: type) -> bool:
        return _harmless(one, namespace) and type(_value(one, namespace)) in kinds

    match node:
        case ast.Constant() | ast.Name():
            return True
        case ast.List(elts) | ast.Tuple(elts):
            return all(
                plain(one.value, *_ITEMS)
                if isinstance(one, ast.Starred)
                else _harmless(one, namespace)
                for one in elts
            )
        case ast.Set(elts):
            return all(plain(one, *_KEYS) for one in elts)
        case ast.Dict(keys, values):
            return all(
                plain(value, dict)
                if key is None
                else plain(key, *_KEYS) and _harmless(value, namespace)
                for key, value in zip(keys, values, strict=True)
            )
        case ast.UnaryOp(_, operand):
            return plain(operand, *_NUMBERS)
        case ast.Attribute(value, name):
            if not _harmless(value, namespace):
                return False
            owner = _value(value, namespace)
            return (
                _holds(owner, name)
                if type(owner) is types.ModuleType
                else type(owner) in (*_NUMBERS, *_ITEMS, *_arrays())
            )
        case ast.Subscript(value, index):
            parts = index.elts if isinstance(index, ast.Tuple) else [index]
            ends = [
                end
                for part in parts
                for end in (
                    (part.lower, part.upper, part.step) if isinstance(part, ast.Slice) else (part,)
                )
            ]
            return plain(value, *_ITEMS, *_arrays()) and all(
                end is None or plain(end, *_KEYS) for end in ends
            )
    return False


def _arrays() -> list[type]:
    """Arrays give views of themselves. Where their module isn't imported, there are none."""
    kinds = [
        getattr(sys.modules.get(module), name, None)
        for module, name in (("numpy", "ndarray"), ("torch", "Tensor"))
    ]
    return [kind for kind in kinds if isinstance(kind, type)]


def _holds(module: types.ModuleType, name: str) -> bool:
    """Whether a module has an attribute by itself, or surely has not: some import one another when they are asked for it."""
    return name in vars(module) or "__getattr__" not in vars(module)


def _check_names(tree: ast.Expression, namespace: Mapping[str, Any]) -> None:
    """Names that are defined nowhere are told as they are typed, also where nothing is run yet."""
    from icelaunch_nb.notebook.magic.names import read_names

    module = ast.Module([ast.Expr(tree.body)], [])
    builtins = vars(__import__("builtins"))
    for name in read_names(module).needed:
        if name in namespace or name in builtins:
            continue
        close = difflib.get_close_matches(
            name, [known for known in namespace if known[:1] != "_"], n=1, cutoff=0.75
        )
        hint = f"did you mean {close[0]!r}?" if close else "the notebook doesn't define it"
        raise ValueError(f"name {name!r} is not defined: {hint}")
