"""The launch form in a real JupyterLab and a real browser."""

from __future__ import annotations

import re
import time

import pytest

CELL = '''
import enum
from typing import Literal

class Schedule(enum.Enum):
    CONSTANT = 1
    COSINE = 2

dataset = list(range(100))

def lesson(data, epochs: int = 3, *, lr: float = 0.1, shuffle: bool = True,
           mode: Literal["fast", "exact"] = "fast", schedule: Schedule = Schedule.COSINE,
           note: str = "none"):
    """Learns <b>something</b> from the data."""
    print("learning from", len(data), "with", epochs, lr, shuffle, mode, schedule.name, note)
    while note == "wait" and not os.path.exists("go on"):
        time.sleep(0.01)
    return len(data) * epochs
'''


class Form:
    """The form in a cell's output."""

    def __init__(self, book, call="ice.LaunchPanel(lesson)"):
        self.book = book
        self.cell = book.cell(f"form = {call}\nform")
        self.box = book.page.locator(".jp-Notebook .jp-Cell").nth(self.cell).locator(".ice-form")
        self.box.wait_for(timeout=30_000)
        self.click("Defaults")
        book.page.wait_for_function(
            "(box) => !box.querySelector('[data-changed]')",
            arg=self.box.element_handle(),
            timeout=30_000,
        )

    def field(self, key):
        return self.box.locator(f'[data-key="{key}"]')

    def fill(self, key, text):
        self.field(key).locator("input").first.fill(text)

    def wait_for_error(self, key, text):
        self.field(key).locator(".ice-error", has_text=text).wait_for(timeout=30_000)

    def click(self, name):
        self.box.get_by_role("button", name=name, exact=True).click()

    def wait_for_status(self, text):
        self.box.locator(".ice-status", has_text=text).wait_for(timeout=30_000)

    def value(self, expression):
        cell = self.book.cell(f"print({expression})")
        self.book.wait_for_end(cell)
        return self.book.output(cell).inner_text().strip()


@pytest.fixture
def form(book):
    book.wait_for_end(book.cell(CELL))
    return Form(book)


def test_fields_know_types_and_defaults(form):
    assert form.box.locator(".ice-doc").inner_text() == "Learns <b>something</b> from the data."
    assert form.field("argument.epochs").locator("input").input_value() == "3"
    assert form.field("argument.shuffle").get_by_role("checkbox").is_checked()
    assert form.field("argument.mode").locator("option").all_inner_texts() == ["fast", "exact"]
    assert form.field("argument.schedule").get_by_role("combobox").input_value() == "COSINE"
    assert (
        form.field("argument.data").locator("input").get_attribute("placeholder")
        == "a Python expression"
    )
    free = form.box.locator(".ice-device", has_text="core").locator(".ice-device-note").inner_text()
    assert re.match(r"\d+(\.\d)? of \d+(\.\d)? GB free, \d+ cores?, load \d", free)
    assert not form.field("setting.max_nodes").is_visible()
    form.box.get_by_text("Advanced").click()
    assert "Greatest number of nodes" in form.field("setting.max_nodes").inner_text()


def test_it_launches_with_the_typed_values_and_can_launch_again(form):
    form.fill("argument.data", "dataset[:10]")
    form.fill("argument.epochs", "2")
    form.field("argument.shuffle").get_by_role("checkbox").uncheck()
    form.field("argument.mode").get_by_role("combobox").select_option("exact")
    form.field("argument.schedule").get_by_role("combobox").select_option("CONSTANT")
    form.fill("argument.note", "wait")
    form.fill("setting.nproc_per_node", "2")
    form.click("Launch")
    form.book.wait_for_text(form.cell, "learning from 10 with 2 0.1 False exact CONSTANT wait")
    form.wait_for_status("RUNNING")
    assert form.box.get_by_role("button", name="Running").is_disabled()
    go = form.book.server.home / "go on"
    go.touch()
    form.wait_for_status("SUCCEEDED: form.run.result()")
    form.book.wait_for_state(form.cell, "SUCCEEDED")
    assert form.value("form.run.result()") == "{0: 20, 1: 20}"
    go.unlink()
    form.fill("argument.note", "again")
    form.fill("setting.nproc_per_node", "1")
    form.click("Launch again")
    form.book.wait_for_text(form.cell, "exact CONSTANT again")
    form.wait_for_status("SUCCEEDED")
    assert form.value("form.run.result()") == "{0: 20}"
    assert (
        form.book.page.locator(".jp-Notebook .jp-Cell").nth(form.cell).locator(".ice-panel").count()
        == 1
    )


