"""Python expressions in a form's fields.

An expression is parsed while it is typed. It is evaluated then only if that has no side effects.
"""

from __future__ import annotations

import ast
import difflib
import io
import sys
import tokenize
import types
from collections.abc import Mapping
from typing import Any

_BLANK_TOKENS = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
# Only exactly these types count. A subclass may run any code when an attribute or an item is looked
# up: a defaultdict adds an item, and a dataset may read a file.
_NUMBERS = (bool, int, float, complex)
_CONTAINERS = (list, tuple, dict, str, bytes, range)
_KEY_TYPES = (*_NUMBERS, str, bytes, types.NoneType, types.EllipsisType)


class Deferred(Exception):
    """The expression is valid, and its evaluation waits for the launch."""


def evaluate(text: str, namespace: dict[str, Any], *, force: bool) -> Any:
    """Evaluates an expression in the notebook's namespace.

    Args:
        text: The expression's source.
        namespace: The notebook's names.
        force: Whether to evaluate it even if that may have side effects.

    Returns:
        The expression's value.

    Raises:
        Deferred: The source is valid, but evaluating it may have side effects. Not with `force`.
        ValueError: The source is no expression, or its evaluation fails. The message says why.
    """
    try:
        tree = ast.parse(text.strip(), "<field>", "eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"not a Python expression: {message}") from None
    try:
        _check_names(tree, namespace)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    try:
        if not force and not _is_pure(tree.body, namespace):
            raise Deferred
        return _value(tree.body, namespace)
    except Deferred:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def as_argument(text: str) -> str:
    """An expression's source as an argument: without a comment at its end, a tuple in parentheses.

    Args:
        text: The source of a valid expression.
    """
    lines = text.strip().split("\n")
    row, column = [
        token.end
        for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline)
        if token.type not in _BLANK_TOKENS
    ][-1]
    text = "\n".join([*lines[: row - 1], lines[row - 1][:column]])
    node = ast.parse(text, mode="eval").body
    try:
        call = ast.parse(f"f(x=\n{text})", mode="eval").body
    except SyntaxError:
        # A tuple without parentheses: 1, 2
        return f"({text})"
    assert isinstance(call, ast.Call)
    values = [keyword.value for keyword in call.keywords if not call.args]
    return text if [_span(value, 1) for value in values] == [_span(node, 0)] else f"({text})"


def _span(node: ast.expr, lines_before: int) -> tuple[Any, ...]:
    """Where a node begins and ends, as if `lines_before` lines before it weren't there."""
    end_lineno = (node.end_lineno or 0) - lines_before
    return node.lineno - lines_before, node.col_offset, end_lineno, node.end_col_offset


def _value(node: ast.expr, namespace: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "<field>", "eval"), namespace)


def _is_pure(node: ast.expr, namespace: dict[str, Any]) -> bool:
    """Whether evaluating an expression is cheap and has no side effects.

    Names are pure, and so are literals of pure parts, and attributes and items of plain values. A
    call isn't, because it may do anything. An operator between two values isn't either:
    ``10 ** 10 ** 10`` may never end.

    Raises:
        Exception: Evaluating a part of the expression raised it.
    """

    def plain(one: ast.expr, *kinds: type) -> bool:
        return _is_pure(one, namespace) and type(_value(one, namespace)) in kinds

    match node:
        case ast.Constant() | ast.Name():
            return True
        case ast.List(elts) | ast.Tuple(elts):
            return all(
                plain(one.value, *_CONTAINERS)
                if isinstance(one, ast.Starred)
                else _is_pure(one, namespace)
                for one in elts
            )
        case ast.Set(elts):
            return all(plain(one, *_KEY_TYPES) for one in elts)
        case ast.Dict(keys, values):
            return all(
                plain(value, dict)
                if key is None
                else plain(key, *_KEY_TYPES) and _is_pure(value, namespace)
                for key, value in zip(keys, values, strict=True)
            )
        case ast.UnaryOp(_, operand):
            return plain(operand, *_NUMBERS)
        case ast.Attribute(value, name):
            if not _is_pure(value, namespace):
                return False
            owner = _value(value, namespace)
            return (
                _has_plain_attribute(owner, name)
                if type(owner) is types.ModuleType
                else type(owner) in (*_NUMBERS, *_CONTAINERS, *_arrays())
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
            return plain(value, *_CONTAINERS, *_arrays()) and all(
                end is None or plain(end, *_KEY_TYPES) for end in ends
            )
    return False


def _arrays() -> list[type]:
    """The array types of the imported modules. Their items are cheap, since they are views."""
    kinds = [
        getattr(sys.modules.get(module), name, None)
        for module, name in (("numpy", "ndarray"), ("torch", "Tensor"))
    ]
    return [kind for kind in kinds if isinstance(kind, type)]


def _has_plain_attribute(module: types.ModuleType, name: str) -> bool:
    """Whether looking up a module's attribute runs none of the module's code.

    ``__getattr__`` of some modules imports another module.
    """
    return name in vars(module) or "__getattr__" not in vars(module)


def _check_names(tree: ast.Expression, namespace: Mapping[str, Any]) -> None:
    """Raises for a name that is defined nowhere, also where the expression isn't evaluated yet.

    Raises:
        ValueError: A name is defined neither in the notebook nor in the expression.
    """
    from icelaunch_nb.notebook.magic.free_variables import find_free_variables

    module = ast.Module([ast.Expr(tree.body)], [])
    builtins = vars(__import__("builtins"))
    for name in find_free_variables(module).needed:
        if name in namespace or name in builtins:
            continue
        close = difflib.get_close_matches(
            name, [known for known in namespace if known[:1] != "_"], n=1, cutoff=0.75
        )
        hint = f"did you mean {close[0]!r}?" if close else "the notebook doesn't define it"
        raise ValueError(f"name {name!r} is not defined: {hint}")
