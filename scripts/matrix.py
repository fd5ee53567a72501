"""``make matrix``: runs the tests on every Python and torch that the package declares.

It prints a table in Markdown. Each environment has its torch from PyPI, some gigabytes. uv links
the files that several environments share, so they are on disk once. The table gives a reason for
what can't be installed on this machine. That doesn't count as a failure.

All of it takes hours, so the tests run in parts. The result of each part is stored beside the
environments, with the day and the commit, until that part runs again. ``--table`` prints the stored
results, and says which parts a row lacks.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
BETWEEN = "2.10.0"
PYTHONS = ("3.10", "3.12", "3.13", "3.14")
# The browser's tests and the notebooks are left out, because they use nothing of torch or Python
# that the kernel's tests don't use. The kill matrix is left out, because it is slow.
PARTS = {
    "units": ["tests", "--ignore=tests/end_to_end"],
    **{name: [f"tests/end_to_end/{name}"] for name in ("ranks", "kernel", "idioms", "gpu")},
}
_NO_TORCH = "No module named 'torch'"


@dataclass
class Part:
    """The result of one part of the tests in one environment.

    Attributes:
        counts: How many tests passed, failed, were skipped, or need the torch that is missing.
        failed: The names of the tests that failed.
        seconds: How long the part took.
        when: The day, as ``2026-11-28``.
        commit: The commit that was tested. A ``+`` follows it if the tree had further changes.
    """

    counts: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    when: str = ""
    commit: str = ""


@dataclass
class Row:
    """One environment, and the results of the tests in it.

    Attributes:
        python: The version of Python, as ``3.12``.
        torch: The version of torch, as ``2.6.0``. Empty for the newest one for this Python.
        floor: Whether all dependencies are the oldest that the package declares.
        found: The versions of Python and torch that are installed.
        parts: The results, by the name in `PARTS`, or by pytest's arguments for other tests.
        note: Why results are missing.
    """

    python: str
    torch: str = ""
    floor: bool = False
    found: tuple[str, str] = ("", "")
    parts: dict[str, Part] = field(default_factory=dict)
    note: str = ""

    def name(self) -> str:
        """Returns the name of its folder, which ``--only`` matches."""
        return f"python{self.python}-torch{self.torch or 'newest'}"


def rows() -> list[Row]:
    """Returns a row for each torch on this Python, and one for each other Python."""
    declared = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert declared is not None
    floor = declared[1] + ".0" * (2 - declared[1].count("."))
    return [
        Row(HERE, floor, floor=True),
        Row(HERE, BETWEEN),
        Row(HERE),
        *(Row(python) for python in PYTHONS if python != HERE),
    ]


def interpreter(python: str) -> str | None:
    """Returns a Python that starts: ``python3.X`` of the path, or one of pyenv's."""
    for path in _interpreters(python):
        done = subprocess.run(
            [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.stdout.strip() == python:
            return path
    return None


def _interpreters(python: str) -> Iterator[str]:
    if python == HERE:
        yield sys.executable
    if (path := shutil.which(f"python{python}")) is not None:
        yield path
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    yield from sorted(glob.glob(f"{pyenv}/versions/{python}.*/bin/python{python}"))


class Environment:
    """A row's virtual environment, which is made again only when the requirements change.

    Args:
        folder: The environment's folder.
        row: The row.
    """

    def __init__(self, folder: Path, row: Row) -> None:
        self._folder, self._row = folder, row
        self.python = str(folder / "bin" / "python")

    def make(self, interpreter: str) -> None:
        """Installs all that the tests need.

        If torch can't be installed, the rest is, and the row's note says so.
        """
        row, ready = self._row, self._folder / ".ready"
        wanted = hashlib.sha256(
            b"".join(
                (ROOT / name).read_bytes() for name in ("pyproject.toml", "requirements-dev.txt")
            )
        ).hexdigest()
        if ready.exists() and ready.read_text() == wanted:
            return
        self._uv("venv", "--clear", "--python", interpreter, str(self._folder))
        torch = f"torch=={row.torch}" if row.torch else "torch"
        try:
            if row.floor:
                self._install(
                    "--resolution", "lowest-direct", "--requirement", str(ROOT / "pyproject.toml")
                )
            self._install(torch, *self._requirements())
            self._install("--no-deps", "--editable", str(ROOT))
            ready.write_text(wanted)
        except subprocess.CalledProcessError as error:
            row.note = f"{torch} can't be installed: {_last_line(error.stderr)}"
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as override:
                override.write("torch ; python_version < '3'\n")
                override.flush()
                self._install("--override", override.name, *self._requirements())
            self._install("--no-deps", "--editable", str(ROOT))

    @staticmethod
    def _requirements() -> list[str]:
        """Returns what ``make setup`` installs, without the torch that it names."""
        lines = [
            line.partition("#")[0].strip()
            for line in (ROOT / "requirements-dev.txt").read_text().splitlines()
        ]
        return [
            "--requirement",
            str(ROOT / "pyproject.toml"),
            *(line for line in lines if line and not line.startswith("torch=")),
        ]

    def _install(self, *what: str) -> None:
        self._uv("pip", "install", "--python", self.python, *what)

    @staticmethod
    def _uv(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "uv", *arguments, "--quiet", "--no-config"],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )

    def versions(self) -> tuple[str, str]:
        """Returns the versions of Python and of torch, the latter empty if torch is missing."""
        code = (
            "import platform; print(platform.python_version()); "
            "import torch; print(torch.__version__)"
        )
        printed = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, check=False
        ).stdout.split()
        return printed[0], printed[1] if len(printed) > 1 else ""


