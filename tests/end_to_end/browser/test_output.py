"""The ranks' output in the panel: complete, with older lines, in each theme, for screen readers."""

from __future__ import annotations

import re

import pytest

# The texts with too little contrast between their colour and the background.
LOW_CONTRAST = """(panel) => {
  const parts = (color) => (color.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const blend = ([r, g, b, a = 1], under) =>
    [r, g, b].map((part, at) => part * a + under[at] * (1 - a));
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const color = parts(getComputedStyle(element).backgroundColor);
    return (color[3] ?? 1) === 1 ? color : blend(color, behind(element.parentElement));
  };
  const light = (color) => {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const found = [];
  for (const element of panel.querySelectorAll('*')) {
    const nodes = [...element.childNodes].filter((node) => node.nodeType === 3);
    const words = nodes.map((node) => node.data.trim()).join(' ').trim();
    if (!words || !element.checkVisibility()) continue;
    if (element.closest('.ice-live-region, style, option')) continue;
    const ground = behind(element);
    const [a, b] = [light(blend(parts(getComputedStyle(element).color), ground)), light(ground)];
    const contrast = Math.max(a, b) / Math.min(a, b);
    found.push([contrast, `${contrast.toFixed(2)} ${element.className}: ${words.slice(0, 40)}`]);
  }
  return [found.length, found.filter(([contrast]) => contrast < 4.5).map(([_, words]) => words)];
}"""
COLOURS = """(rows) => Object.fromEntries(
  [...rows.querySelectorAll('span')].filter((one) => one.textContent.trim()).map((one) =>
    [one.textContent.trim().replaceAll('\\u00a0', ' '), getComputedStyle(one).color]))"""


def _launch(book, call, ranks=1, rest=""):
    cell = book.cell(f"run = ice.launch({call}, nproc_per_node={ranks}, devices='cpu'{rest})\nrun")
    return cell, book.panel(cell)


def test_a_last_line_without_a_newline_shows_among_all_ranks(book):
    book.wait_for_end(
        book.cell(
            "def dies():\n"
            "    if ice.get_context().rank:\n"
            "        print('dying words', end='', flush=True)\n"
            "        os._exit(3)\n"
            "    print('\\rbar 10%', end='', flush=True)\n"
            "    time.sleep(.5)\n"
            "    print('\\rbar 20%', end='', flush=True)\n"
            "    time.sleep(60)"
        )
    )
    cell, panel = _launch(book, "dies", 2)
    book.wait_for_state(cell, "FAILED")
    panel.get_by_role("tab", name="all").click()
    book.wait_for_text(cell, "[1]  dying words")


def test_a_progress_bar_stays_in_its_line_among_all_ranks(book):
    book.wait_for_end(
        book.cell(
            "def bars():\n"
            "    for number in range(20):\n"
            "        print(f'\\rbar {number}', end='', flush=True)\n"
            "        time.sleep(.05)\n"
            "    time.sleep(60)"
        )
    )
    cell, panel = _launch(book, "bars", 2)
    panel.get_by_role("tab", name="all").click()
    book.wait_for_text(cell, "[×2] bar 19")
    assert [
        line.strip() for line in book.text(cell).replace("\xa0", " ").split("\n") if "bar" in line
    ] == ["[×2] bar 19"]


def test_stdout_and_stderr_have_different_colours(book):
    book.wait_for_end(
        book.cell(
            "def both():\n"
            "    print('out')\n"
            "    print('err\\n\\x1b[32mgreen\\x1b[0m err', file=sys.stderr)\n"
            "    time.sleep(60)"
        )
    )
    cell, panel = _launch(book, "both", 2)
    for tab in ("rank 0", "all"):
        panel.get_by_role("tab", name=tab).click()
        for word in ("out", "green err"):  # the two streams may arrive one after the other
            book.wait_for_text(cell, word)
        colours = panel.locator(".xterm-rows").evaluate(COLOURS)
        assert len({colours["out"], colours["err"], colours["green"]}) == 3, colours


@pytest.mark.parametrize("key", ["PageUp", "wheel"])
def test_scrolling_up_stops_following_and_scrolling_to_the_end_resumes_it(book, key):
    cell, panel = _launch(book, "chatter")
    book.wait_for_text(cell, "line 40 of")
    follow = panel.get_by_role("button", name="Follow")
    box = panel.locator(".ice-terminal").bounding_box()
    book.page.mouse.move(box["x"] + 50, box["y"] + 50)
    screen = panel.locator(".xterm-helper-textarea")
    if key == "wheel":
        book.page.mouse.wheel(0, -200)
    else:
        screen.press("PageUp")
    panel.get_by_role("button", name="Follow", pressed=False).wait_for(timeout=30_000)
    there = book.text(cell)
    printed = book.cell(
        "seen = len(run.logs(0))\nwhile len(run.logs(0)) < seen + 100: time.sleep(.01)"
    )
    book.wait_for_end(printed)
    assert book.text(cell) == there
    screen.press("End")
    panel.get_by_role("button", name="Follow", pressed=True).wait_for(timeout=30_000)
    newest = int(re.findall(r"line\s(\d+)", book.text(cell))[-1])
    book.wait_for_text(cell, f"line {newest + 5} of")
    assert follow.get_attribute("aria-pressed") == "true"


