"""The panel in a real JupyterLab and a real browser."""

from __future__ import annotations

import re

import pytest


def _launch(book, call="chatter", rest="nproc_per_node=2"):
    cell = book.cell(f"run = ice.launch({call}, {rest}, devices='cpu')\nrun")
    book.panel(cell)
    return cell


def test_lines_appear_during_the_run_and_a_click_shows_another_rank(book):
    cell = _launch(book)
    book.wait_for_text(cell, "of rank 0")
    book.wait_for_state(cell, "RUNNING")
    book.panel(cell).get_by_role("tab", name="rank 1").click()
    book.wait_for_text(cell, "of rank 1")
    assert "of rank 0" not in book.text(cell)
    book.panel(cell).get_by_role("tab", name="all").click()
    book.wait_for_text(cell, "of rank 0")
    book.wait_for_text(cell, "of rank 1")


def test_stop_acts_while_the_kernel_is_idle(book):
    cell = _launch(book)
    book.wait_for_text(cell, "line")
    book.time_until_state(cell, "stop", "STOPPED")


LINGERS = """
def lingers():
    for _ in ice.get_context().steps(range(10**9)):
        time.sleep(0.01)
    time.sleep(1)
    return "kept"
"""


def _launch_lingering(book):
    book.wait_for_end(book.cell(LINGERS))
    cell = _launch(book, "lingers")
    book.panel(cell).locator(".ice-progress-text", has_text="%").wait_for(timeout=30_000)
    return cell


@pytest.mark.parametrize("apart", [80, 250])
def test_a_double_click_on_stop_doesnt_kill(book, apart):
    """Kill replaces Stop while the ranks still make their last step."""
    cell = _launch_lingering(book)
    book.panel(cell).get_by_role("button", name="Stop").hover()
    for _ in range(2):
        book.page.mouse.down()
        book.page.mouse.up()
        book.page.wait_for_timeout(apart)
    book.wait_for_state(cell, "STOPPED")
    printed = book.cell("print(run.result())")
    book.wait_for_end(printed)
    assert book.output(printed).inner_text().strip() == "{0: 'kept', 1: 'kept'}"


def test_the_focus_stays_in_the_panel_when_a_button_disappears(book):
    """Elsewhere, JupyterLab would execute a pressed key as a shortcut."""
    cell = _launch_lingering(book)
    panel, keyboard = book.panel(cell), book.page.keyboard

    def focused(name):
        panel.get_by_role("button", name=name, exact=True).and_(panel.locator(":focus")).wait_for(
            timeout=30_000
        )

    panel.get_by_role("button", name="Stacks").focus()
    keyboard.press("Enter")
    focused("Close")
    keyboard.press("Enter")
    focused("Stacks")
    panel.get_by_role("button", name="Pause").focus()
    keyboard.press("Enter")
    focused("Resume")
    panel.locator('.ice-button[data-action="resume"]:not([aria-disabled])').wait_for()
    keyboard.press("Enter")
    focused("Pause")
    panel.get_by_role("button", name="Stop").focus()
    keyboard.down("Enter")
    focused("Kill")
    keyboard.down("Enter")  # it is held down
    keyboard.up("Enter")
    book.wait_for_state(cell, "STOPPED")
    panel.locator(".ice-header:focus").wait_for(timeout=30_000)
    printed = book.cell("print(run.result())")
    book.wait_for_end(printed)
    assert book.output(printed).inner_text().strip() == "{0: 'kept', 1: 'kept'}"


def test_a_kernel_that_waits_for_slow_ranks_isnt_reported_as_busy(book):
    cell = _launch(book)
    book.wait_for_text(cell, "line")
    book.wait_for_end(
        book.cell("import signal\nfor pid in run.pids.values(): os.kill(pid, signal.SIGSTOP)")
    )
    book.click(cell, "stacks")
    answer = book.panel(cell).locator(".ice-reply")
    answer.get_by_text("Stacks: asking the ranks …").wait_for(timeout=30_000)
    book.page.wait_for_timeout(1_000)
    assert answer.inner_text() == "Stacks: asking the ranks …"
    answer.get_by_text("no answer from ranks 0, 1").wait_for(timeout=30_000)
    book.wait_for_end(book.cell("for pid in run.pids.values(): os.kill(pid, signal.SIGCONT)"))


