"""The notebooks run under papermill and nbconvert. `make test` compares their output by nbval."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[3] / "notebooks").glob("*.ipynb"))
TOOLS = {
    "papermill": [sys.executable, "-m", "papermill", "--kernel", "python3", "--no-progress-bar"],
    "nbconvert": [
        sys.executable,
        "-m",
        "nbconvert",
        "--execute",
        "--to",
        "notebook",
        "--log-level=WARN",
    ],
}


@contextlib.contextmanager
def executing(tool: str, notebook: Path, target: Path) -> Iterator[subprocess.Popen[str]]:
    command = [*TOOLS[tool], str(notebook)] + (
        [str(target)] if tool == "papermill" else ["--output", str(target)]
    )
    # The other tool has runs of the same names, so each has a directory of its own. Its path is
    # short, for sockets are in it.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        environ = {
            **os.environ,
            "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment
            "TMPDIR": own,
            "XDG_STATE_HOME": own,
        }
        process = subprocess.Popen(
            command,
            cwd=notebook.parent,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()  # its kernel goes with it
            process.communicate()
        for journal in Path(own).glob("icelaunch_nb-*/*/journal.jsonl"):
            assert json.loads(journal.read_text().splitlines()[-1])["event"] == "end"


def test_there_are_numbered_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == [
        f"{number:02}" for number in range(1, len(NOTEBOOKS) + 1)
    ]
    assert len(NOTEBOOKS) >= 5


@pytest.mark.parametrize(
    "notebook",
    [
        # `make test` has executed all of them by nbval. Here it tries the tools.
        pytest.param(path, id=path.stem, marks=pytest.mark.long if number else pytest.mark.slow)
        for number, path in enumerate(NOTEBOOKS)
    ],
)
def test_a_notebook_runs_to_its_end(notebook, tmp_path):
    with contextlib.ExitStack() as both:  # at once: most of their time is waiting
        running = {
            tool: both.enter_context(executing(tool, notebook, tmp_path / f"{tool}.ipynb"))
            for tool in TOOLS
        }
        for tool, process in running.items():
            stderr = process.communicate(timeout=100)[1]
            assert process.returncode == 0, stderr[-3000:]
            cells = [
                cell
                for cell in json.loads((tmp_path / f"{tool}.ipynb").read_text())["cells"]
                if cell["cell_type"] == "code"
            ]
            assert all(cell["execution_count"] for cell in cells)
            outputs = [output for cell in cells for output in cell["outputs"]]
            assert outputs and not [
                output for output in outputs if output["output_type"] == "error"
            ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_stored_notebook_is_small_and_has_no_paths_of_a_machine(notebook):
    text = notebook.read_text()
    assert len(text) < 200_000
    assert "widget-view+json" not in text, "a view without its kernel shows an error"
    assert str(Path.home()) + "/" not in text
