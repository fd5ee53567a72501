"""The shape of the house: a folder is a process, and importing the front door is cheap."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import icelaunch_nb

HOME = Path(icelaunch_nb.__file__).parent
FILES = sorted(HOME.rglob("*.py"))
ROOMS = ("notebook", "host", "agent", "worker")
HEAVY = {"torch", "numpy", "IPython"}


def _name(path: Path) -> str:
    return str(path.relative_to(HOME))


def _imports(node: ast.AST, path: Path) -> set[str]:
    """Full names of the modules that a statement imports, relative ones resolved."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        package = ["icelaunch_nb", *path.relative_to(HOME).parent.parts]
        base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        module = ".".join(filter(None, [base, node.module]))
        return {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return set()


def all_imports(path: Path) -> set[str]:
    """Those in functions too."""
    return set().union(*(_imports(node, path) for node in ast.walk(ast.parse(path.read_text()))))


def imports_at_import_time(path: Path) -> set[str]:
    """Those that run when the module is imported: not in functions, not under TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        found.update(_imports(node, path))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def test_there_is_a_house():
    assert {path.parent.name for path in FILES} >= {"icelaunch_nb", *ROOMS}


def test_the_reading_of_imports_sees_every_spelling(tmp_path):
    path = HOME / "agent" / "imaginary.py"
    source = "from ..worker import main\nfrom . import ranks\nimport icelaunch_nb.host.frozen as f\nfrom icelaunch_nb import notebook\n"
    found = set().union(*(_imports(node, path) for node in ast.walk(ast.parse(source))))
    assert {
        "icelaunch_nb.worker",
        "icelaunch_nb.agent.ranks",
        "icelaunch_nb.host.frozen",
        "icelaunch_nb.notebook",
    } <= found


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(HOME).parts[0] in ROOMS], ids=_name
)
def test_rooms_never_import_each_other(path):
    others = [f"icelaunch_nb.{room}" for room in ROOMS if room != path.relative_to(HOME).parts[0]]
    assert [
        name
        for name in all_imports(path)
        if any(name == other or name.startswith(other + ".") for other in others)
    ] == []


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(HOME).parts[0] not in ("agent", "worker")], ids=_name
)
def test_what_a_kernel_or_a_host_imports_brings_no_torch(path):
    assert {name.split(".")[0] for name in imports_at_import_time(path)} & HEAVY == set()


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(HOME).parts[0] != "agent"], ids=_name
)
def test_only_the_agents_room_knows_torch_elastic(path):
    assert [name for name in all_imports(path) if name.startswith("torch.distributed")] == []


@pytest.mark.parametrize(
    "statement",
    ["import icelaunch_nb", "from icelaunch_nb.notebook import extension, hosts, printer"],
)
def test_importing_it_imports_nothing_heavy(statement):
    code = f"import sys; {statement}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_importing_it_starts_nothing_and_leaves_the_process_as_it_was():
    code = """
import atexit, multiprocessing, os, signal, sys, threading
def state():
    return ({s: signal.getsignal(s) for s in signal.valid_signals()}, dict(os.environ), threading.active_count(),
            multiprocessing.get_start_method(allow_none=True), os.getcwd(), sys.path[:], multiprocessing.active_children())
before = state()
import icelaunch_nb
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_all_names_exist_are_sorted_and_stand_once():
    names = icelaunch_nb.__all__
    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(icelaunch_nb, name)] == []


def _own(cls: type):
    for name, member in vars(cls).items():
        if not name.startswith("_") and (
            inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
        ):
            yield name, member


@pytest.mark.parametrize("name", icelaunch_nb.__all__)
def test_every_public_name_and_its_members_have_a_docstring(name):
    thing = getattr(icelaunch_nb, name)
    doc = thing.__doc__ or ""
    assert doc.strip() and not doc.startswith(f"{name}("), (
        "a dataclass's generated signature is no docstring"
    )
    if inspect.isclass(thing):
        assert thing.__doc__ not in [base.__doc__ for base in thing.__mro__[1:]]
        assert [member for member, value in _own(thing) if not (value.__doc__ or "").strip()] == []


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_module_opens_with_a_sentence_and_stays_below_700_lines(path):
    text = path.read_text()
    assert len(text.splitlines()) < 700
    assert ast.get_docstring(ast.parse(text))


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert version("icelaunch_nb") == icelaunch_nb.__version__
