"""The panel's terminal: scrollback, wide characters, colours, selection and copy."""

from __future__ import annotations


def _launch(book, call):
    cell = book.cell(f"run = ice.launch({call}, nproc_per_node=1, devices='cpu')\nrun")
    book.panel(cell)
    return cell


def test_ten_thousand_lines_can_be_scrolled_back(book):
    cell = _launch(book, "lambda: [print(f'line {number}') for number in range(12_000)]")
    book.wait_for_text(cell, "line 11999", 20)
    screen = book.panel(cell).locator(".xterm-helper-textarea")
    screen.focus()
    screen.press("Home")
    book.page.wait_for_function(
        "() => Number(/line\\s(\\d+)/.exec(document.activeElement.closest('.ice-panel')"
        ".querySelector('.xterm-rows').innerText)?.[1]) <= 2000"
    )
    screen.press("End")
    book.wait_for_text(cell, "line 11999")


def test_colours_and_wide_characters(book):
    cell = _launch(book, "lambda: print('\\x1b[31mred\\x1b[0m 漢字 🙂 é|')")
    book.wait_for_text(cell, "red 漢字 🙂 é|")
    rows = book.panel(cell).locator(".xterm-rows")
    red = rows.locator("span", has_text="red").first
    plain = rows.locator("span", has_text="é|").first
    color = "(element) => getComputedStyle(element).color"
    assert red.evaluate(color) != plain.evaluate(color)
    # A wide character has two cells, so the bar comes after 3 + 1 + 4 + 1 + 2 + 1 + 1 cells.
    left, width = rows.evaluate("""(rows) => {
        const walker = document.createTreeWalker(rows, NodeFilter.SHOW_TEXT);
        const range = document.createRange();
        while (walker.nextNode()) {
            const at = walker.currentNode.data.indexOf('|');
            if (at < 0) continue;
            range.setStart(walker.currentNode, at);
            range.setEnd(walker.currentNode, at + 1);
            const { left, width } = range.getBoundingClientRect();
            return [left - rows.getBoundingClientRect().left, width];
        }
    }""")
    assert round(left / width) == 13


def test_a_selection_is_copied(book):
    cell = _launch(book, "lambda: print('first words to copy\\nsecond')")
    book.wait_for_text(cell, "second")
    book.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    box = book.panel(cell).locator(".xterm-rows > div").first.bounding_box()
    book.page.mouse.dblclick(box["x"] + 3, box["y"] + box["height"] / 2)
    book.page.keyboard.press("Control+c")
    book.page.wait_for_function(
        "async () => await navigator.clipboard.readText() === 'first'", timeout=30_000
    )
