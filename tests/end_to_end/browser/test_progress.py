"""A run's progress in the panel: bars, the ranks' steps, plots, and the timeline."""

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
    shared_book.wait_for_end(shared_book.cell(TRAINS))


def _launch(book, call="trains", rest="nproc_per_node=2"):
    cell = book.cell(f"run = ice.launch({call}, {rest}, devices='cpu')\nrun")
    return cell, book.panel(cell)


def _pixels(panel, number):
    """The number of pixels on a plot's canvas that aren't transparent."""
    return (
        panel.locator(".ice-plot canvas")
        .nth(number)
        .evaluate(
            "canvas => new Uint32Array(canvas.getContext('2d')"
            ".getImageData(0, 0, canvas.width, canvas.height).data.buffer).filter(Boolean).length"
        )
    )


def test_a_metric_is_plotted_as_mean_and_spread_and_after_a_click_per_rank(book, trains):
    _, panel = _launch(book)
    loss = panel.get_by_role("button", name=re.compile("^loss: "))
    loss.wait_for(timeout=30_000)
    assert panel.locator(".ice-plot-name").all_inner_texts() == ["loss", "lr"]
    loss.locator("canvas").wait_for()
    panel.locator(".ice-plot-value", has_text=re.compile(r"^\d.*± 0.5")).wait_for(timeout=30_000)
    book.page.wait_for_timeout(500)
    assert _pixels(panel, 0) > 300
    loss.click()
    panel.get_by_role(
        "button", name=re.compile("^loss: .* 2 ranks, a line each"), pressed=True
    ).wait_for()
    loss.click()
    panel.get_by_role("button", name=re.compile("^loss: .* mean"), pressed=False).wait_for()
    panel.get_by_role("button", name="Metrics").click()
    assert not panel.locator(".ice-plots").is_visible()


def test_metrics_are_plotted_while_ranks_print_a_lot(book):
    book.wait_for_end(
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
    before = panel.locator(".ice-plot-value").inner_text()
    panel.locator(".ice-plot-value").filter(has_not_text=before).wait_for(
        timeout=30_000
    )  # and goes on
    panel.get_by_role("tab", name="rank 3").locator(
        ".ice-rank-note", has_text=re.compile(r"step \d+")
    ).wait_for(timeout=30_000)


def test_each_nested_loop_has_a_bar_and_each_rank_shows_its_step(book, trains):
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


def test_a_rank_that_falls_behind_is_marked(book, trains):
    _, panel = _launch(book, "trains", "args=((1,),), nproc_per_node=2")
    panel.get_by_role("tab", name=re.compile(r"rank 1: running, \d+ steps behind")).wait_for(
        timeout=30_000
    )


def test_timeline_and_plots_survive_a_reload_and_the_runs_end(book, trains):
    cell, panel = _launch(book)
    panel.locator(".ice-plot canvas").first.wait_for(timeout=30_000)
    book.click(cell, "pause")
    book.wait_for_state(cell, "PAUSED")
    book.click(cell, "resume")
    book.wait_for_state(cell, "RUNNING")
    book.click(cell, "checkpoint")
    panel.get_by_role("button", name="Events").click()
    panel.locator(".ice-timeline li", has_text="checkpoint saved").wait_for(timeout=30_000)
    book.save()
    book.open()
    book.wait_for_state(cell, "RUNNING", 20)
    panel = book.panel(cell)
    panel.get_by_role("button", name="Events").click()

    def events():
        items = panel.locator(".ice-timeline li span").all_inner_texts()
        return [event.split(":")[0] for event in items if event != "asked for a checkpoint"]

    assert events() == [
        "launched trains",
        "attempt 0",
        "asked to pause",
        "paused",
        "resumed",
        "checkpoint saved",
    ]
    panel.locator(".ice-plot canvas").first.wait_for(timeout=30_000)
    book.click(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    panel = book.panel(cell)
    panel.locator(".ice-timeline li", has_text="stopped: it was asked to").wait_for(timeout=30_000)
    assert events()[-2:] == ["asked to stop", "stopped"]
    book.page.wait_for_timeout(500)
    assert _pixels(panel, 0) > 300
    second = book.cell("run.panel()")
    book.panel(second).locator(".ice-plot canvas").first.wait_for(timeout=30_000)


SHIFTS = """() => new Promise((resolve) => {
    let shift = 0, changed = 0;
    const texts = new MutationObserver((changes) => { changed += changes.length; });
    const panel = [...document.querySelectorAll('.ice-panel')].at(-1);
    texts.observe(panel, { subtree: true, childList: true, characterData: true });
    const shifts = new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) shift += entry.value;
    });
    shifts.observe({ type: 'layout-shift' });
    setTimeout(() => { texts.disconnect(); shifts.disconnect(); resolve([shift, changed]); }, 3000);
})"""


def test_the_layout_is_stable_while_ranks_report_thirty_times_a_second(book):
    book.wait_for_end(
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
    book.wait_for_text(cell, "step 40")
    shifted, changed = book.page.evaluate(SHIFTS)
    assert changed > 20, "the panel wasn't updated"
    assert shifted < 0.01