def test(environment: Environment, tests: Sequence[str], *, has_torch: bool) -> Part:
    """Runs some tests, and returns their result."""
    part = Part(when=datetime.date.today().isoformat(), commit=_commit())
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": os.pathsep.join([str(Path(environment.python).parent), os.environ["PATH"]]),
    }
    # uv installs sources only, so each kernel and each host would compile all of torch again.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="matrix-", ignore_cleanup_errors=True) as scratch:
        report = Path(scratch) / "report.xml"
        began = time.monotonic()
        subprocess.run(
            [
                environment.python,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-m",
                "not slow and not long",
                "--continue-on-collection-errors",
                f"--junitxml={report}",
                *tests,
            ],
            cwd=ROOT,
            env=env,
            stdout=sys.stderr,
            check=False,
        )
        part.seconds = time.monotonic() - began
        if not report.exists():
            part.failed.append(f"pytest itself, of {' '.join(tests)}: see above")
            return part
        for case in ElementTree.parse(report).iter("testcase"):
            _count(part, case, has_torch)
    return part


def _count(part: Part, case: ElementTree.Element, has_torch: bool) -> None:
    failures = [*case.iter("failure"), *case.iter("error")]
    outcome = "failed" if failures else "skipped" if case.find("skipped") is not None else "passed"
    if (
        failures
        and not has_torch
        and all(_NO_TORCH in "".join(failure.itertext()) for failure in failures)
    ):
        outcome = "need torch"
    part.counts[outcome] = part.counts.get(outcome, 0) + 1
    name = f"{case.get('classname')}::{case.get('name')}"
    if outcome == "failed" and name not in part.failed:
        part.failed.append(name)


def _commit() -> str:
    revision, changes = [
        subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
        for arguments in (
            ["rev-parse", "--short", "HEAD"],
            ["status", "--porcelain", "--untracked-files=no"],
        )
    ]
    return revision + ("+" if changes else "")


def run(row: Row, folder: Path, tests: Sequence[str]) -> None:
    """Makes a row's environment, runs tests in it, and stores their results.

    Args:
        row: The row. Its parts are filled in.
        folder: Where the environments and the results are.
        tests: Names in `PARTS`, or other arguments of pytest. If empty, every part runs.
    """
    found = interpreter(row.python)
    if found is None:
        row.note = f"there is no python{row.python} on this machine's path"
        store(row, folder)
        return
    environment = Environment(folder / row.name(), row)
    try:
        environment.make(found)
    except subprocess.CalledProcessError as error:
        row.note = f"no environment: {_last_line(error.stderr)}"
        store(row, folder)
        return
    row.found = environment.versions()
    named = [name for name in PARTS if name in tests or not tests]
    others = [name for name in tests if name not in PARTS]
    for name, some in [
        *((name, PARTS[name]) for name in named),
        *([(" ".join(others), others)] if others else []),
    ]:
        row.parts[name] = test(environment, some, has_torch=bool(row.found[1]))
        store(row, folder)