BUSY = "deadline = time.time() + 100\nwhile time.time() < deadline and not run.state.over: pass"


@pytest.mark.parametrize("waiting", ["await run", "run.result()", BUSY])
def test_stop_acts_while_a_cell_waits_or_is_busy(book, waiting, request):
    if waiting == BUSY and request.config.getoption("ipykernel") == "6":
        pytest.skip("ipykernel 6 has no subshells: the test below is about that")

    cell = _launch(book)
    book.wait_for_text(cell, "line")
    indented = waiting.replace("\n", "\n    ")
    waits = book.cell(
        f"print('waiting', flush=True)\n"
        f"try:\n"
        f"    {indented}\n"
        f"except ice.RunStopped:\n"
        f"    print('was stopped')"
    )
    book.output(waits).get_by_text("waiting").wait_for(timeout=30_000)
    book.time_until_state(cell, "stop", "STOPPED")  # before the busy cell's own end
    book.wait_for_end(waits)
    # The ranks' output is in the panel. It isn't also in the output of the waiting cell.
    assert "of rank" not in book.output(waits).inner_text()


def test_stop_acts_while_a_cell_of_the_magic_waits(book):
    cell = book.cell(
        "%%icelaunch -n 2 --devices cpu\n"
        "import time\n"
        "for number in range(4000):\n"
        "    print('line', number)\n"
        "    time.sleep(0.05)"
    )
    book.wait_for_text(cell, "line")
    book.time_until_state(cell, "stop", "STOPPED")
    book.wait_for_end(cell)


def test_a_click_that_waits_for_a_busy_kernel_is_explained(book):
    """ipykernel 6 has no subshells. With ipykernel 7, the test keeps the panel from using one."""
    book.wait_for_end(
        book.cell(
            "from icelaunch_nb.notebook import subshell\n"
            "found = subshell.get_or_create\n"
            "subshell.get_or_create = lambda kernel: None"
        )
    )
    cell = _launch(book)
    book.wait_for_text(cell, "line")
    busy = book.cell(
        "print('busy', flush=True)\n"
        "open_until = time.time() + 20\n"
        "while time.time() < open_until and not os.path.exists('go'): time.sleep(.01)"
    )
    book.output(busy).get_by_text("busy").wait_for(timeout=30_000)
    book.click(cell, "stop")
    answer = book.panel(cell).locator(".ice-reply")
    assert "sent" in answer.inner_text()
    answer.get_by_text("The kernel is busy with a cell").wait_for(timeout=30_000)
    book.wait_for_state(cell, "RUNNING")
    (book.server.home / "go").touch()
    book.wait_for_state(cell, "STOPPED")
    book.wait_for_end(book.cell("subshell.get_or_create = found\nos.remove('go')"))


def test_each_button_gets_a_reply(book):
    cell = _launch(book, "lambda: [time.sleep(0.05) for _ in range(400)]")
    book.wait_for_state(cell, "RUNNING")
    panel = book.panel(cell)
    book.click(cell, "stacks")
    panel.locator(".ice-stacks pre").first.wait_for(timeout=30_000)
    assert "most recent call first" in panel.locator(".ice-stacks").inner_text()
    book.click(cell, "pause")
    panel.locator('.ice-button[data-action="resume"]').wait_for(timeout=30_000)
    assert panel.locator(".ice-reply").inner_text().startswith("Pause: asked")
    book.click(cell, "resume")
    panel.locator('.ice-button[data-action="pause"]').wait_for(timeout=30_000)


def test_a_failing_rank_is_shown(book):
    book.wait_for_end(
        book.cell(
            "def breaks():\n    rank = ice.get_context().rank\n    print('before', rank)\n"
            "    if rank == 1:\n        raise ValueError('the <b>cause</b>')\n    time.sleep(60)"
        )
    )
    cell = _launch(book, "breaks")
    book.wait_for_state(cell, "FAILED")
    panel = book.panel(cell)
    panel.get_by_role("tab", name=re.compile("rank 1: ValueError"), selected=True).wait_for(
        timeout=30_000
    )
    assert (
        panel.locator(".ice-failure")
        .inner_text()
        .startswith("rank 1: ValueError: the <b>cause</b>")
    )
    book.wait_for_text(cell, "before 1")
    assert panel.locator(".ice-failure b b").count() == 0


