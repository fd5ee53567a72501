"""The panel's buttons on running ranks: pause, resume, checkpoint, stacks, stop, the debugger."""

from __future__ import annotations

import re
import time

import pytest

TRAIN = """\
def train(stop_at=-1, steps=100_000):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    ctx, loss, saved = ice.get_context(), torch.ones(1), []
    for step in ctx.steps(range(steps)):
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
        time.sleep(0.005)
        if ctx.should_checkpoint():
            saved.append(step)
            if ctx.rank == 0:
                ctx.checkpoint_saved(f"/tmp/step_{step}")
        if ctx.rank == 1 and step == stop_at:
            secret = "found"
            breakpoint()
            secret += " it"
            print("<b>secret</b> is", secret)
    return saved
"""


@pytest.fixture(scope="module", autouse=True)
def train(shared_book):
    shared_book.wait_for_end(shared_book.cell(TRAIN))


def launch(book, arguments: str = "", options: str = "nproc_per_node=2, devices='cpu'") -> int:
    return book.cell(f"run = ice.launch(train, ({arguments}), {options})\nrun")


def output_of(book, code: str) -> str:
    """The text that a cell prints."""
    cell = book.cell(code)
    book.wait_for_end(cell)
    return book.output(cell).inner_text().strip()


def test_the_buttons_pause_resume_and_save_a_checkpoint(book):
    cell = launch(book)
    panel = book.panel(cell)
    book.wait_for_state(cell, "RUNNING")
    panel.locator(".ice-progress-text", has_text="%").first.wait_for(timeout=30_000)
    book.click(cell, "pause")
    book.wait_for_state(cell, "PAUSED")
    before = panel.locator(".ice-progress-text").inner_text()
    time.sleep(0.4)
    assert panel.locator(".ice-progress-text").inner_text() == before
    assert (
        output_of(
            book, "print(len(set(ice.rundir.step_board.steps_made(run._dir.steps(0), 2).values())))"
        )
        == "1"
    )
    book.click(cell, "resume")
    book.wait_for_state(cell, "RUNNING")
    book.click(cell, "checkpoint")
    panel.locator(
        ".ice-reply", has_text=re.compile(r"^Save checkpoint: saved: /tmp/step_\d+, step \d+$")
    ).wait_for(timeout=30_000)
    panel.locator(".ice-tool-button", has_text="Events").click()
    events = panel.locator(".ice-timeline")
    events.get_by_text("checkpoint saved: /tmp/step_").wait_for(timeout=30_000)
    book.click(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    shown = re.findall(
        r"asked to pause|paused|resumed|checkpoint saved|asked to stop", events.inner_text()
    )
    assert shown == ["asked to pause", "paused", "resumed", "checkpoint saved", "asked to stop"]
    assert (
        output_of(book, "print(len(run.result()[0]), run.result()[0] == run.result()[1])")
        == "1 True"
    )


def test_the_debuggers_buttons_and_prompt_step_through_a_breakpoint(book):
    cell = launch(book, "20,")
    panel, keyboard = book.panel(cell), book.page.keyboard
    prompt = panel.locator(".ice-debug")
    prompt.get_by_text(re.compile(r"^rank 1 waits at cell \d+, line 16$")).wait_for(timeout=30_000)
    panel.get_by_role("tab", name=re.compile("rank 1: waits at cell"), selected=True).wait_for(
        timeout=30_000
    )  # the panel shows that rank by itself
    line = prompt.get_by_label("Debugger command")
    line.click()
    keyboard.type("p secr")
    keyboard.press("Tab")
    book.page.wait_for_function("(input) => input.value === 'p secret'", arg=line.element_handle())
    keyboard.press("Enter")
    book.wait_for_text(cell, "(Pdb) p secret\n'found'")
    prompt.get_by_role("button", name="Next").click()
    prompt.get_by_text("line 17").wait_for(timeout=30_000)
    prompt.get_by_role("button", name="Next").click()
    book.wait_for_text(cell, "<b>secret</b> is found it")
    assert panel.locator("b", has_text="secret").count() == 0
    line.click()
    keyboard.press("ArrowUp")
    assert line.input_value() == "p secret"
    keyboard.press("Enter")
    book.wait_for_text(cell, "'found it'")
    keyboard.type("p lo")
    keyboard.press("Tab")
    prompt.locator(".ice-debug-completions").get_by_text("loss").wait_for(timeout=30_000)
    assert line.input_value() == "p lo"
    for _ in range(4):
        keyboard.press("Backspace")
    keyboard.type("p '<i>text</i>'")
    keyboard.press("Enter")
    book.wait_for_text(cell, "'<i>text</i>'")
    assert panel.locator("i").count() == 0
    keyboard.type("c")
    keyboard.press("Enter")
    prompt.wait_for(state="hidden", timeout=30_000)
    before = panel.locator(".ice-progress-text").inner_text()
    book.page.wait_for_function(
        "([element, before]) => element.textContent !== before",
        arg=[panel.locator(".ice-progress-text").element_handle(), before],
    )
    book.click(cell, "stop")
    book.wait_for_state(cell, "STOPPED")


def test_the_debuggers_prompt_works_while_a_cell_waits_and_ends_with_a_stop(book):
    cell = launch(book, "5,")
    book.panel(cell).locator(".ice-debug-location").get_by_text("rank 1 waits").wait_for(
        timeout=30_000
    )
    waits = book.cell(
        "try:\n"
        "    print('waits', flush=True)\n"
        "    print(len(run.result()))\n"
        "except BaseException as error:\n"
        "    print(type(error))"
    )
    book.output(waits).get_by_text("waits").wait_for(timeout=30_000)
    panel = book.panel(cell)
    line = panel.get_by_label("Debugger command")
    line.click()
    book.page.keyboard.type("p 6 * 7")
    book.page.keyboard.press("Enter")
    book.wait_for_text(cell, "(Pdb) p 6 * 7\n42")
    panel.get_by_role("tab", name="rank 0").click()
    panel.get_by_role("button", name=re.compile("rank 1 waits at")).click()
    book.wait_for_text(cell, "(Pdb) p 6 * 7\n42")
    book.click(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    panel.locator(".ice-debug").wait_for(state="hidden", timeout=30_000)
    book.wait_for_end(waits)
    assert book.output(waits).inner_text().split() == ["waits", "2"]


def test_a_rank_in_post_mortem_shows_its_exception(book):
    book.wait_for_end(
        book.cell(
            "def breaks():\n"
            "    value = 5\n"
            "    if ice.get_context().rank == 0:\n"
            "        raise ValueError('the <b>cause</b>')\n"
            "    time.sleep(60)"
        )
    )
    cell = book.cell(
        "run = ice.launch(breaks, nproc_per_node=2, devices='cpu', post_mortem=True)\nrun"
    )
    panel = book.panel(cell)
    panel.locator(".ice-debug-location").get_by_text("· ValueError: the <b>cause</b>").wait_for(
        timeout=30_000
    )
    panel.get_by_label("Debugger command").fill("p value")
    panel.get_by_label("Debugger command").press("Enter")
    book.wait_for_text(cell, "(Pdb) p value\n5")
    panel.get_by_role("button", name="Continue").click()
    book.wait_for_state(cell, "FAILED")


def test_hanging_ranks_are_marked_with_their_location(book):
    book.wait_for_end(
        book.cell(
            "def hangs():\n    while not ice.get_context().events.resume.wait(5):\n        pass"
        )
    )
    cell = book.cell(
        "run = ice.launch(hangs, nproc_per_node=2, devices='cpu', hang_after=0.5)\nrun"
    )
    panel = book.panel(cell)
    panel.get_by_role("tab", name=re.compile(r"rank 1: silent at cell \d+, line 2")).wait_for(
        timeout=30_000
    )
    panel.locator(".ice-tool-button", has_text="Events").click()
    panel.locator(".ice-timeline").get_by_text(
        re.compile(r"ranks 0, 1 silent for \d+ s, at cell \d+, line 2")
    ).wait_for(timeout=30_000)
    book.wait_for_end(book.cell("run.resume()"))
    book.wait_for_state(cell, "SUCCEEDED")


def test_equal_stacks_show_once_and_the_differing_one_comes_first(book):
    book.wait_for_end(
        book.cell(
            "def stands():\n    resume = ice.get_context().events.resume\n    print('stands')\n"
            "    if ice.get_context().rank == 1:\n        resume.wait(60)\n    resume.wait(60)"
        )
    )
    cell = book.cell("run = ice.launch(stands, nproc_per_node=4, devices='cpu')\nrun")
    panel = book.panel(cell)
    book.wait_for_end(
        book.cell(
            "while not (run.pids and all(run.logs(rank) for rank in range(4))):\n"
            "    time.sleep(0.02)"
        )
    )
    book.click(cell, "stacks")
    groups = panel.locator(".ice-stacks details")
    groups.first.wait_for(timeout=30_000)
    assert groups.locator("summary").all_inner_texts() == ["rank 1", "ranks 0, 2, 3"]
    first, second = groups.locator("pre").all_inner_texts()
    assert "line 5 in stands" in first and "line 6 in stands" in second
    assert panel.locator(".ice-reply").inner_text() == "Stacks: 4 ranks answered"
    book.wait_for_end(book.cell("run.resume()"))
    book.wait_for_state(cell, "SUCCEEDED")


def test_the_panel_counts_down_while_ranks_stop_slowly(book):
    book.wait_for_end(
        book.cell(
            "def slow():\n"
            "    for _ in ice.get_context().steps(range(10**9)):\n"
            "        time.sleep(0.01)\n"
            "    time.sleep(60)"
        )
    )
    cell = book.cell("run = ice.launch(slow, nproc_per_node=2, devices='cpu')\nrun")
    panel = book.panel(cell)
    panel.locator(".ice-progress-text", has_text="%").first.wait_for(timeout=30_000)
    book.click(cell, "stop")
    panel.locator(".ice-countdown", has_text=re.compile(r"^([12]\d|30) s left$")).wait_for(
        timeout=30_000
    )
    before = panel.locator(".ice-countdown").inner_text()
    panel.locator(".ice-countdown", has_text=re.compile(r"^\d+ s left$")).filter(
        has_not_text=before
    ).wait_for(timeout=30_000)  # it counts down
    book.wait_for_end(book.cell("run.stop(grace=1)"))
    book.wait_for_state(cell, "STOPPED")
    assert panel.locator(".ice-countdown").is_hidden()
