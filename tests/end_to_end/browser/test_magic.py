"""A ``%%icelaunch`` cell as a person sees it: it waits, its panel live and its buttons working."""

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
    book.sees(cell, "step 3 of rank 0")
    book.wait_for_state(cell, "RUNNING")
    book.panel(cell).get_by_role("tab", name="rank 1").click()
    book.sees(cell, "of rank 1")
    book.press(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    book.done(cell)
    # Its loop ended at a step, so the ranks returned, and what they printed is in the panel and not once more below it.
    text = book.output(cell).inner_text()
    assert "{0: 0, 1: 2}" in text and "[default_role" not in text


def test_a_waiting_cell_pauses_and_goes_on(book):
    cell = book.cell(f"%%icelaunch -n 2\n{BODY}")
    book.sees(cell, "step 3 of rank 0")
    book.press(cell, "pause")
    book.wait_for_state(cell, "PAUSED")
    book.press(cell, "resume")
    book.wait_for_state(cell, "RUNNING")
    book.press(cell, "stop")
    book.done(cell)


def test_interrupt_ends_the_cell_and_its_run(book):
    cell = book.cell(f"%%icelaunch -n 2\n{BODY}")
    book.sees(cell, "step 3 of rank 0")
    book.page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    book.wait_for_state(cell, "STOPPED")
    book.done(cell)
    assert "KeyboardInterrupt" in book.output(cell).inner_text()


@pytest.mark.parametrize("options", ["--no-panel", "--no-panel --no-wait"])
def test_without_a_panel(book, options):
    cell = book.cell(f"%%icelaunch -n 2 {options} --out plain\nprint('from', rank)\nrank")
    book.done(cell)
    text = book.output(cell).inner_text()
    assert book.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".ice-panel").count() == 0
    assert (
        "[default_role1]:from 1" in text
        if options == "--no-panel"
        else text.strip().startswith("<Run")
    )