def test_the_runs_own_panel_stops_it_and_the_form_says_so(form):
    form.fill("argument.data", "dataset")
    form.fill("argument.note", "wait")
    form.click("Launch")
    form.book.wait_for_text(form.cell, "learning")
    form.book.click(form.cell, "stop")
    form.wait_for_status("STOPPED")
    form.box.get_by_role("button", name="Launch again").wait_for(timeout=30_000)


def test_errors_show_while_typing_and_nothing_starts(form):
    before = form.value("len(ice.runs())")
    form.field("argument.epochs").locator("input").press_sequentially("x")
    form.wait_for_error("argument.epochs", "must be a whole number")
    form.fill("argument.data", "datasett[0]")
    form.wait_for_error("argument.data", "did you mean 'dataset'?")
    form.fill("setting.nproc_per_node", "0")
    form.wait_for_error("setting.nproc_per_node", "must be at least 1")
    form.wait_for_status("Look at data, epochs, ranks.")
    assert form.field("argument.epochs").locator("input").get_attribute("aria-invalid") == "true"
    form.click("Launch")
    form.book.page.wait_for_function(
        "() => document.activeElement?.closest('[data-key]')?.dataset.key === 'argument.data'",
        timeout=30_000,
    )
    assert form.value("len(ice.runs())") == before
    form.fill("argument.data", "dataset")
    form.fill("argument.epochs", "1")
    form.fill("setting.nproc_per_node", "1")
    form.wait_for_status("1 rank, cpu")
    assert form.box.locator(".ice-error:visible").count() == 0


def test_a_missing_value_becomes_an_error_after_a_click_on_launch(form):
    form.wait_for_status("Needs data.")
    assert form.box.locator(".ice-error:visible").count() == 0
    form.click("Launch")
    form.wait_for_error("argument.data", "needs a value")


def test_an_error_in_the_advanced_fields_unfolds_them(form):
    form.fill("argument.data", "1")
    form.box.get_by_text("Advanced").click()
    form.fill("setting.max_nodes", "2")
    form.wait_for_error("setting.rdzv_endpoint", "max_nodes=2 needs a place to meet")
    form.box.locator("summary").click()
    form.click("Launch")
    form.field("setting.rdzv_endpoint").locator("input:focus").wait_for(timeout=30_000)


def test_an_error_of_the_launch_shows_beside_its_field(form):
    form.book.wait_for_end(form.book.cell("import threading\nlock = threading.Lock()"))
    form.fill("argument.data", "[lock]")
    form.click("Launch")
    form.wait_for_error("argument.data", "can't be carried to the ranks")
    form.fill("argument.data", "1 // 0")
    form.field("argument.data").get_by_text("evaluated at launch").wait_for(timeout=30_000)
    form.click("Launch")
    form.wait_for_error("argument.data", "ZeroDivisionError")


def test_the_same_launch_as_code(form):
    form.fill("argument.data", "dataset")
    form.fill("setting.nproc_per_node", "2")
    form.click("Code")
    python, cell = form.box.locator(".ice-code pre").all()
    form.box.locator(
        ".ice-code pre",
        has_text='run = ice.launch(lesson, kwargs={"data": dataset}, nproc_per_node=2)',
    ).wait_for(timeout=30_000)
    assert cell.inner_text() == "%%icelaunch --nproc-per-node 2\nlesson(data=dataset)"
    form.book.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    form.click("Copy as %%icelaunch cell")
    form.box.get_by_text("Copied").wait_for(timeout=30_000)
    assert form.book.page.evaluate("navigator.clipboard.readText()") == cell.inner_text()
    pasted = form.book.cell(cell.inner_text())
    form.book.wait_for_end(pasted)
    assert "{0: 300, 1: 300}" in form.book.output(pasted).inner_text()
    pasted = form.book.cell(python.inner_text())
    form.book.wait_for_end(pasted)
    assert "{0: 300, 1: 300}" in form.book.output(pasted).inner_text()


def test_a_choice_among_the_notebooks_functions_follows_the_notebook(book):
    book.wait_for_end(book.cell("def first(steps: int = 1): return steps"))
    form = Form(book, "ice.LaunchPanel()")
    chooser = form.box.get_by_label("Launch", exact=True)
    chooser.select_option("first")
    form.field("argument.steps").wait_for(timeout=30_000)
    book.wait_for_end(book.cell("def second(size: float = 0.5): return size"))
    chooser.locator("option[value=second]").wait_for(state="attached", timeout=30_000)
    chooser.select_option("second")
    form.field("argument.size").wait_for(timeout=30_000)
    form.fill("argument.size", "0.25")
    form.click("Launch")
    form.wait_for_status("SUCCEEDED")
    assert form.value("form.run.result()") == "{0: 0.25}"