def store(row: Row, folder: Path) -> None:
    """Stores the results of a row's parts, and keeps those that are stored of its other parts."""
    content = asdict(row)
    content["parts"] = {
        **asdict(stored(replace(row), folder))["parts"],
        **{name: part for name, part in content["parts"].items() if name in PARTS},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{row.name()}.json").write_text(json.dumps(content, indent=1))


def stored(row: Row, folder: Path) -> Row:
    """Returns the row with its stored results."""
    try:
        found = json.loads((folder / f"{row.name()}.json").read_text())
    except FileNotFoundError:
        row.parts = {}
        return row
    return Row(**{**found, "parts": {name: Part(**part) for name, part in found["parts"].items()}})


def _last_line(text: str) -> str:
    lines = [line.strip(" ╰─▶│") for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "uv says nothing"


def table(done: Sequence[Row], wanted: Collection[str]) -> str:
    """Returns the rows in Markdown, and below them the tests that failed.

    Args:
        done: The rows, in the table's order.
        wanted: The parts that a whole row has.
    """
    lines = [
        "| Python | torch | passed | failed | skipped | minutes | day | commit | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in done:
        parts, counts = row.parts.values(), _sum_counts(row)
        python, torch = (
            row.found[0] or row.python,
            row.found[1].partition("+")[0] or ("–" if row.found[0] else row.torch or "newest"),
        )
        figures = (
            [
                *(str(counts[what]) for what in ("passed", "failed", "skipped")),
                f"{sum(part.seconds for part in parts) / 60:.0f}",
                _join_distinct(part.when for part in parts),
                _join_distinct(part.commit for part in parts),
            ]
            if parts
            else ["–"] * 6
        )
        lacks = [name for name in wanted if name not in row.parts]
        notes = [
            row.note,
            f"{counts['need torch']} need torch" if counts["need torch"] else "",
            "the other dependencies at their floors too" if row.floor and row.found[1] else "",
            ""
            if row.note or not lacks
            else "not run"
            if not parts
            else f"without {', '.join(lacks)}",
        ]
        lines.append(
            "| " + " | ".join([python, torch, *figures, "; ".join(filter(None, notes))]) + " |"
        )
    for row in done:
        failed = [name for part in row.parts.values() for name in part.failed]
        lines += [f"\n{row.name()}, failed:", *(f"- {name}" for name in failed)] if failed else []
    return "\n".join(lines)


def _sum_counts(row: Row) -> Counter[str]:
    return sum((Counter(part.counts) for part in row.parts.values()), Counter())


def _join_distinct(texts: Iterable[str]) -> str:
    """Joins the texts, each once, in the order of their first appearance."""
    return ", ".join(dict.fromkeys(texts))


def main() -> None:
    """Runs the rows one after the other, and exits with 1 if a test failed."""
    parser = argparse.ArgumentParser(
        prog="python scripts/matrix.py",
        description="the tests on every Python and torch that is declared",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build" / "matrix",
        help="where the environments lie (build/matrix)",
    )
    parser.add_argument(
        "--only",
        default="",
        help="the rows whose names have this in them, as python3.12 or torch2.6",
    )
    parser.add_argument(
        "--table", action="store_true", help="runs nothing; prints the table of what is kept"
    )
    parser.add_argument(
        "tests",
        nargs="*",
        help=f"instead of all parts: some of {', '.join(PARTS)}, or what pytest takes",
    )
    options = parser.parse_args()
    chosen = [row for row in rows() if options.only in row.name()]
    if options.table:
        print(table([stored(row, options.folder) for row in chosen], PARTS))
        return
    for row in chosen:
        print(f"\n{row.name()}", file=sys.stderr, flush=True)
        run(row, options.folder, options.tests)
    print(table(chosen, () if options.tests else PARTS))
    sys.exit(any(part.failed for row in chosen for part in row.parts.values()))


if __name__ == "__main__":
    main()
