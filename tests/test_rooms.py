"""Which folder may import which, and that importing icelaunch_nb is cheap."""

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
# What each room may import, beside itself and the modules of FOR_ALL. The first four are processes.
ROOMS = {
    "host": {"launching", "rundir", "system"},
    "agent": {"launching", "rundir", "system"},
    "worker": {"launching", "pickling", "rundir", "system"},
    "client": {"launching", "pickling", "rundir", "system"},
    "notebook": {"client", "launching", "pickling", "rundir", "system"},
    "callbacks": {"rundir", "worker"},
    "pickling": {"rundir", "system"},
    "launching": {"rundir", "system"},
    "rundir": {"system"},
    "system": set(),
}
AT_THE_ROOT = {
    "__init__": {"client", "notebook", "rundir", "worker"},
    "config": {"system"},
    "errors": {"system"},
    "events": {"launching", "rundir"},
}
FOR_ALL = {"config", "errors", "events"}
HEAVY = {"torch", "numpy", "IPython"}
# Only some launches need these. Importing psutil takes a tenth of the time of the package's import.
LATER = {"psutil", "html", "secrets"}


def _name(path: Path) -> str:
    return str(path.relative_to(HOME))


def _imports(node: ast.AST, path: Path) -> set[str]:
    """Returns the full names that a statement imports.

    Relative names are resolved, and ``from a import b`` imports ``a.b``.
    """
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        package = ["icelaunch_nb", *path.relative_to(HOME).parent.parts]
        base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        return {".".join(filter(None, [base, node.module, alias.name])) for alias in node.names}
    return set()


def all_imports(path: Path) -> set[str]:
    """Returns what a file imports, in functions too."""
    return set().union(*(_imports(node, path) for node in ast.walk(ast.parse(path.read_text()))))


def imports_at_import_time(path: Path) -> set[str]:
    """Returns what importing a file imports: not in functions, not under TYPE_CHECKING."""
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


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(HOME.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def modules_imported(path: Path) -> set[str]:
    """Returns the modules of the package that a file imports, lazily or not.

    Where it imports a name of a module, that is the module.
    """
    found = set()
    for name in all_imports(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", module_name(path)}


def _room(module: str) -> str:
    """Returns the room of a module, or the own name of one at the root."""
    parts = module.split(".")[1:]
    return parts[0] if parts else "__init__"


def test_every_room_and_every_module_at_the_root_is_known():
    assert {path.relative_to(HOME).parts[0].removesuffix(".py") for path in FILES} == {
        *ROOMS,
        *AT_THE_ROOT,
    }


def test_every_spelling_of_an_import_is_recognised():
    path = HOME / "agent" / "imaginary.py"
    source = """
def f():
    from ..worker import main
from . import control
import icelaunch_nb.host.prepare_forks as f
from icelaunch_nb import notebook
"""
    found = set().union(*(_imports(node, path) for node in ast.walk(ast.parse(source))))
    assert {
        "icelaunch_nb.worker.main",
        "icelaunch_nb.agent.control",
        "icelaunch_nb.host.prepare_forks",
        "icelaunch_nb.notebook",
    } == found
    assert _room("icelaunch_nb.agent.control") == "agent"
    assert _room("icelaunch_nb.config") == "config"
    assert _room("icelaunch_nb") == "__init__"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_module_imports_from_the_rooms_that_it_may(path):
    own = _room(module_name(path))
    may = {own, *FOR_ALL, *(ROOMS[own] if own in ROOMS else AT_THE_ROOT[own])}
    assert [name for name in sorted(modules_imported(path)) if _room(name) not in may] == []


def test_there_is_no_import_circle():
    graph = {name: modules_imported(path) for name, path in MODULES.items()}
    open_, done = [], set()

    def walk(module: str) -> None:
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        if module in done:
            return
        open_.append(module)
        for other in sorted(graph[module]):
            walk(other)
        done.add(open_.pop())

    for module in sorted(graph):
        walk(module)


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(HOME).parts[0] not in ("agent", "worker")], ids=_name
)
def test_nothing_that_a_kernel_or_a_host_imports_imports_torch(path):
    assert {name.split(".")[0] for name in imports_at_import_time(path)} & HEAVY == set()


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(HOME).parts[0] != "agent"], ids=_name
)
def test_only_the_agents_room_knows_torch_elastic(path):
    assert [name for name in all_imports(path) if name.startswith("torch.distributed")] == []


def test_only_who_can_know_that_a_run_ended_writes_its_journal():
    """An agent for itself, a host for its agents, a host's parent, and a run without an agent."""
    writers = {
        module_name(path).removeprefix("icelaunch_nb.")
        for path in FILES
        if "JournalWriter" in path.read_text()
    }
    assert {name for name in writers if not name.startswith("agent.")} == {
        "rundir.journal",
        "host.agent_leftovers",
        "client.host_pool",
        "client.inline",
    }


@pytest.mark.parametrize(
    "statement",
    [
        "import icelaunch_nb",
        "from icelaunch_nb.notebook import extension; "
        "from icelaunch_nb.client import host_pool, log_printer",
    ],
)
def test_importing_it_imports_nothing_heavy(statement):
    code = f"import sys; {statement}; print(*sorted({HEAVY | LATER!r} & set(sys.modules)))"
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
    handlers = {s: signal.getsignal(s) for s in signal.valid_signals()}
    method = multiprocessing.get_start_method(allow_none=True)
    return (handlers, dict(os.environ), threading.active_count(), method, os.getcwd(), sys.path[:],
            multiprocessing.active_children())
before = state()
import icelaunch_nb
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_all_lists_existing_names_sorted_and_once_each():
    names = icelaunch_nb.__all__
    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(icelaunch_nb, name)] == []


def test_tab_offers_only_the_public_names():
    assert sorted(dir(icelaunch_nb)) == icelaunch_nb.__all__


def test_a_run_offers_these_names_and_no_helper():
    assert {name for name in dir(icelaunch_nb.Run) if not name.startswith("_")} == {
        *("attempt", "config", "debug", "detach", "devices", "elapsed", "events", "failures"),
        *("in_debugger", "kill", "last_checkpoint", "log_dir", "logs", "metrics", "name", "panel"),
        *("pause", "pids", "restarts", "result", "resume", "run_id", "save_checkpoint", "silent"),
        *("stacks", "started", "state", "status_lines", "stop", "wait"),
    }


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