def test_a_restart_shows_and_the_earlier_attempt_can_be_chosen(book):
    book.wait_for_end(
        book.cell(
            "def again():\n"
            "    ctx = ice.get_context()\n"
            "    print('attempt', ctx.restart_count, 'speaks')\n"
            "    if ctx.restart_count == 0: raise RuntimeError('once')\n    time.sleep(60)"
        )
    )
    cell = _launch(book, "again", "nproc_per_node=1, max_restarts=2")
    book.wait_for_text(cell, "attempt 1 speaks")
    panel = book.panel(cell)
    assert re.match(
        r"restart 1 of 2: rank 0, RuntimeError.*ago", panel.locator(".ice-restart").inner_text()
    )
    panel.get_by_label("Attempt").select_option("0")
    book.wait_for_text(cell, "attempt 0 speaks")


def test_the_error_is_shown_even_if_an_earlier_attempt_was_chosen(book):
    book.wait_for_end(
        book.cell(
            "def twice():\n"
            "    ctx = ice.get_context()\n"
            "    print('attempt', ctx.restart_count, 'speaks')\n"
            "    while ctx.restart_count and not os.path.exists('go'): time.sleep(0.01)\n"
            "    raise RuntimeError(f'error {ctx.restart_count}')"
        )
    )
    cell = _launch(book, "twice", "nproc_per_node=1, max_restarts=1")
    book.wait_for_text(cell, "attempt 1 speaks")
    panel = book.panel(cell)
    panel.get_by_label("Attempt").select_option("0")
    book.wait_for_text(cell, "attempt 0 speaks")
    written = book.cell(
        "import json\nwith open(f'{run.log_dir}/journal.jsonl', 'a') as file:\n"
        "    event = {'t': time.time(), 'event': 'unkillable', 'pid': run.pids[0]}\n"
        "    file.write(json.dumps(event) + '\\n')"
    )
    book.wait_for_end(written)
    panel.locator(
        ".ice-failure", has_text=re.compile(r"rank 0: pid \d+ outlives SIGKILL")
    ).wait_for(timeout=30_000)
    book.wait_for_text(cell, "attempt 0 speaks")
    (book.server.home / "go").touch()
    book.wait_for_state(cell, "FAILED")
    book.wait_for_text(cell, "attempt 1 speaks")
    assert panel.locator(".ice-failure").inner_text().startswith("rank 0: RuntimeError: error 1")
    book.wait_for_end(book.cell("os.remove('go')"))


def test_printed_markup_and_control_sequences_are_text(book):
    before = book.page.title()
    book.wait_for_end(
        book.cell(
            "def hostile():\n"
            "    print('<script>window.hacked = 1</script>'\n"
            "          '<img src=x onerror=\"window.hacked = 2\">')\n"
            "    print('\\x1b]0;hacked\\x07title',\n"
            "          '\\x1b]8;;javascript:alert(1)\\x1b\\\\link\\x1b]8;;\\x1b\\\\',\n"
            "          '\\x1b]52;c;aGFja2Vk\\x07clip')\n"
            "    print('\\x1b[?1049h\\x1b[2J\\x1b[3J\\x1b[6n\\x9d0;hacked\\x9c', end='')\n"
            "    print('\\x1b[31mred\\x1b[0m', 'the end')\n"
            "    time.sleep(60)"
        )
    )
    cell = _launch(book, "hostile", "nproc_per_node=1")
    book.wait_for_text(cell, "the end")
    assert "<script>window.hacked = 1</script><img src=x" in book.text(cell).replace("\xa0", " ")
    assert book.page.evaluate("() => window.hacked") is None
    assert book.page.title() == before
    panel = book.panel(cell)
    assert panel.locator(".xterm a, .xterm img, .xterm script").count() == 0


def test_a_progress_bar_stays_in_its_line(book):
    book.wait_for_end(
        book.cell(
            "def bar():\n"
            "    for i in range(101):\n"
            "        print(f'\\rbar {i}%', end='', file=sys.stderr)\n"
            "    print('\\nafter', file=sys.stderr)\n    time.sleep(60)"
        )
    )
    cell = _launch(book, "bar", "nproc_per_node=1")
    book.wait_for_text(cell, "after")
    assert [
        line.strip()
        for line in book.text(cell).replace("\xa0", " ").split("\n")
        if line.startswith("bar")
    ] == ["bar 100%"]


