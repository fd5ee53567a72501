"""Finds the names that a cell needs from outside, and where it first reads each.

This reads only the syntax tree and runs nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
# Context managers that may suppress an exception, so that their block ends early. Any other may do
# so too, but if all counted, every name that a ``with`` block binds would be carried needlessly.
_SUPPRESSING = {"suppress", "raises", "ExitStack", "AsyncExitStack"}


@dataclass
class FreeVariables:
    """The global names of a cell.

    Attributes:
        needed: The names that the cell reads where it may not have bound them yet, each with the
            node that reads it first. A name that only one branch binds is both here and in `bound`,
            because only running the cell shows which value is used.
        bound: The names that the cell binds somewhere.
        surely_free: Those of `needed` that the cell reads where it can't have bound them.
        maybe_unused: Those of `needed` that may never be looked up outside (annotations, a class's
            own names), or whose absence the cell handles (``except NameError``).
        star: Whether a ``from … import *`` binds unknown names.
    """

    needed: dict[str, ast.expr | ast.stmt] = field(default_factory=dict)
    bound: set[str] = field(default_factory=set)
    surely_free: set[str] = field(default_factory=set)
    maybe_unused: set[str] = field(default_factory=set)
    star: bool = False


def find_free_variables(tree: ast.Module, *, annotated_late: bool = False) -> FreeVariables:
    """Finds the free variables of a cell.

    A cell runs as a module does: what its top level assigns is global.

    Args:
        tree: The cell.
        annotated_late: Whether annotations aren't evaluated at once. This is so since Python 3.14,
            and with the ``annotations`` future.
    """
    visitor = _Visitor(annotated_late)
    visitor.visit_all(tree.body)
    return visitor.names


class _Visitor(ast.NodeVisitor):
    """Visits a cell in the order in which it runs."""

    def __init__(self, annotated_late: bool) -> None:
        self.names = FreeVariables()
        self._annotated_late = annotated_late
        # The names that the top level has bound so far on every branch.
        self._module_bound: set[str] = set()
        # The local names of the enclosing functions and comprehensions, the innermost last.
        self._scopes: list[set[str]] = []
        # The names that the enclosing class has bound so far; None outside of a class body.
        self._class_bound: set[str] | None = None
        # Whether the node is evaluated, unlike some annotations.
        self._evaluated = True
        # Whether the cell catches a NameError.
        self._name_error_caught = False
        # Whether the node is in a function, which runs only when it is called.
        self._in_function = False

    @property
    def _bound(self) -> set[str]:
        """The names that the module, or the enclosing class, has bound so far on every branch."""
        return self._module_bound if self._class_bound is None else self._class_bound

    @_bound.setter
    def _bound(self, names: set[str]) -> None:
        if self._class_bound is None:
            self._module_bound = names
        else:
            self._class_bound = names

    def visit_all(self, nodes: Sequence[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    # Names.

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(node.id, node)
        elif isinstance(node.ctx, ast.Del):
            self._read(node.id, node)
            self._bound.discard(node.id)
        else:
            self._bind(node.id)

    def _read(self, name: str, node: ast.expr | ast.stmt) -> None:
        if (
            (self._class_bound is not None and name in self._class_bound)
            or any(name in scope for scope in self._scopes)
            or name in self._module_bound
        ):
            return
        if self._evaluated and not self._in_function and name not in self.names.bound:
            self.names.surely_free.add(name)
        if name not in self.names.needed:
            self.names.needed[name] = node
            if not self._evaluated or self._name_error_caught:
                self.names.maybe_unused.add(name)
        elif self._evaluated and not self._name_error_caught and name in self.names.maybe_unused:
            self.names.needed[name] = node
            self.names.maybe_unused.discard(name)

    def _bind(self, name: str) -> None:
        if self._class_bound is not None:
            self._class_bound.add(name)
        elif not any(name in scope for scope in self._scopes):
            # A call of a function binds the function's global names, if it is ever called.
            self.names.bound.add(name)
            if not self._scopes:
                self._module_bound.add(name)

    # Nodes that bind names, or whose parts run in another order than they are written in.

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit_all([node.value, *node.targets])

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._read(node.target.id, node.target)
        self.visit_all([node.value, node.target])

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        # A function never evaluates the annotations of its variables.
        self._annotation(node.annotation, late=self._class_bound is None and bool(self._scopes))
        self.visit_all([node.value])
        if node.value is not None or not isinstance(node.target, ast.Name):
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit_all([node.value, node.target])

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self.names.star = True
            else:
                self._bind(alias.asname or alias.name.partition(".")[0])

    visit_ImportFrom = visit_Import

    def visit_Global(self, node: ast.Global) -> None:
        self.names.bound.update(node.names if self._scopes or self._class_bound is not None else ())

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        self.generic_visit(node)
        if node.name is not None:
            self._bind(node.name)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest is not None:
            self._bind(node.rest)

    def visit_TypeAlias(self, node: ast.AST) -> None:
        # Python 3.12 and later have this node. The alias's value is evaluated late, if ever.
        self.visit(node.name)  # type: ignore[attr-defined]
        self._scopes.append(_type_parameters(node))
        self._annotation(node.value, late=True)  # type: ignore[attr-defined]
        self._scopes.pop()

    # Branches. After them, the names are bound that every branch binds.

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._bound = self._branch(node.body) & self._branch(node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self._bound = self._branch([node.body]) & self._branch([node.orelse])

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        first, *others = node.values
        self.visit(first)
        self._branch(others)

    def visit_Compare(self, node: ast.Compare) -> None:
        first, *others = node.comparators
        self.visit_all([node.left, first])
        self._branch(others)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        self.visit_all(node.items)
        after = self._branch(node.body)
        managers = [
            item.context_expr.func if isinstance(item.context_expr, ast.Call) else item.context_expr
            for item in node.items
        ]
        if not {getattr(one, "attr", getattr(one, "id", "")) for one in managers} & _SUPPRESSING:
            self._bound = after

    visit_AsyncWith = visit_With

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._branch([node.target, *node.body])
        self._branch(node.orelse)

    visit_AsyncFor = visit_For

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._branch(node.body)
        self._branch(node.orelse)

    def visit_Try(self, node: ast.Try) -> None:
        caught_outside = self._name_error_caught
        caught_here = any(_catches_name_errors(handler) for handler in node.handlers)
        self._name_error_caught = caught_outside or caught_here
        body = self._branch(node.body)
        self._name_error_caught = caught_outside
        if node.orelse:
            self._bound, before = body, self._bound
            body = self._branch(node.orelse)
            self._bound = before
        ends = [body, *(self._branch([handler]) for handler in node.handlers)]
        self._bound = set.intersection(*ends)
        self.visit_all(node.finalbody)

    visit_TryStar = visit_Try

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.visit_all([node.type])
        if node.name:
            self._bind(node.name)
        self.visit_all(node.body)
        if node.name:
            self._bound.discard(node.name)

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        for case in node.cases:
            self._branch([case.pattern, case.guard, *case.body])

    def _branch(self, nodes: Sequence[ast.AST | None]) -> set[str]:
        """Visits nodes that may not run. Returns the names that are bound if they do."""
        before = set(self._bound)
        self.visit_all(nodes)
        after, self._bound = self._bound, before
        return after

    # Scopes.

    def visit_FunctionDef(self, node: _Function) -> None:
        self.visit_all(node.decorator_list)
        parameters = _type_parameters(node)
        self._scopes.append(parameters)
        self._arguments(node.args)
        self._annotation(node.returns)
        self._scopes.pop()
        self._bind(node.name)
        self._function(node.args, node.body, parameters)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._arguments(node.args)
        self._function(node.args, [node.body], set())

    def _arguments(self, arguments: ast.arguments) -> None:
        self.visit_all([*arguments.defaults, *arguments.kw_defaults])
        for argument in _all_arguments(arguments):
            self._annotation(argument.annotation)

    def _function(
        self, arguments: ast.arguments, body: Sequence[ast.AST], parameters: set[str]
    ) -> None:
        own = (
            {argument.arg for argument in _all_arguments(arguments)} | _bound_in(body) | parameters
        )
        declared_global = _declared(body, ast.Global)
        outer_scopes, outer_class = self._scopes, self._class_bound
        bound_before, was_in_function = self._module_bound, self._in_function
        # A name that is declared global skips the enclosing functions. After the definition,
        # nothing is bound that only a call binds.
        self._scopes = [scope - declared_global for scope in outer_scopes] + [
            own - declared_global - _declared(body, ast.Nonlocal)
        ]
        self._module_bound, self._class_bound, self._in_function = set(bound_before), None, True
        self.visit_all(body)
        self._scopes, self._class_bound = outer_scopes, outer_class
        self._module_bound, self._in_function = bound_before, was_in_function

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all(node.decorator_list)
        parameters = _type_parameters(node)
        self._scopes.append(parameters)
        self.visit_all([*node.bases, *node.keywords])
        self._scopes.pop()
        # The name is bound before the body, because methods run when the class exists.
        self._bind(node.name)
        outer_class, bound_before = self._class_bound, self._module_bound
        was_evaluated = self._evaluated
        self._class_bound = {"__module__", "__qualname__", "__class__"}
        self._module_bound = set(bound_before)
        self._scopes.append(parameters | {"__class__"})
        own = _bound_in(node.body) | _mangled_names(node)
        for statement in node.body:
            before = set(self.names.needed)
            self.visit(statement)
            self.names.maybe_unused |= (self.names.needed.keys() - before) & own
        self._scopes.pop()
        self._class_bound, self._module_bound = outer_class, bound_before
        self._evaluated = was_evaluated

    def visit_ListComp(self, node: _Comprehension) -> None:
        first, *_ = node.generators
        self.visit(first.iter)
        targets = {
            name.id
            for generator in node.generators
            for name in ast.walk(generator.target)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        outer_class, bound_before = self._class_bound, set(self._module_bound)
        walrus = _bound_in([node])
        for name in walrus:
            self._bind(name)
        # The iterable may be empty, so that the comprehension binds nothing.
        self._module_bound = bound_before
        self._scopes.append(targets)
        self._class_bound = None
        for generator in node.generators:
            self.visit_all([None if generator is first else generator.iter, *generator.ifs])
        self.visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        self._scopes.pop()
        self._class_bound, self._module_bound = outer_class, bound_before

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def _annotation(self, node: ast.AST | None, *, late: bool = False) -> None:
        """Visits an annotation, which may never be evaluated."""
        was_evaluated = self._evaluated
        self._evaluated = was_evaluated and not (late or self._annotated_late)
        self.visit_all([node])
        self._evaluated = was_evaluated


def _all_arguments(arguments: ast.arguments) -> list[ast.arg]:
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        arguments.vararg,
        *arguments.kwonlyargs,
        arguments.kwarg,
    ]
    return [argument for argument in every if argument is not None]


def _catches_name_errors(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or getattr(kind, "id", "") in ("NameError", "Exception", "BaseException")
        for kind in kinds
    )


def _type_parameters(node: ast.AST) -> set[str]:
    return {parameter.name for parameter in getattr(node, "type_params", ())}


def _nodes_of_scope(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of one scope.

    Nested functions, classes and comprehensions aren't entered. Only the names that they bind in
    this scope count.
    """
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, _Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, _Comprehension):
            waiting += [inner for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
            continue
        waiting += ast.iter_child_nodes(node)


def _bound_in(nodes: Sequence[ast.AST]) -> set[str]:
    """Every name that a scope binds itself, without its nested scopes."""
    found: set[str] = set()
    for node in _nodes_of_scope(nodes):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            found.add(node.id)
        elif isinstance(node, _Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
    return found


def _declared(nodes: Sequence[ast.AST], kind: type[ast.Global] | type[ast.Nonlocal]) -> set[str]:
    return {
        name for node in _nodes_of_scope(nodes) if isinstance(node, kind) for name in node.names
    }


def _mangled_names(node: ast.ClassDef) -> set[str]:
    """The names that the compiler mangles inside a class: ``__x`` becomes ``_Class__x``."""
    return {
        name.id
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and name.id.startswith("__") and not name.id.endswith("__")
    }