def test_after_a_reload_the_shown_rank_gets_its_older_lines(book):
    book.wait_for_end(
        book.cell(
            "def much():\n"
            "    for number in range(6000): print(f'line {number:05} ' + 'x' * 88)\n"
            "    time.sleep(60)"
        )
    )
    cell, panel = _launch(book, "much", 8)
    book.wait_for_text(cell, "line 05999", 30)
    book.save()
    book.open()
    book.wait_for_text(cell, "line 05999", 30)
    panel = book.panel(cell)
    panel.get_by_role("tab", name="rank 5").click()
    book.page.wait_for_function(_FIRST, arg=[cell, 6000 - 3000], timeout=30_000)
    book.wait_for_text(cell, "line 05999")


# Scrolls up until a line before that number shows. At the end it scrolls down again.
_FIRST = """([cell, number]) => {
  const found = document.querySelectorAll('.jp-Notebook .jp-Cell')[cell];
  const panel = found.querySelector('.ice-panel');
  panel.querySelector('.ice-terminal').scrollIntoView({ block: 'nearest' });
  const screen = panel.querySelector('.xterm-helper-textarea');
  const lines = panel.querySelector('.xterm-rows').innerText.matchAll(/line\\s(\\d+)/g);
  const at = Math.min(...[...lines].map((line) => Number(line[1])));
  const press = (key) => screen.dispatchEvent(
    new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
  press(at < number ? 'End' : window.up ? 'Home' : 'End');
  window.up = !window.up;
  return at < number;
}"""


def test_a_screen_reader_gets_the_last_lines_and_announces_them_in_the_focused_panel(book):
    _, panel = _launch(book, "chatter", 2)
    log = panel.get_by_role("log", name="Last lines of rank 0")
    log.get_by_text("line 25 of rank 0").wait_for(timeout=30_000)
    assert log.get_attribute("aria-live") == "off"
    panel.locator(".xterm-helper-textarea").focus()
    assert log.get_attribute("aria-live") == "polite"
    row = log.get_by_text("line 25 of rank 0").element_handle()
    log.get_by_text("line 45 of rank 0").wait_for(timeout=30_000)
    assert row.evaluate("(row) => row.isConnected && row.textContent") == "line 25 of rank 0", (
        "a line that was read isn't read again"
    )
    panel.get_by_role("tab", name="all").click()
    panel.get_by_role("log", name="Last lines of all ranks").get_by_text(
        re.compile("of rank 1")
    ).first.wait_for(timeout=30_000)


def test_keys_select_and_copy_all_lines(book):
    cell, panel = _launch(book, "lambda: print('first words\\nsecond') or time.sleep(60)")
    book.wait_for_text(cell, "second")
    book.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel.locator(".xterm-helper-textarea").focus()
    book.page.keyboard.press("Control+a")
    book.page.keyboard.press("Control+c")
    book.page.wait_for_function(
        "async () => (await navigator.clipboard.readText()).trim().replace('\\r', '')"
        " === 'first words\\nsecond'",
        timeout=30_000,
    )


SHADES = """
def shades():
    rank = ice.get_context().rank
    for code in (*range(30, 38), *range(90, 98)): print(f'\\x1b[{code}mcolour {code}\\x1b[0m')
    print('a warning', file=sys.stderr)
    if rank == 2: raise ValueError('the cause')
    for _ in ice.get_context().steps(range(10**6)): time.sleep(.01)
"""


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_every_text_has_enough_contrast_in_both_themes(book, theme):
    book.page.evaluate(
        "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })",
        f"JupyterLab {theme}",
    )
    book.page.wait_for_function(
        "(light) => document.body.dataset.jpThemeLight === light",
        arg=str(theme == "Light").lower(),
        timeout=30_000,
    )
    book.wait_for_end(book.cell(SHADES))
    failed, panel = _launch(book, "shades", 5)
    book.wait_for_state(failed, "FAILED", 20)
    running, panel = _launch(book, "shades", 2)
    book.wait_for_text(running, "colour 97")
    book.click(running, "stacks")
    panel.locator(".ice-stacks pre").first.wait_for()
    for cell in (running, failed):
        panel = book.panel(cell)
        panel.locator(".ice-tool-button", has_text="Events").click()
        panel.get_by_role("searchbox").fill("colour")
        panel.locator(".ice-search-count").click()
        for tab in ("all", "rank 1"):
            panel.get_by_role("tab", name=tab).click()
            book.wait_for_text(cell, "colour 97")
            texts, unreadable = panel.evaluate(LOW_CONTRAST)
            assert texts > 30
            assert unreadable == []