def test_a_second_view_shows_the_same(book):
    cell = _launch(book)
    book.wait_for_text(cell, "line")
    second = book.cell("run.panel()")
    book.wait_for_state(second, "RUNNING")
    book.wait_for_text(second, "of rank 0")


def test_the_keyboard_reaches_every_control(book):
    cell = _launch(book)
    book.wait_for_text(cell, "of rank 0")
    panel = book.panel(cell)
    panel.get_by_role("tab", name="rank 0").focus()
    book.page.keyboard.press("ArrowRight")
    book.wait_for_text(cell, "of rank 1")
    while panel.evaluate(FOCUSED) is not None:
        book.page.keyboard.press("Shift+Tab")
    book.page.keyboard.press("Tab")  # into the panel, through all its controls, and out
    seen = []
    while (focused := panel.evaluate(FOCUSED)) is not None:
        seen.append(focused)
        book.page.keyboard.press("Tab")
    assert [label for label, _ in seen] == panel.evaluate(CONTROLS)
    assert [label for label, marked in seen if not marked] == [], "the focus isn't visible on these"
    assert [label for label, _ in seen][:5] == [
        "Pause",
        "Save checkpoint",
        "Stacks",
        "Stop",
        "rank 1: running",
    ], "arrows lead to the other ranks"
    while book.page.evaluate("() => document.activeElement.textContent") != "Stop":
        book.page.keyboard.press("Shift+Tab")
    book.page.keyboard.press("Enter")
    book.wait_for_state(cell, "STOPPED")


_LABEL = "(one.getAttribute('aria-label') || one.textContent)"
CONTROLS = f"""(panel) => [
  ...panel.querySelectorAll('button, select, input, textarea, a[href], [tabindex]')]
  .filter((one) => one.tabIndex >= 0 && one.checkVisibility()).map((one) => {_LABEL})"""
# The terminal's own text field is invisible, so it has no outline.
FOCUSED = f"""(panel) => {{
  const one = document.activeElement;
  if (!panel.contains(one)) return null;
  const {{ outlineStyle, outlineWidth }} = getComputedStyle(one);
  const outlined = outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2;
  return [{_LABEL}, one.matches('.xterm-helper-textarea') || outlined];
}}"""


def test_search_and_follow(book):
    book.wait_for_end(
        book.cell("def long():\n    for i in range(500): print(f'entry {i}')\n    time.sleep(60)")
    )
    cell = _launch(book, "long", "nproc_per_node=1")
    book.wait_for_text(cell, "entry 499")
    panel = book.panel(cell)
    panel.get_by_role("searchbox").fill("entry 77")
    book.wait_for_text(cell, "entry 77")
    follow = panel.get_by_role("button", name="Follow")
    assert follow.get_attribute("aria-pressed") == "false"
    follow.click()
    book.wait_for_text(cell, "entry 499")


def test_a_reload_shows_the_state_and_the_last_lines(book):
    cell = _launch(book)
    book.wait_for_text(cell, "line")
    book.save()
    book.open()
    book.wait_for_state(cell, "RUNNING", 20)
    book.wait_for_text(cell, "of rank 0", 20)
    book.click(cell, "stop")
    book.wait_for_state(cell, "STOPPED")


_SUMMARY = """([cell, word]) =>
  document.querySelectorAll('.jp-Notebook .jp-Cell')[cell]
    .querySelector('.icelaunch-mount').textContent.includes(word)"""


@pytest.mark.parametrize(
    "source",
    [
        "run = ice.launch(chatter, (1,), nproc_per_node=2, devices='cpu')\nrun",
        "%%icelaunch -n 2\nchatter(1)",
    ],
)
def test_after_the_end_the_panel_hides_the_summary(book, source):
    """The output is updated at the end, and so drawn again."""
    cell = book.cell(source)
    book.wait_for_state(cell, "SUCCEEDED", 20)
    book.page.wait_for_function(_SUMMARY, arg=[cell, "SUCCEEDED"], timeout=30_000)
    assert not book.output(cell).locator(".icelaunch-mount").first.is_visible()
    assert (
        book.panel(cell).bounding_box()["width"] > 0.9 * book.output(cell).bounding_box()["width"]
    )
    book.wait_for_text(cell, "line 19 of rank 0")