def test_the_last_settings_outlive_the_page_and_the_kernel(form):
    form.fill("argument.data", "dataset[:3]")
    form.fill("setting.nproc_per_node", "2")
    form.wait_for_status("2 ranks, cpu")
    assert form.value("form.cell") == "%%icelaunch --nproc-per-node 2\nlesson(data=dataset[:3])"
    form.book.wait_for_end(form.book.cell("again = ice.LaunchPanel(lesson)"))
    assert form.value("again.cell") == "%%icelaunch --nproc-per-node 2\nlesson(data=dataset[:3])"
    # Another kernel of the same notebook. The two share only the state directory and the
    # notebook's path.
    code = (
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', '''\n"
        "import icelaunch_nb as ice\n"
        "def lesson(data): pass\n"
        "dataset = []\n"
        "print(ice.LaunchPanel(lesson).cell)\n"
        "'''], capture_output=True, text=True))"
    )
    cell = form.book.cell(code)
    form.book.wait_for_end(cell, 60)
    assert (
        "%%icelaunch --nproc-per-node 2\\nlesson(data=dataset[:3])"
        in form.book.output(cell).inner_text()
    )


def test_a_launch_by_keyboard_alone(form):
    page = form.book.page
    first = form.field("argument.data").locator("input")
    first.focus()
    page.keyboard.type("dataset")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")
    assert form.field("argument.epochs").locator("input").input_value() == "4"
    page.keyboard.press("Control+Enter")
    form.book.wait_for_text(form.cell, "learning from 100 with 4")
    form.wait_for_status("SUCCEEDED")


def test_during_a_busy_cell_it_answers_or_reports_the_busy_kernel(form):
    subshells = form.value("__import__('ipykernel').version_info[0]") != "6"
    busy = form.book.cell("while not os.path.exists('free'): time.sleep(.01)")
    try:
        form.fill("argument.data", "dataset")
        form.wait_for_status("1 rank, cpu" if subshells else "The kernel is busy with a cell")
        assert form.field("argument.data").locator("input").input_value() == "dataset", (
            "the typed value stays"
        )
    finally:
        (form.book.server.home / "free").touch()
        form.book.wait_for_end(busy)
        (form.book.server.home / "free").unlink()
    form.wait_for_status("1 rank, cpu")


def test_two_clicks_while_a_cell_is_busy_are_one_launch(form):
    form.fill("argument.data", "dataset")
    form.fill("argument.note", "wait")
    form.wait_for_status("1 rank, cpu")
    before = form.value("len(ice.runs())")
    busy = form.book.cell("while not os.path.exists('free'): time.sleep(.01)")
    launch = form.box.locator(".ice-launch")
    launch.click()
    form.box.locator(".ice-status", has_text=re.compile("kernel is busy|RUNNING")).wait_for(
        timeout=30_000
    )
    launch.evaluate("(button) => button.click()")
    assert launch.is_disabled()
    for name in ("free", "go on"):
        (form.book.server.home / name).touch()
    form.book.wait_for_end(busy)
    form.wait_for_status("SUCCEEDED")
    assert int(form.value("len(ice.runs())")) == int(before) + 1
    for name in ("free", "go on"):
        (form.book.server.home / name).unlink()


def test_a_cell_that_runs_again_leaves_no_older_form_behind(form):
    count = (
        "len(get_ipython().events.callbacks['post_run_cell']), "
        "len(__import__('ipywidgets').widgets.widget._instances)"
    )
    before = form.value(count)
    form.book.run(form.cell)
    form.book.wait_for_end(form.cell)
    form.box.locator(".ice-launch").wait_for(timeout=30_000)
    assert form.value(count) == before


def test_a_page_that_is_loaded_again_shows_what_was_typed(form):
    form.fill("argument.note", "kept")
    form.box.get_by_text("Advanced").click()
    form.fill("setting.role", "learner")
    form.value("1")  # by then, the kernel has received the values
    form.book.save()
    form.book.open()
    form.field("argument.note").locator("input").wait_for(timeout=30_000)
    assert form.field("argument.note").locator("input").input_value() == "kept"
    form.box.get_by_text("Advanced").click()
    assert form.field("setting.role").locator("input").input_value() == "learner"
    form.fill("argument.data", "dataset[:2]")
    form.wait_for_status("1 rank, cpu")
    assert (
        form.value("form.cell")
        == '%%icelaunch --role learner\nlesson(data=dataset[:2], note="kept")'
    )


