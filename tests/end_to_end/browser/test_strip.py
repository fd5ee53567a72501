"""The tabs of the ranks: all are visible, failed and hanging ones come first with a note."""

from __future__ import annotations

import re

import pytest

STANDS = (
    "def stands(rank):\n"
    "    while ice.get_context().rank != rank: print('goes on'); time.sleep(.1)\n"
    "    time.sleep(60)"
)
OUTSIDE = """(strip) => {
  const { bottom, right } = strip.getBoundingClientRect();
  const isOutside = (box) => box.bottom > bottom || box.right > right;
  return [...strip.children].filter((tab) => isOutside(tab.getBoundingClientRect()))
    .map((tab) => tab.textContent);
}"""
IN_ORDER = """(strip) => [...strip.children]
  .map((tab) => [tab.getBoundingClientRect(), tab.dataset.rank])
  .sort(([a, _], [b, __]) => a.top - b.top || a.left - b.left).map(([_, rank]) => rank)"""


def _launch(book, call, ranks, rest=""):
    cell = book.cell(f"run = ice.launch({call}, nproc_per_node={ranks}, devices='cpu'{rest})\nrun")
    return cell, book.panel(cell)


def test_64_ranks_are_visible_with_the_first_failed_one_in_front(book):
    book.wait_for_end(
        book.cell(
            "def breaks():\n"
            "    rank = ice.get_context().rank\n"
            "    print('here')\n"
            "    if rank == 41:\n"
            "        raise ValueError('the cause')\n"
            "    time.sleep(60)"
        )
    )
    book.page.set_viewport_size({"width": 1060, "height": 900})
    cell, panel = _launch(book, "breaks", 64)
    book.wait_for_state(cell, "FAILED", 40)
    panel.get_by_role("tab", name=re.compile("rank 41: ValueError"), selected=True).wait_for()
    strip = panel.locator(".ice-ranks")
    assert strip.evaluate(OUTSIDE) == []
    assert strip.evaluate(IN_ORDER)[:4] == ["41", "all", "0", "1"]
    book.page.set_viewport_size({"width": 1200, "height": 900})


@pytest.mark.parametrize("ranks", [5, 17])
def test_a_hanging_rank_among_many_shows_its_location(book, ranks):
    book.wait_for_end(book.cell(STANDS))
    _, panel = _launch(book, "stands", ranks, f", args=({ranks - 1},), hang_after=0.5")
    note = panel.locator(f'.ice-rank[data-rank="{ranks - 1}"] .ice-rank-note')
    note.get_by_text(re.compile(r"^silent at cell \d+, line 3$")).wait_for(timeout=30_000)
    assert note.is_visible()
    if ranks > 16:
        assert panel.locator(".ice-ranks").evaluate(IN_ORDER)[:3] == ["all", str(ranks - 1), "0"]


def test_the_location_of_many_hanging_ranks_shows_once(book):
    _, panel = _launch(book, "lambda: time.sleep(60)", 17, ", hang_after=0.5")
    panel.get_by_role("tab", name=re.compile("rank 16: silent at")).wait_for(timeout=30_000)
    panel.get_by_role("tab", name=re.compile("rank 1: silent at")).wait_for(timeout=30_000)
    notes = panel.locator(".ice-rank-note:visible", has_text="silent at")
    assert notes.count() <= 2, "the ranks' locations may be read at two moments"


def test_arrow_keys_keep_a_single_rank_chosen(book):
    cell, panel = _launch(book, "chatter", 1)
    book.wait_for_text(cell, "of rank 0")
    for key in ("ArrowRight", "ArrowLeft", "ArrowDown"):
        panel.get_by_role("tab", name="rank 0").focus()
        book.page.keyboard.press(key)
        assert book.page.evaluate("() => document.activeElement.dataset.rank") == "0"
        assert panel.get_by_role("tab", name="rank 0").get_attribute("aria-selected") == "true"


@pytest.mark.slow
def test_a_rank_that_never_printed_is_marked_as_silent(book):
    """It is marked after 5 s."""
    _, panel = _launch(book, "lambda: time.sleep(60)", 2)
    panel.locator('.ice-rank[data-rank="1"] .ice-rank-note').get_by_text(
        re.compile(r"silent [5-9] s")
    ).wait_for(timeout=30_000)
