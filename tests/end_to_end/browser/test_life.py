"""Panels and saved notebooks after a reload of the page, and after the kernel's end."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

_SUMMARY = (
    "document.querySelectorAll('.jp-Notebook .jp-Cell')[cell]"
    ".querySelector('.icelaunch-mount').textContent"
)


def test_the_summary_is_updated_during_the_run_and_the_view_stays(book):
    cell = book.cell("run = ice.launch(chatter, nproc_per_node=2, devices='cpu')\nrun")
    book.wait_for_text(cell, "line 25 of", 30)
    panel = book.panel(cell)
    book.click(cell, "stacks")
    panel.locator(".ice-stacks pre").first.wait_for()
    panel.locator(".ice-search").fill("line")
    panel.locator(".xterm-helper-textarea").press("Home")
    book.wait_for_text(cell, "line 0")
    panel.evaluate("(panel) => { panel.mine = true; }")
    for _ in range(2):
        before = book.page.evaluate(f"(cell) => {_SUMMARY}", cell)
        book.page.wait_for_function(
            f"([cell, before]) => {_SUMMARY} !== before", arg=[cell, before], timeout=30_000
        )
    assert panel.evaluate("(panel) => panel.mine"), "the very same view"
    assert panel.locator(".ice-search").input_value() == "line"
    assert panel.locator(".ice-stacks pre").first.is_visible()
    assert panel.locator(".xterm-helper-textarea").evaluate(
        "(focused) => focused === document.activeElement"
    )
    book.wait_for_text(cell, "line 0")
    (output,) = book.save()["cells"][cell]["outputs"]
    for shown in ("text/html", "text/plain"):
        text = "".join(output["data"][shown])
        assert (
            "RUNNING" in text
            and re.search(r"as of \d\d:\d\d:\d\d; ice.attach\(", text)
            and "of rank 0" in text
        )
    assert len(str(output)) < 20_000


def test_four_panels_request_their_code_once(book):
    cells = [
        book.cell(
            f"run = ice.launch(lambda: print('here'), devices='cpu')\n"
            f"run.wait()\n"
            f"run.panel()  # {number}"
        )
        for number in range(4)
    ]
    for cell in cells:
        book.wait_for_text(cell, "here", 30)
    book.save()
    large = []
    book.page.on(
        "websocket",
        lambda socket: socket.on(
            "framereceived", lambda payload: len(payload) > 400_000 and large.append(len(payload))
        ),
    )
    book.open()
    for cell in cells:
        book.wait_for_text(cell, "here", 20)
    book.page.wait_for_timeout(2_500)  # longer than a panel waits for another one's request
    assert len(large) == 1


def test_a_panel_requests_its_code_where_anothers_request_got_no_reply(book):
    """The kernel of the other panel may be busy or gone."""
    cell = book.cell(
        "run = ice.launch(lambda: print('here'), devices='cpu')\nrun.wait()\nrun.panel()"
    )
    book.wait_for_text(cell, "here", 30)
    version = book.page.evaluate("() => [...globalThis.icelaunchCode.keys()][0]")
    book.save()
    book.page.add_init_script(
        f"globalThis.icelaunchCode = new Map([['{version}', (() => {{ let receive; "
        "const module = new Promise((resolve) => (receive = resolve)).then(([script]) => "
        "import(URL.createObjectURL(new Blob([script], { type: 'text/javascript' })))); "
        "return { module, receive }; })()]]);"
    )
    book.open()
    book.wait_for_text(cell, "here", 20)


SETUP = """
%load_ext icelaunch_nb
import os, time
import icelaunch_nb as ice

def talks(until="never"):
    for number in range(1200):
        print("line", number)
        time.sleep(0.05)
        if os.path.exists(until):
            return
"""
LAUNCH = "run = ice.launch(talks, nproc_per_node=2, devices='cpu')\nrun"


@pytest.fixture
def own_book(lab, server, browser):
    """A notebook of one test, which may end its kernel."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    book = lab.Book(server, page, server.notebook([SETUP]))
    book.run(0)
    book.wait_for_end(0, 60)
    yield book
    page.close()


