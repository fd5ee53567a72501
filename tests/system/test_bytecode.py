"""Tests of `bytecode`: a module that was edited between two launches runs as it is on disk."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
import time
from pathlib import Path

import pytest

IGNORE_STALE = "from icelaunch_nb.system.bytecode import ignore_stale_bytecode as t; t(); "


def run(folder: Path, code: str) -> str:
    off = ("PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")  # these tests need bytecode
    environ = {name: value for name, value in os.environ.items() if name not in off}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def second() -> int:
    """The second, in nanoseconds, within which all of the test's edits lie."""
    return int(time.time()) * 10**9


@pytest.fixture
def helper(tmp_path, second) -> Path:
    """A helper.py that was compiled, then edited in the same second without changing its size."""
    path = tmp_path / "helper.py"
    path.write_text("VALUE = 1\n")
    os.utime(path, ns=(second, second + 100_000_000))
    cached = py_compile.compile(str(path))
    os.utime(cached, ns=(second, second + 200_000_000))
    path.write_text("VALUE = 2\n")
    os.utime(path, ns=(second, second + 300_000_000))
    return path


def test_python_alone_runs_stale_bytecode(helper):
    """Without this, the next test would prove nothing."""
    assert run(helper.parent, "import helper; print(helper.VALUE)") == "1"


def test_edit_within_a_second_is_imported(helper):
    assert run(helper.parent, IGNORE_STALE + "import helper; print(helper.VALUE)") == "2"


def test_edit_within_a_second_is_imported_from_a_package(tmp_path, helper):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    for path in (
        helper,
        helper.parent / "__pycache__" / os.listdir(helper.parent / "__pycache__")[0],
    ):
        target = tmp_path / "package" / path.relative_to(helper.parent)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert run(tmp_path, "import package.helper; print(package.helper.VALUE)") == "1"
    assert run(tmp_path, IGNORE_STALE + "import package.helper; print(package.helper.VALUE)") == "2"


def test_edit_with_equal_timestamps_is_imported(helper, second):
    (cached,) = (helper.parent / "__pycache__").iterdir()
    os.utime(cached, ns=(second, second + 300_000_000))
    assert run(helper.parent, IGNORE_STALE + "import helper; print(helper.VALUE)") == "2"


def test_fresh_bytecode_is_still_used(tmp_path, second):
    path = tmp_path / "helper.py"
    path.write_text("VALUE = 1\n")
    os.utime(path, ns=(second, second))
    cached = Path(py_compile.compile(str(path)))
    before = cached.stat()
    # Bytecode of the same second and size hides this, which shows that the bytecode is used.
    path.write_text("VALUE = 2\n")
    os.utime(path, ns=(second, second))
    assert before.st_mtime_ns > second
    assert run(tmp_path, IGNORE_STALE + "import helper; print(helper.VALUE)") == "1"


def test_imports_without_bytecode_and_of_missing_modules_are_unchanged(tmp_path):
    (tmp_path / "plain.py").write_text("VALUE = 3\n")
    assert run(tmp_path, IGNORE_STALE + "import plain; print(plain.VALUE)") == "3"
    code = f"""
{IGNORE_STALE}
try:
    import nowhere
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(tmp_path, code) == "nowhere"


def test_module_created_after_a_failed_import_is_found(tmp_path):
    code = f"""
import os, sys, importlib
sys.path.insert(0, {str(tmp_path)!r})
try:
    import late
except ImportError:
    pass
stat = os.stat({str(tmp_path)!r})
open({str(tmp_path / "late.py")!r}, "w").write("VALUE = 4")
os.utime({str(tmp_path)!r}, ns=(stat.st_atime_ns, stat.st_mtime_ns))
{IGNORE_STALE}
import late
print(late.VALUE)
"""
    assert run(tmp_path, code) == "4"
