"""Takes the README's pictures of the panel, in JupyterLab in a real browser, light and dark.

Usage: ``python scripts/screenshots.py [folder]``. The default folder is build/screenshots.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

HOME = Path(__file__).parent.parent
CELLS = [
    """%load_ext icelaunch_nb
import math, random, time, icelaunch_nb as ice

def train(epochs, batches):
    ctx = ice.get_context()
    noise = random.Random(ctx.rank)
    for epoch in ctx.steps(range(epochs)):
        for batch in ctx.steps(range(batches)):
            step = epoch * batches + batch
            loss = 2.3 / (1 + step / 25) + noise.gauss(0, 0.04)
            accuracy = 1 - math.exp(-step / 70) + noise.gauss(0, 0.01)
            ctx.report(loss=loss, accuracy=accuracy, tokens_per_s=8192 * noise.gauss(1, 0.02))
            speed = 8192 / (1 + ctx.rank % 3 / 50)
            head = f"\\x1b[36mepoch {epoch} step {step:3}\\x1b[0m"
            print(f"{head}  loss {loss:.4f}  {speed:,.0f} tokens/s")
            if ctx.rank == 2 and step == 30 and ctx.restart_count == 0:
                raise RuntimeError("NaN in the gradient of layer 7")
            if ctx.rank == 5 and step == 160:
                raise ValueError("batch 160 has no labels")
            time.sleep(0.05)""",
    'run = ice.launch(train, args=(3, 80), nproc_per_node=8, devices="cpu", max_restarts=1)\nrun',
]


def main(folder: Path) -> None:
    """Takes three pictures: of a run, of all its ranks with the events, and of a failed rank."""
    folder.mkdir(parents=True, exist_ok=True)
    lab = _lab()
    with (
        tempfile.TemporaryDirectory() as home,
        sync_playwright() as playwright,
        lab.chromium(playwright) as browser,
    ):
        server = lab.Server(Path(home))
        try:
            for theme in ("Light", "Dark"):
                server.theme(f"JupyterLab {theme}")
                page = browser.new_page(
                    viewport={"width": 1280, "height": 1000}, device_scale_factor=2
                )
                book = lab.Book(server, page, server.notebook(CELLS))
                book.run(0)
                book.wait_for_end(0, 60)
                book.run(1)
                book.wait_for_text(1, "step  60", 30)
                _take_picture(book, folder / f"running-{theme.lower()}.png")
                book.panel(1).get_by_role("tab", name="all").click()
                book.panel(1).get_by_role("button", name="Events").click()
                page.wait_for_timeout(700)  # a screenful of lines
                _take_picture(book, folder / f"all-{theme.lower()}.png")
                book.panel(1).get_by_role("button", name="Events").click()
                book.wait_for_state(1, "FAILED", 30)
                book.panel(1).get_by_role("tab", name="rank 5", selected=True).wait_for()
                _take_picture(book, folder / f"failed-{theme.lower()}.png")
                page.close()
        finally:
            server.close_notebooks()
            server.close()
    print(f"the pictures are in {folder}")


def _take_picture(book: Any, path: Path) -> None:
    book.panel(1).scroll_into_view_if_needed()
    book.panel(1).screenshot(path=str(path))


def _lab() -> Any:
    spec = importlib.util.spec_from_file_location(
        "lab", HOME / "tests" / "end_to_end" / "browser" / "lab.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lab"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HOME / "build" / "screenshots")