def _check_kernel_lost(panel, timeout):
    panel.get_by_text(
        re.compile(
            r"^No word from the kernel since \d\d:\d\d:\d\d, when the run was RUNNING\. "
            r'.*ice\.attach\("\w+"\)'
        )
    ).wait_for(timeout=timeout)
    assert panel.locator(".ice-state-label").inner_text() == "NO WORD"
    assert panel.locator(".ice-button:visible").count() == 0


def test_a_restart_of_the_kernel_shows_at_once(own_book):
    book = own_book
    cell = book.cell(LAUNCH)
    book.wait_for_text(cell, "line 3", 30)
    book.restart()
    panel = book.panel(cell)
    _check_kernel_lost(panel, 3_000)
    elapsed = panel.locator(".ice-elapsed").inner_text()
    book.page.wait_for_timeout(1_500)
    assert panel.locator(".ice-elapsed").inner_text() == elapsed
    _check_kernel_lost(panel, 100)
    for text in _saved(book, cell):
        assert _AS_OF.search(text)


def test_a_silent_kernel_counts_as_lost_until_it_sends_again(own_book):
    book = own_book
    cell = book.cell(LAUNCH)
    pid = book.cell("print(os.getpid())")
    book.wait_for_end(pid)
    book.wait_for_text(cell, "line 3", 30)
    kernel = int(book.output(pid).inner_text())
    os.kill(kernel, signal.SIGSTOP)
    try:
        panel = book.panel(cell)
        book.click(cell, "stacks")
        _check_kernel_lost(panel, 10_000)
        assert panel.locator(".ice-reply").is_hidden()  # the request has ended
    finally:
        os.kill(kernel, signal.SIGCONT)
    book.wait_for_state(cell, "RUNNING")
    assert panel.get_by_text("No word from the kernel").is_hidden()
    book.click(cell, "stop")
    book.wait_for_state(cell, "STOPPED")


_AS_OF = re.compile(r"as of \d\d:\d\d:\d\d; ice[.]attach[(]")


def _saved(book, cell):
    """Saves the notebook. Returns the HTML and the plain text of a cell's only output."""
    (output,) = book.save()["cells"][cell]["outputs"]
    return ["".join(output["data"][kind]) for kind in ("text/html", "text/plain")]


def _saved_times(book, cell):
    return [_AS_OF.search(text)[0] for text in _saved(book, cell)]


def _is_final(text):
    return "SUCCEEDED" in text and not re.search("STARTING|RUNNING|as of", text)


def test_a_reloaded_page_saves_the_runs_end(own_book, tmp_path):
    """One run ends before the page is loaded again, another one after that and in two views.

    While a run goes on, its summary has a time.
    """
    book, late, early = own_book, tmp_path / "late", tmp_path / "early"
    cells = [
        book.cell(
            f"run = ice.launch(talks, ({str(late)!r},), nproc_per_node=1, devices='cpu')\nrun"
        ),
        book.cell("run.panel()"),
    ]
    missed = book.cell(
        f"missed = ice.launch(talks, ({str(early)!r},), nproc_per_node=1, devices='cpu')\nmissed"
    )
    for cell in (*cells, missed):
        book.wait_for_text(cell, "line 3", 30)
        for text in _saved(book, cell):
            assert _AS_OF.search(text) and "SUCCEEDED" not in text
    early.touch()
    book.page.goto("about:blank")
    book.open()
    for cell in (*cells, missed):
        book.panel(cell)
    book.wait_for_state(missed, "SUCCEEDED", 20)
    before = _saved_times(book, cells[0])
    book.page.wait_for_function(
        f"([cell, before]) => /{_AS_OF.pattern}/.exec({_SUMMARY})?.[0] > before",
        arg=[cells[0], max(before)],
        timeout=60_000,
    )
    assert min(_saved_times(book, cells[0])) > max(before), (
        "the summary is updated during the run too"
    )
    late.touch()
    book.wait_for_state(cells[0], "SUCCEEDED", 20)
    for cell in (*cells, missed):
        deadline = time.monotonic() + 30  # each view saves its own summary
        while not all(map(_is_final, _saved(book, cell))):
            assert time.monotonic() < deadline, _saved(book, cell)
