"""A notebook that is executed without a browser stays small, however much the ranks print."""

from __future__ import annotations

import re

import nbclient
import nbformat
import pytest

FIRST = """
%load_ext icelaunch_nb
import icelaunch_nb as ice

def prints(lines):
    for number in range(lines):
        print(number)

def launch(lines, **options):
    return ice.launch(prints, (lines,), nproc_per_node=2, devices="cpu", **options)
"""
CELLS = {
    "result": "launch(100_000).result()",
    "await": "await launch(100_000)",
    "panel": "run = launch(100_000)\ndisplay(run)\nwhile not run.wait(0.05): pass",
    "magic": "%%icelaunch -n 2 --devices cpu\nprints(100_000)",
    "no limit": "launch(2_000, saved_output=None).result()",
    "no limit, magic": "%%icelaunch -n 2 --devices cpu --saved-output none\nprints(2_000)",
    "none at all": "launch(2_000, saved_output=0).result()",
}


@pytest.fixture(scope="module")
def executed(ipykernel, tmp_path_factory):
    """The cells' outputs, and by how many bytes each made the notebook grow."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code) for code in [FIRST, *CELLS.values()]]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
        for name, value in ipykernel.items():
            patch.setenv(name, value)
        nbclient.NotebookClient(
            notebook,
            timeout=100,
            resources={"metadata": {"path": str(tmp_path_factory.mktemp("there"))}},
        ).execute()
    found = {}
    for name, cell in zip(CELLS, notebook.cells[1:], strict=True):
        alone = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=cell.outputs)])
        text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        found[name] = text.splitlines(), len(nbformat.writes(alone).encode())
    return found


@pytest.mark.parametrize("name", ["result", "await", "panel", "magic"])
def test_the_first_and_last_lines_are_kept(executed, name):
    lines, size = executed[name]
    assert size <= 100_000
    for rank in range(2):
        own = [
            line.removeprefix(f"[default_role{rank}]:")
            for line in lines
            if line.startswith(f"[default_role{rank}]:")
        ]
        numbers = [line for line in own if line.isdecimal()]
        assert (numbers[:2], numbers[-1]) == (["0", "1"], "99999")
        [(left_out, path)] = re.findall(
            r"… ([0-9,]+) lines left out; all are in (\S+) …", "\n".join(own)
        )
        assert len(numbers) + int(left_out.replace(",", "")) == 100_000
        with open(path) as log:
            assert sum(1 for _ in log) == 100_000


@pytest.mark.parametrize("name", ["no limit", "no limit, magic"])
def test_an_option_keeps_all(executed, name):
    lines, _ = executed[name]
    assert (
        lines.count("[default_role1]:1999") == 1
        and sum(line.startswith("[default_role0]:") for line in lines) == 2_000
    )


def test_an_option_keeps_none(executed):
    lines, _ = executed["none at all"]
    assert not any(line.startswith("[") for line in lines)
    assert any(line.startswith("… 4,000 lines of 2 more streams left out") for line in lines)