def test_streams_are_chosen_by_name(form):
    form.fill("argument.data", "1")
    tee = form.field("setting.tee")
    tee.get_by_role("combobox").select_option("stderr")
    assert form.value("form.cell.splitlines()[0]") == "%%icelaunch --tee 2"
    assert not tee.get_by_role("textbox").is_visible()
    tee.get_by_role("combobox").select_option("by rank …")
    by_rank = tee.get_by_role("textbox")
    by_rank.fill("0:1,1:3")
    form.wait_for_error("setting.tee", "local rank 1 does not exist")
    form.fill("setting.nproc_per_node", "2")
    form.wait_for_status("2 ranks, cpu")
    assert form.value("form.cell.splitlines()[0]") == "%%icelaunch --nproc-per-node 2 --tee 0:1,1:3"
    tee.get_by_role("combobox").select_option("none")
    by_rank.wait_for(state="hidden", timeout=30_000)
    deadline = time.monotonic() + 30  # the page hides the field before the kernel has the choice
    while form.value("form.cell.splitlines()[0]") != "%%icelaunch --nproc-per-node 2":
        assert time.monotonic() < deadline


def test_two_views_of_a_form_show_the_same(form):
    second = form.book.cell("form")
    other = form.book.page.locator(".jp-Notebook .jp-Cell").nth(second).locator(".ice-form")
    other.wait_for(timeout=30_000)
    form.fill("argument.note", "shared")
    note = other.locator('[data-key="argument.note"] input').element_handle()
    form.book.page.wait_for_function(
        "(input) => input.value === 'shared'", arg=note, timeout=30_000
    )


def test_markup_in_names_and_values_is_text(book):
    book.wait_for_end(
        book.cell(
            "def risky(x='<img src=x onerror=window.hacked=1>', **rest):\n"
            "    '''<script>window.hacked = 2</script>'''"
        )
    )
    form = Form(book, "ice.LaunchPanel(risky)")
    form.fill("argument.x", "<img src=x onerror=window.hacked=3>")
    form.fill("argument.rest", "'<b>no</b>'")
    form.wait_for_error("argument.rest", "must be a dict")
    form.click("Code")
    assert form.book.page.evaluate("window.hacked") is None
    assert form.box.locator("img, script, b").count() == 0


def test_a_click_on_a_gpu_chooses_it(form):
    """The machine has no GPUs. The devices are made up, so a launch on them would be refused."""
    gpus = [
        {
            "device": f"cuda:{n}",
            "about": "",
            "free": (80 - 20 * n) * 10**9,
            "total": 80 * 10**9,
            "note": "3 % busy",
        }
        for n in range(4)
    ]
    form.book.wait_for_end(
        form.book.cell(f"form._fields.devices = [*form._fields.devices[:1], *{gpus}]")
    )
    form.fill("argument.data", "1")
    third = form.box.get_by_role("button", name="cuda:2")
    third.wait_for(timeout=30_000)
    assert "40 of 80 GB free, 3 % busy" in third.inner_text()
    form.box.get_by_role("button", name="cuda:0").click()
    third.click()
    form.box.locator('.ice-device[aria-pressed="true"]', has_text="cuda:2").wait_for(timeout=30_000)
    assert form.value("form.cell").startswith("%%icelaunch --devices cuda:0,2")
    third.click()
    form.box.get_by_role("button", name="cuda:0").click()
    form.box.locator('.ice-device[aria-pressed="true"]', has_text="auto").wait_for(timeout=30_000)
    assert form.value("form.cell").startswith("%%icelaunch\n")


def test_the_form_in_notebook_7(lab, server, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    try:
        book = lab.Book(
            server,
            page,
            server.notebook(
                [
                    "%load_ext icelaunch_nb\n"
                    "import icelaunch_nb as ice\n"
                    "def short(n: int = 2): return n"
                ]
            ),
            "notebook",
        )
        book.run(0)
        book.wait_for_end(0, 60)
        form = Form(book, "ice.LaunchPanel()")
        form.fill("argument.n", "5")
        form.fill("setting.nproc_per_node", "2")
        form.click("Launch")
        form.wait_for_status("SUCCEEDED: form.run.result()")
        assert form.value("form.run.result()") == "{0: 5, 1: 5}"
        book.restart()
        form.wait_for_status("The kernel of this form has ended")
        assert form.box.locator(".ice-launch").is_disabled()
    finally:
        page.close()