def test_the_state_of_a_view_outlives_the_runs_end(book):
    """The output is drawn again at the end, and the view moves there as it is."""
    book.wait_for_end(
        book.cell(
            "def until_go():\n    for number in range(60):\n        print('line', number)\n"
            "    while not os.path.exists('go'):\n        time.sleep(.01)\n"
        )
    )
    cell = _launch(book, "until_go")
    panel = book.panel(cell)
    book.wait_for_text(cell, "line 59")
    book.click(cell, "stacks")
    panel.locator(".ice-stacks pre").first.wait_for()
    panel.locator(".ice-search").fill("line")
    panel.locator(".xterm-helper-textarea").press("Home")
    book.wait_for_text(cell, "line 0")
    (book.server.home / "go").touch()
    book.page.wait_for_function(_SUMMARY, arg=[cell, "SUCCEEDED"], timeout=30_000)
    book.wait_for_state(cell, "SUCCEEDED")
    assert panel.locator(".ice-search").input_value() == "line"
    assert panel.locator(".ice-stacks pre").first.is_visible()
    assert panel.locator(".xterm-helper-textarea").evaluate(
        "(focused) => focused === document.activeElement"
    )
    assert panel.get_by_role("button", name="Follow").get_attribute("aria-pressed") == "false"
    book.wait_for_text(cell, "line 0")
    book.wait_for_end(book.cell("os.remove('go')"))


def test_another_browser_shows_the_same_and_its_buttons_act(book, lab, server, browser):
    cell = _launch(book)
    book.wait_for_text(cell, "line")
    book.save()
    context = browser.new_context()
    try:
        other = lab.Book(server, context.new_page(), book.name)
        other.wait_for_state(cell, "RUNNING")
        other.wait_for_text(cell, "of rank 0")
        other.time_until_state(cell, "stop", "STOPPED")
        book.wait_for_state(cell, "STOPPED")
    finally:
        context.close()


def test_search_finds_lines_of_all_ranks_and_lines_only_on_disk(book):
    book.wait_for_end(
        book.cell(
            "def much():\n    rank = ice.get_context().rank\n    print(f'needle of rank {rank}')\n"
            "    os.write(1, b'hay\\n' * 600_000)\n"
            "    print('near the end a needle')\n"
            "    time.sleep(60)"
        )
    )
    cell = _launch(book, "much")
    book.wait_for_text(cell, "near the end a needle")
    panel = book.panel(cell)
    panel.get_by_role("searchbox").fill("NEEDLE")
    count = panel.get_by_role("button", name="4 lines on 2 ranks")
    count.click()
    rows = panel.locator(".ice-search-results li")
    assert rows.all_inner_texts() == [
        "0:1\nneedle of rank 0",
        "0:600002\nnear the end a needle",
        "1:1\nneedle of rank 1",
        "1:600002\nnear the end a needle",
    ]
    rows.nth(3).get_by_role("button").click()
    panel.get_by_role("tab", name="rank 1", selected=True).wait_for()
    book.wait_for_text(cell, "near the end a needle")
    rows.nth(0).get_by_role("button").click()
    panel.get_by_role("button", name="0:1 needle of rank 0").and_(
        panel.locator("[data-missing]")
    ).wait_for()  # the page doesn't hold that line


def test_equal_lines_of_several_ranks_show_once(book):
    book.wait_for_end(
        book.cell(
            "def alike():\n"
            "    ctx = ice.get_context()\n"
            "    import torch.distributed as dist\n"
            "    dist.init_process_group('gloo')\n"
            "    for number in range(20):\n"
            "        dist.barrier()\n"
            "        time.sleep(0.1)\n"
            "        print('alike', number, flush=True)\n"
            "    time.sleep(60)"
        )
    )
    cell = _launch(book, "alike", "nproc_per_node=4")
    book.panel(cell).get_by_role("tab", name="all").click()
    book.wait_for_text(cell, "alike 19", 20)
    lines = [line for line in book.text(cell).replace("\xa0", " ").split("\n") if "alike" in line]
    assert sum(line.startswith("[×4]") for line in lines) >= len(lines) / 2, lines
