"""How far a run is, as a person sees it: bars, each rank's step, metrics as plots, and what happened when; a reload forgets nothing."""

from __future__ import annotations

import re

import pytest

TRAINS = """
def trains(slow=(), seconds=60):
    ctx = ice.get_context()
    end = time.time() + seconds
    for epoch in ctx.steps(range(3)):
        for step in ctx.steps(range(50 if seconds < 10 else 2000)):
            ctx.report(loss=2 / (1 + step) + ctx.rank, lr=0.5)
            if ctx.should_checkpoint():
                ctx.checkpoint_saved("step.pt")
            time.sleep(0.05 if ctx.rank in slow else 0.01)
            if time.time() > end: return
"""


@pytest.fixture(scope="module")
def trains(shared_book):
    shared_book.done(shared_book.cell(TRAINS))


def _launch(book, call="trains", rest="nproc_per_node=2"):
    cell = book.cell(f"run = ice.launch({call}, {rest}, devices='cpu')\nrun")
    return cell, book.panel(cell)


def _pixels(panel, number):
    """How many pixels of a plot's canvas are drawn on."""
    return (
        panel.locator(".ice-plot canvas")
        .nth(number)
        .evaluate(
            "canvas => new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer).filter(Boolean).length"
        )
    )


def test_metrics_are_plots_of_mean_and_spread_and_a_click_shows_the_ranks_apart(book, trains):
    _, panel = _launch(book)
    loss = panel.get_by_role("button", name=re.compile("^loss: "))
    loss.wait_for(timeout=30_000)
    assert panel.locator(".ice-plot-name").all_inner_texts() == ["loss", "lr"]
    loss.locator("canvas").wait_for()
    panel.locator(".ice-plot-value", has_text=re.compile(r"^\d.*± 0.5")).wait_for(timeout=30_000)
    book.page.wait_for_timeout(500)
    assert _pixels(panel, 0) > 300
    loss.click()
    panel.get_by_role("button", name=re.compile("^loss: .* 2 ranks apart"), pressed=True).wait_for()
    loss.click()
    panel.get_by_role("button", name=re.compile("^loss: .* mean"), pressed=False).wait_for()
    panel.get_by_role("button", name="Metrics").click()
    assert not panel.locator(".ice-plots").is_visible()


def test_a_run_that_prints_a_lot_is_plotted_as_well(book):
    book.done(
        book.cell(
            "def talks():\n"
            "    ctx = ice.get_context()\n"
            "    for step in range(6000):\n"
            "        print('line', step)\n"
            "        ctx.report(step=step, loss=1 / (1 + step))\n        time.sleep(0.01)"
        )
    )
    _, panel = _launch(book, "talks", "nproc_per_node=4")
    panel.locator(".ice-plot canvas").first.wait_for(timeout=30_000)
    told = panel.locator(".ice-plot-value").inner_text()
    panel.locator(".ice-plot-value").filter(has_not_text=told).wait_for(
        timeout=30_000
    )  # and goes on
    panel.get_by_role("tab", name="rank 3").locator(
        ".ice-rank-note", has_text=re.compile(r"step \d+")
    ).wait_for(timeout=30_000)


def test_nested_loops_have_a_bar_each_and_every_rank_its_step(book, trains):
    _, panel = _launch(book)
    panel.get_by_role("progressbar", name="Progress, loop 2 of 2").wait_for(timeout=30_000)
    assert panel.get_by_role("progressbar").count() == 2
    panel.locator(
        ".ice-progress-text", has_text=re.compile(r"^0 / 3 › \d+ / 2000 · \d+ %$")
    ).wait_for(timeout=30_000)
    for rank in (0, 1):
        panel.get_by_role("tab", name=f"rank {rank}").locator(
            ".ice-rank-note", has_text=re.compile(r"step \d+ · \d+ MB")
        ).wait_for(timeout=30_000)


def test_a_rank_that_falls_behind_is_told(book, trains):
    _, panel = _launch(book, "trains", "args=((1,),), nproc_per_node=2")
    panel.get_by_role("tab", name=re.compile(r"rank 1: running, \d+ steps behind")).wait_for(
        timeout=30_000
    )


def test_what_happened_when_and_the_plots_are_there_after_a_reload_and_after_the_end(book, trains):
    cell, panel = _launch(book)
    panel.locator(".ice-plot canvas").first.wait_for(timeout=30_000)
    book.press(cell, "pause")
    book.wait_for_state(cell, "PAUSED")
    book.press(cell, "resume")
    book.wait_for_state(cell, "RUNNING")
    book.press(cell, "checkpoint")
    panel.get_by_role("button", name="Events").click()
    panel.locator(".ice-timeline li", has_text="checkpoint saved").wait_for(timeout=30_000)
    book.save()
    book.open()
    book.wait_for_state(cell, "RUNNING", 20)
    panel = book.panel(cell)
    panel.get_by_role("button", name="Events").click()

    def told():
        events = panel.locator(".ice-timeline li span").all_inner_texts()
        return [event.split(":")[0] for event in events if event != "asked for a checkpoint"]

    assert told() == [
        "launched trains",
        "attempt 0",
        "asked to pause",
        "paused",
        "resumed",
        "checkpoint saved",
    ]
    panel.locator(".ice-plot canvas").first.wait_for(timeout=30_000)
    book.press(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    panel = book.panel(cell)
    panel.locator(".ice-timeline li", has_text="stopped: it was asked to").wait_for(timeout=30_000)
    assert told()[-2:] == ["asked to stop", "stopped"]
    book.page.wait_for_timeout(500)
    assert _pixels(panel, 0) > 300
    second = book.cell("run.panel()")
    book.panel(second).locator(".ice-plot canvas").first.wait_for(timeout=30_000)


SHIFTS = """() => new Promise((resolve) => {
    let sum = 0, pulses = 0;
    const texts = new MutationObserver((changes) => { pulses += changes.length; });
    const panel = [...document.querySelectorAll('.ice-panel')].at(-1);
    texts.observe(panel, { subtree: true, childList: true, characterData: true });
    const shifts = new PerformanceObserver((list) => { for (const entry of list.getEntries()) sum += entry.value; });
    shifts.observe({ type: 'layout-shift' });
    setTimeout(() => { texts.disconnect(); shifts.disconnect(); resolve([sum, pulses]); }, 3000);
})"""


def test_nothing_jumps_while_ranks_report_thirty_times_a_second(book):
    book.done(
        book.cell(
            "def lively():\n"
            "    ctx = ice.get_context()\n"
            "    for step in ctx.steps(range(2000)):\n"
            "        ctx.report(loss=1 / (1 + step))\n"
            "        print('step', step)\n        time.sleep(1 / 30)"
        )
    )
    cell, panel = _launch(book, "lively")
    panel.locator(".ice-plot").wait_for(timeout=30_000)
    book.sees(cell, "step 40")
    shifted, changed = book.page.evaluate(SHIFTS)
    assert changed > 20, "the panel stood still"
    assert shifted < 0.01
