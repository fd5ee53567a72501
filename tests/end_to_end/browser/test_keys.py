"""Keys that are pressed in a panel or a form are no shortcuts of the notebook.

Such a shortcut could delete a cell or restart the kernel.
"""

from __future__ import annotations

import pytest

SETUP = '''
%load_ext icelaunch_nb
import os, sys, time
from typing import Literal
import icelaunch_nb as ice

def lives():
    """Makes the panel show everything that can have the focus."""
    ctx = ice.get_context()
    if ctx.restart_count == 0:
        raise RuntimeError("once")
    for step in ctx.steps(range(5)):
        ctx.report(loss=step + ctx.rank)
    for number in range(100):
        print("line", number, "of rank", ctx.rank)
    sys.stdout.flush()
    breakpoint()

def fails():
    print("last words")
    raise ValueError("the cause")

def lesson(data, epochs: int = 3, shuffle: bool = True, mode: Literal["fast", "exact"] = "fast"):
    return epochs
'''
STATIC = """
from IPython.display import HTML
from icelaunch_nb.notebook.panel import summary
display(HTML(summary.html(failed)), run.stacks())
"""
KEYS = (
    "d",
    "d",
    "x",
    "i",
    "i",
    "0",
    "0",
    "a",
    "b",
    "m",
    "z",
)  # delete, cut, interrupt, restart, insert above and below, Markdown, undo
KINDS = {  # each must occur in the test
    "BUTTON.ice-button",
    "BUTTON.ice-rank",
    "BUTTON.ice-plot",
    "BUTTON.ice-tool-button",
    "BUTTON.ice-debug-link",
    "BUTTON.ice-launch",
    "BUTTON.ice-device",
    "SELECT.ice-select",
    "SELECT.ice-input",
    "INPUT.ice-search",
    "INPUT.ice-debug-line",
    "INPUT.ice-input",
    "INPUT.ice-checkbox",
    "TEXTAREA.xterm-helper-textarea",
    "SUMMARY.",
    "PRE.",
    "OL.ice-timeline",
    "DIV.ice-header",
    "DIV.ice-panel",
    "DIV.ice-form",
}
WATCH = """() => {
  window.ran = [];
  const shortcuts = /^(notebook|kernelmenu|runmenu|editmenu):/;
  window.jupyterapp.commands.commandExecuted.connect(
    (_, { id }) => shortcuts.test(id) && window.ran.push(id));
}"""
# Editable elements come last, because typing into them changes the others.
FIND = """() => {
  const ours = '.ice-panel, .ice-panel *, .ice-form, .ice-form *, .jp-OutputArea-output summary';
  const inside = [...document.querySelectorAll(ours)];
  const editable = (one) => one.matches('input, select');
  window.found = inside.filter((one) => {
    one.focus({ preventScroll: true });
    return document.activeElement === one;
  }).sort((a, b) => editable(a) - editable(b));
  const firstClass = (one) => (one.getAttribute('class') ?? '').split(' ')[0];
  return window.found.map((one) => `${one.tagName}.${firstClass(one)}`);
}"""
FOCUS = """(number) => {
  window.found[number].focus({ preventScroll: true });
  return document.activeElement === window.found[number];
}"""


@pytest.mark.parametrize("app", ["lab", pytest.param("notebook", marks=pytest.mark.long)])
def test_no_key_in_a_panel_or_a_form_is_a_shortcut(lab, server, browser, app):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    book = lab.Book(server, page, server.notebook([SETUP]), app)
    try:
        book.run(0)
        book.wait_for_end(0, 60)
        cell = book.cell(
            "run = ice.launch(lives, nproc_per_node=2, devices='cpu', max_restarts=1)\nrun"
        )
        failed = book.cell("failed = ice.launch(fails, nproc_per_node=2, devices='cpu')\nfailed")
        form = page.locator(".jp-Notebook .jp-Cell").nth(
            book.cell("form = ice.LaunchPanel(lesson)\nform")
        )
        static = book.cell(STATIC)
        book.wait_for_end(static, 60)
        panel, before = book.panel(cell), page.locator(".jp-Notebook .jp-Cell").count()
        panel.locator(".ice-debug-line").wait_for(timeout=30_000)
        book.wait_for_text(cell, "line 99", 20)
        book.wait_for_state(failed, "FAILED", 20)
        panel.locator(".ice-search").fill("line 5")
        panel.locator(".ice-search-count").click(timeout=30_000)
        panel.get_by_role("button", name="Events").click()
        panel.get_by_role("button", name="Stacks").click()
        panel.locator(".ice-stacks pre").first.wait_for()
        panel.locator(".ice-plot").first.wait_for()
        book.panel(failed).locator("summary").click()
        for name in ("Advanced", "Code"):
            form.locator(".ice-form").get_by_text(name, exact=name == "Code").first.click()
        page.evaluate(WATCH)

        def check_no_shortcut(where):
            for key in KEYS:
                page.keyboard.press(key)
            assert page.evaluate("() => window.ran") == [], f"{where} has the focus"
            assert (
                page.locator(".jp-Notebook .jp-Cell").count() == before
                and page.locator(".jp-Dialog").count() == 0
            )

        clicked = [
            panel.get_by_role("tab", name="rank 1"),
            panel.locator(".ice-terminal"),
            panel.locator(".ice-plot").first,
            panel.locator(".ice-name"),
            panel.locator(".ice-toolbar"),
            panel.locator(".ice-debug-location"),
            panel.locator(".ice-stacks pre").first,
            book.panel(failed).locator(".ice-failure pre"),
            form.locator(".ice-title"),
            form.locator(".ice-checkbox").first,
            form.locator(".ice-status"),
            form.locator(".ice-form-footer"),
            form.locator("summary"),
            form.locator(".ice-code pre").first,
            form.locator("select:visible").first,
        ]
        for one in clicked:
            one.click(position={"x": 3, "y": 3})
            check_no_shortcut(
                f"after a click, {page.evaluate('() => document.activeElement.outerHTML')[:200]}"
            )
            page.keyboard.press("Escape")  # a menu that the click opened

        kinds = page.evaluate(FIND)
        for number, kind in enumerate(kinds):
            if page.evaluate(FOCUS, number):  # a key in an earlier element may have removed it
                check_no_shortcut(kind)
        assert set(kinds) >= KINDS
        alive = book.cell("print('alive', form.run, failed.state, sum(1 for _ in ice.runs()))")
        book.wait_for_end(alive)
        assert book.output(alive).inner_text().startswith("alive None FAILED")

        # Escape returns the focus to the notebook, except from an editable element.
        panel.locator(".ice-search").fill("line")
        panel.locator(".ice-search").press("Escape")
        assert panel.locator(".ice-search").evaluate(
            "(search) => search.value === '' && search === document.activeElement"
        )
        panel.locator(".xterm-helper-textarea").press("Escape")
        assert page.evaluate("() => document.activeElement.matches('.jp-Cell')")
        cells = page.locator(".jp-Notebook .jp-Cell").count()
        page.keyboard.press("b")
        page.wait_for_function(
            "(cells) => document.querySelectorAll('.jp-Notebook .jp-Cell').length === cells + 1",
            arg=cells,
        )
        assert page.evaluate("() => window.ran") != []
        book.wait_for_end(book.cell("run.kill()\nrun.wait(20)"), 30)
    finally:
        page.close()
