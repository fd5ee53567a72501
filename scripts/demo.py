"""Executes a notebook in a new kernel of this environment, and prints its network's accuracy.

    python scripts/demo.py notebooks/01_quickstart.ipynb build/demo

It writes the executed notebook as HTML too. It ends with an error if a cell fails, or if the
accuracy that the notebook prints isn't above 0.95.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

# Jupyter chooses this environment's kernel, even if the user's own folder has a `python3` kernel.
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

ENOUGH = 0.95


def main(notebook: Path, target: Path) -> None:
    """Executes `notebook`, and writes it to the folder `target` as HTML and as a notebook."""
    book = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        book,
        timeout=300,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(notebook.parent)}},
        # ipykernel 7 warns of its own TCP connection at every start. That isn't about the notebook.
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    started = time.monotonic()
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"{notebook} failed:\n{error}")
    finally:
        html = _write(
            book, notebook.stem, target
        )  # a failed notebook too, since it shows where it failed
        print(f"executed notebook: {html}", flush=True)
    accuracy = _accuracy(book)
    print(f"test accuracy: {accuracy:.4f}, after {time.monotonic() - started:.0f} s")
    if not accuracy > ENOUGH:
        sys.exit(f"the accuracy should be above {ENOUGH}")


def _write(book: nbformat.NotebookNode, name: str, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, target / f"{name}.ipynb")
    html = (target / f"{name}.html").resolve()
    html.write_text(HTMLExporter().from_notebook_node(book)[0], encoding="utf-8")
    return html


def _accuracy(book: nbformat.NotebookNode) -> float:
    printed = "".join(
        output.get("text", "") for cell in book.cells for output in cell.get("outputs", [])
    )
    found = re.findall(r"^test accuracy (\d\.\d+)$", printed, re.MULTILINE)
    if len(found) != 1:
        sys.exit(f"the notebook should print one line 'test accuracy 0.…', it printed {len(found)}")
    return float(found[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
