"""Which names a cell's body needs from outside, and where it reads each first. Only reads the syntax tree; runs nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
# After these, a body may have ended early. Any context manager could do that, but what others' bodies bind would be carried for nothing.
_SUPPRESSING = {"suppress", "raises", "ExitStack", "AsyncExitStack"}


@dataclass
class Names:
    """The global names of a body.

    Attributes:
        needed: Each name that is read where the body has not surely bound it yet, with the first place. A name that only one
            branch binds is both here and in `bound`: whether the notebook's value is used shows when it runs.
        bound: Every name that the body binds somewhere.
        certain: Those of `needed` that are read where the body can't have bound them, whatever runs.
        lenient: Those of `needed` of which it isn't sure that they are ever looked up outside (annotations, a class's own names).
        star: Whether a ``from … import *`` binds names that nobody can know.
    """

    needed: dict[str, ast.expr | ast.stmt] = field(default_factory=dict)
    bound: set[str] = field(default_factory=set)
    certain: set[str] = field(default_factory=set)
    lenient: set[str] = field(default_factory=set)
    star: bool = False


def read_names(tree: ast.Module, *, annotated_late: bool = False) -> Names:
    """The names of a body that runs as a module does: what it assigns at its top is global.

    Args:
        tree: The body.
        annotated_late: Whether annotations are not evaluated where they stand, as since Python 3.14, and with the ``annotations`` future.
    """
    reader = _Reader(annotated_late)
    reader.visit_all(tree.body)
    return reader.names


class _Reader(ast.NodeVisitor):
    """Goes through a body in the order in which it runs."""

    def __init__(self, annotated_late: bool) -> None:
        self.names = Names()
        self._annotated_late = annotated_late
        self._sure: set[str] = (
            set()
        )  # what the top level has bound by now, whatever branches were taken
        self._scopes: list[
            set[str]
        ] = []  # local names of the functions and comprehensions around, and of the class at the end
        self._class: set[str] | None = (
            None  # the names that the class around has bound, where a class body is being read
        )
        self._certain = True
        self._later = False  # whether it is in a function, which runs when it is called

    @property
    def _got(self) -> set[str]:
        """What the module, or the class around, has surely bound by now."""
        return self._sure if self._class is None else self._class

    @_got.setter
    def _got(self, names: set[str]) -> None:
        if self._class is None:
            self._sure = names
        else:
            self._class = names

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
            self._got.discard(node.id)
        else:
            self._bind(node.id)

    def _read(self, name: str, node: ast.expr | ast.stmt) -> None:
        if (
            (self._class is not None and name in self._class)
            or any(name in scope for scope in self._scopes)
            or name in self._sure
        ):
            return
        if self._certain and not self._later and name not in self.names.bound:
            self.names.certain.add(name)
        if name not in self.names.needed:
            self.names.needed[name] = node
            if not self._certain:
                self.names.lenient.add(name)
        elif self._certain and name in self.names.lenient:
            self.names.needed[name] = node
            self.names.lenient.discard(name)

    def _bind(self, name: str) -> None:
        if self._class is not None:
            self._class.add(name)
        elif not any(
            name in scope for scope in self._scopes
        ):  # a function's global is bound when it is called, if ever
            self.names.bound.add(name)
            if not self._scopes:
                self._sure.add(name)

    # Statements and expressions that bind, or whose parts run in another order than they are written.

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit_all([node.value, *node.targets])

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._read(node.target.id, node.target)
        self.visit_all([node.value, node.target])

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._annotation(
            node.annotation, late=self._class is None and bool(self._scopes)
        )  # a function never evaluates them
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
        self.names.bound.update(node.names if self._scopes or self._class is not None else ())

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        self.generic_visit(node)
        if node.name is not None:
            self._bind(node.name)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest is not None:
            self._bind(node.rest)

    def visit_TypeAlias(
        self, node: ast.AST
    ) -> None:  # Python 3.12; its value is looked up late, if ever
        self.visit(node.name)  # type: ignore[attr-defined]
        with_parameters = _type_parameters(node)
        self._scopes.append(with_parameters)
        self._annotation(node.value, late=True)  # type: ignore[attr-defined]
        self._scopes.pop()

    # Branches: what is bound afterwards is what every way through has bound.

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._got = self._branch(node.body) & self._branch(node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self._got = self._branch([node.body]) & self._branch([node.orelse])

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
            self._got = after

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
        body = self._branch([*node.body, *node.orelse])
        ends = [body, *(self._branch([handler]) for handler in node.handlers)]
        self._got = set.intersection(*ends)
        self.visit_all(node.finalbody)

    visit_TryStar = visit_Try

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.visit_all([node.type])
        if node.name:
            self._bind(node.name)
        self.visit_all(node.body)
        if node.name:
            self._got.discard(node.name)

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        for case in node.cases:
            self._branch([case.pattern, case.guard, *case.body])

    def _branch(self, nodes: Sequence[ast.AST | None]) -> set[str]:
        """What is surely bound after `nodes`, which may not run at all."""
        before = set(self._got)
        self.visit_all(nodes)
        after, self._got = self._got, before
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
        given_away = _declared(body, ast.Global)
        around, sure, outer, later = self._scopes, self._sure, self._class, self._later
        # A name declared global skips the functions around; what a call binds is not surely bound here.
        self._scopes = [scope - given_away for scope in around] + [
            own - given_away - _declared(body, ast.Nonlocal)
        ]
        self._sure, self._class, self._later = set(sure), None, True
        self.visit_all(body)
        self._scopes, self._sure, self._class, self._later = around, sure, outer, later

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all(node.decorator_list)
        parameters = _type_parameters(node)
        self._scopes.append(parameters)
        self.visit_all([*node.bases, *node.keywords])
        self._scopes.pop()
        self._bind(node.name)  # before its body: methods run later, when the class is there
        outer, sure, certain = self._class, self._sure, self._certain
        self._class, self._sure = {"__module__", "__qualname__", "__class__"}, set(sure)
        self._scopes.append(parameters | {"__class__"})
        own = _bound_in(node.body) | _private(node)
        for statement in node.body:
            before = set(self.names.needed)
            self.visit(statement)
            self.names.lenient |= (self.names.needed.keys() - before) & own
        self._scopes.pop()
        self._class, self._sure, self._certain = outer, sure, certain

    def visit_ListComp(self, node: _Comprehension) -> None:
        first, *_ = node.generators
        self.visit(first.iter)
        targets = {
            name.id
            for generator in node.generators
            for name in ast.walk(generator.target)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        outer, sure = self._class, set(self._sure)
        walrus = _bound_in([node])
        for name in walrus:
            self._bind(name)
        self._sure = sure  # nobody knows whether it has an item at all
        self._scopes.append(targets)
        self._class = None
        for generator in node.generators:
            self.visit_all([None if generator is first else generator.iter, *generator.ifs])
        self.visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        self._scopes.pop()
        self._class, self._sure = outer, sure

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def _annotation(self, node: ast.AST | None, *, late: bool = False) -> None:
        """An annotation may never be evaluated."""
        certain, self._certain = self._certain, self._certain and not (late or self._annotated_late)
        self.visit_all([node])
        self._certain = certain


def _all_arguments(arguments: ast.arguments) -> list[ast.arg]:
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        arguments.vararg,
        *arguments.kwonlyargs,
        arguments.kwarg,
    ]
    return [argument for argument in every if argument is not None]


def _type_parameters(node: ast.AST) -> set[str]:
    return {parameter.name for parameter in getattr(node, "type_params", ())}


def _here(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of one scope: nested functions, classes and comprehensions are not entered, but for what they bind here."""
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
    """Every name that a scope binds by itself."""
    found: set[str] = set()
    for node in _here(nodes):
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
    return {name for node in _here(nodes) if isinstance(node, kind) for name in node.names}


def _private(node: ast.ClassDef) -> set[str]:
    """Names that the compiler spells another way inside a class: ``__x`` is ``_Class__x``."""
    return {
        name.id
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and name.id.startswith("__") and not name.id.endswith("__")
    }
