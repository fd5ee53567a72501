"""A ``%%icelaunch`` cell in a browser: it waits, and its panel is live."""

from __future__ import annotations

import pytest

BODY = (
    "import os, time\n"
    "for step in ctx.steps(range(2000)):\n"
    "    print(f'step {step} of rank {rank}')\n"
    "    time.sleep(0.02)\n"
    "rank * 2"
)


def test_a_waiting_cell_has_a_live_panel_whose_stop_acts(book):
    cell = book.cell(f"%%icelaunch -n 2 --out halves\n{BODY}")
    book.wait_for_text(cell, "step 3 of rank 0")
    book.wait_for_state(cell, "RUNNING")
    book.panel(cell).get_by_role("tab", name="rank 1").click()
    book.wait_for_text(cell, "of rank 1")
    book.click(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    book.wait_for_end(cell)
    # The loops ended at a step, so the ranks returned. Their output is only in the panel.
    text = book.output(cell).inner_text()
    assert "{0: 0, 1: 2}" in text and "[default_role" not in text


def test_the_run_of_a_waiting_cell_pauses_and_resumes(book):
    cell = book.cell(f"%%icelaunch -n 2\n{BODY}")
    book.wait_for_text(cell, "step 3 of rank 0")
    book.click(cell, "pause")
    book.wait_for_state(cell, "PAUSED")
    book.click(cell, "resume")
    book.wait_for_state(cell, "RUNNING")
    book.click(cell, "stop")
    book.wait_for_end(cell)


def test_interrupt_ends_the_cell_and_its_run(book):
    cell = book.cell(f"%%icelaunch -n 2\n{BODY}")
    book.wait_for_text(cell, "step 3 of rank 0")
    book.page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    book.wait_for_state(cell, "STOPPED")
    book.wait_for_end(cell)
    assert "KeyboardInterrupt" in book.output(cell).inner_text()


@pytest.mark.parametrize("options", ["--no-panel", "--no-panel --no-wait"])
def test_without_a_panel(book, options):
    cell = book.cell(f"%%icelaunch -n 2 {options} --out plain\nprint('from', rank)\nrank")
    book.wait_for_end(cell)
    text = book.output(cell).inner_text()
    assert book.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".ice-panel").count() == 0
    assert (
        "[default_role1]:from 1" in text
        if options == "--no-panel"
        else text.strip().startswith("<Run")
    )
