"""A panel whose kernel ends or falls silent before its run is over."""

from __future__ import annotations

import os
import re
import signal

import pytest

SETUP = """
%load_ext icelaunch_nb
import os, time
import icelaunch_nb as ice

def talks():
    for number in range(1200):
        print("line", number)
        time.sleep(0.05)
"""
LAUNCH = "run = ice.launch(talks, nproc_per_node=2, devices='cpu')\nrun"


@pytest.fixture
def own_book(lab, server, browser):
    """A notebook of the test's own, whose kernel it may end."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    book = lab.Book(server, page, server.notebook([SETUP]))
    book.run(0)
    book.done(0, 60)
    yield book
    page.close()


def _says_that_nothing_is_heard(panel, timeout):
    panel.get_by_text(re.compile(r'^No word from the kernel since \d\d:\d\d:\d\d, when the run was RUNNING\. .*ice\.attach\("\w+"\)')).wait_for(timeout=timeout)
    assert panel.locator(".ice-word").inner_text() == "NO WORD"
    assert panel.locator(".ice-button:visible").count() == 0


def test_a_restart_of_the_kernel_is_told_at_once(own_book):
    book = own_book
    cell = book.cell(LAUNCH)
    book.sees(cell, "line 3", 30)
    book.page.evaluate("() => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }")
    panel = book.panel(cell)
    _says_that_nothing_is_heard(panel, 3_000)
    elapsed = panel.locator(".ice-elapsed").inner_text()
    book.page.wait_for_timeout(1_500)
    assert panel.locator(".ice-elapsed").inner_text() == elapsed
    _says_that_nothing_is_heard(panel, 100)


def test_a_silent_kernel_is_told_of_and_heard_again(own_book):
    book = own_book
    cell = book.cell(LAUNCH)
    pid = book.cell("print(os.getpid())")
    book.done(pid)
    book.sees(cell, "line 3", 30)
    kernel = int(book.output(pid).inner_text())
    os.kill(kernel, signal.SIGSTOP)
    try:
        panel = book.panel(cell)
        book.press(cell, "stacks")
        _says_that_nothing_is_heard(panel, 10_000)
        assert panel.locator(".ice-answer").is_hidden()  # nobody waits for that any more
    finally:
        os.kill(kernel, signal.SIGCONT)
    book.word(cell, "RUNNING")
    assert panel.get_by_text("No word from the kernel").is_hidden()
    book.press(cell, "stop")
    book.word(cell, "STOPPED")
