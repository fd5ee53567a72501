"""What the panel must not do, whatever the ranks do: flood the browser, slow the kernel, leave something behind."""

from __future__ import annotations

import json
import time

import pytest

FLOOD = """
def flood(seconds=10):
    ready = time.time()
    lines = 0
    while lines < seconds * 20_000:
        due = min(seconds * 20_000, int((time.time() - ready) * 20_000))
        if lines < due:
            os.write(1, b"".join(b"%d a line of a flood that nobody can read so fast\\n" % n for n in range(lines, due)))
            lines = due
        time.sleep(0.01)
    print("the last of", lines, "lines")
    time.sleep(60)
"""
COUNTS = """
import gc, threading, json, ipywidgets, comm
def counts():
    gc.collect()
    return {"threads": threading.active_count(), "files": len(os.listdir("/proc/self/fd")),
            "widgets": len(ipywidgets.widgets.widget._instances), "comms": len(comm.get_comm_manager().comms)}
"""


class Traffic:
    """The websocket frames that a page receives: when, and how many bytes."""

    def __init__(self, page):
        self.frames: list[tuple[float, int]] = []
        page.on(
            "websocket",
            lambda socket: socket.on(
                "framereceived",
                lambda payload: self.frames.append((time.monotonic(), len(payload))),
            ),
        )

    def rates(self, since: float) -> tuple[float, float]:
        """Bytes and frames a second, from `since` until now."""
        seconds = time.monotonic() - since
        sizes = [size for when, size in self.frames if when >= since]
        return sum(sizes) / seconds, len(sizes) / seconds


@pytest.mark.slow
def test_a_flood_is_cut_to_what_a_browser_can_take_and_stop_still_acts(book):
    """8 ranks x 20,000 lines/s for 10 s."""
    traffic = Traffic(book.page)
    book.open()  # so that the kernel's socket is a watched one
    book.done(book.cell(FLOOD + "\nimport psutil\nme = psutil.Process()"))
    cell = book.cell("run = ice.launch(flood, nproc_per_node=8, devices='cpu')\nrun")
    book.panel(cell)
    book.sees(cell, "a line of a flood")
    before = _memory(book)
    started = time.monotonic()
    book.page.wait_for_timeout(4000)
    size, frames = traffic.rates(started)
    asked = time.monotonic()
    answered = book.cell("6 * 7")
    book.done(answered)
    answer = time.monotonic() - asked
    assert "the last of" not in book.text(cell), "the cell waited for the flood's end"
    book.page.wait_for_timeout(3000)
    after = _memory(book)
    print(
        f"{size / 1e6:.2f} MB/s, {frames:.1f} frames/s, a cell answered after {answer:.2f} s, memory in MB: {before} before, {after} after"
    )
    assert size < 1e6
    assert frames <= 20
    assert after["kernel"] - before["kernel"] < 40
    assert after["page"] - before["page"] < 150
    book.sees(cell, "the last of 200000 lines", 20)
    book.press(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    book.panel(cell).get_by_role("searchbox").fill("skipped, on disk")
    book.sees(cell, "skipped, on disk")
    on_disk = book.cell("print([run.logs(rank).count('\\n') for rank in range(8)])")
    book.done(on_disk)
    assert book.output(on_disk).inner_text().strip() == str([200_001] * 8)


@pytest.mark.slow
def test_stop_acts_in_the_middle_of_a_flood(book):
    book.done(book.cell(FLOOD))
    cell = book.cell("run = ice.launch(flood, args=(60,), nproc_per_node=8, devices='cpu')\nrun")
    book.panel(cell)
    book.sees(cell, "a line of a flood")
    book.page.wait_for_timeout(2000)
    pressed = time.monotonic()
    book.press(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    print(f"stopped after {time.monotonic() - pressed:.2f} s")
    told = book.cell("print('the last of' in run.logs(0))")
    book.done(told)
    assert book.output(told).inner_text().strip() == "False", "the stop waited for the flood's end"


def _memory(book) -> dict[str, int]:
    """In MB: of the page's scripts, after a collection, and of the kernel."""
    session = book.page.context.new_cdp_session(book.page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    cell = book.cell("print(me.memory_info().rss >> 20)")
    book.done(cell)
    return {"page": used >> 20, "kernel": int(book.output(cell).inner_text())}


def test_launches_leave_nothing_behind(book):
    book.done(
        book.cell(
            COUNTS + "\n"
            "from IPython.display import display\n"
            "seen = []\n"
            "import icelaunch_nb.notebook.panel.panel_thread as module\n"
            "module._KEPT_PANELS = 3"
        )
    )
    last = book.cell(
        "for number in range(20):\n"
        "    run = ice.launch(lambda: print('here'), nproc_per_node=1, devices='cpu')\n"
        "    display(run)\n"
        "    run.result()\n"
        "    while module.panel_thread._active: time.sleep(0.01)\n"
        "    seen.append(counts())\n"
        "module._KEPT_PANELS = 16"
    )
    book.done(last, 60)
    output = book.output(last)
    told = book.cell(
        "print(json.dumps([seen[5], seen[-1]]))"
    )  # JupyterLab draws the first 50 outputs of a cell
    book.done(told)
    before, after = json.loads(book.output(told).inner_text())
    # 14 launches lie between the two; a socket or two of ipykernel's may just be opening or closing.
    assert {name: after[name] - before[name] < 5 for name in before} == dict.fromkeys(
        before, True
    ), (before, after)
    # Panels of long ago have turned into their summary.
    assert output.locator("details summary", has_text="rank 0, last lines").count() >= 10


@pytest.mark.slow
def test_two_hundred_launches_leave_threads_files_widgets_and_comms_flat(book):
    book.done(
        book.cell(
            COUNTS + "\n"
            "from IPython.display import display\n"
            "seen = []\n"
            "import icelaunch_nb.notebook.panel.panel_thread as module"
        )
    )
    many = book.cell(
        "for number in range(200):\n"
        "    run = ice.launch(lambda: print('here'), nproc_per_node=1, devices='cpu')\n"
        "    display(run)\n"
        "    run.result()\n"
        "    if number in (49, 199):\n"
        "        while module.panel_thread._active: time.sleep(0.01)\n"
        "        time.sleep(0.5)\n"
        "        seen.append(counts())\n"
    )
    book.done(many, 110)
    told = book.cell("print(json.dumps(seen))")  # JupyterLab draws the first 50 outputs of a cell
    book.done(told)
    before, after = json.loads(book.output(told).inner_text())
    print(before, after)
    # A socket or two of ipykernel's may just be opening or closing.
    assert {name: after[name] - before[name] < 3 for name in before} == dict.fromkeys(
        before, True
    ), (before, after)


def test_a_saved_notebook_holds_the_summary_and_stays_small(book, server):
    book.done(book.cell("def much():\n    for i in range(100000): print('line', i, 'x' * 80)"))
    before = len(json.dumps(book.save()))
    cell = book.cell("run = ice.launch(much, nproc_per_node=2, devices='cpu')\nrun")
    book.wait_for_state(cell, "SUCCEEDED", 20)
    book.sees(cell, "line 99999")
    saved = book.page.wait_for_function(_HTML, arg=cell, timeout=30_000)
    assert saved
    content = book.save()
    assert len(json.dumps(content)) - before < 100_000
    data = content["cells"][cell]["outputs"][0]["data"]
    assert "SUCCEEDED" in "".join(data["text/html"]) and "line 99999" in "".join(data["text/html"])
    assert "SUCCEEDED" in "".join(data["text/plain"])


def test_notebook_7_shows_it_and_its_buttons_act(lab, server, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    setup = (
        "%load_ext icelaunch_nb\n"
        "import icelaunch_nb as ice, time\n"
        "def talk():\n"
        "    for i in range(600): print('line', i); time.sleep(.05)"
    )
    book = lab.Book(server, page, server.notebook([setup]), app="notebook")
    try:
        book.run(0)
        book.done(0, 60)
        cell = book.cell("run = ice.launch(talk, nproc_per_node=2, devices='cpu')\nrun")
        book.sees(cell, "line 5", 20)
        waits = book.cell("try: run.result()\nexcept ice.RunStopped: print('was stopped')")
        book.press(cell, "stop")
        book.wait_for_state(cell, "STOPPED")
        book.done(waits)
    finally:
        page.close()


_HTML = """(cell) => window.jupyterapp.shell.currentWidget.content.widgets[cell].model.toJSON().outputs[0]?.data['text/html']
  ?.includes?.('SUCCEEDED') || JSON.stringify(window.jupyterapp.shell.currentWidget.content.widgets[cell].model.toJSON().outputs).includes('SUCCEEDED')"""


def test_a_print_without_flush_and_without_a_newline_is_seen_while_the_rank_goes_on(book):
    book.done(
        book.cell(
            "def mumbles():\n"
            "    time.sleep(2)\n"
            "    print('no newline', end=' ')\n"
            "    time.sleep(1000)"
        )
    )
    cell = book.cell("run = ice.launch(mumbles, nproc_per_node=1, devices='cpu')\nrun")
    book.sees(cell, "no newline")
    book.wait_for_state(cell, "RUNNING")


@pytest.mark.slow
def test_from_print_to_pixel_in_a_quiet_run(book):
    """Ranks say when they print, the page when it shows; both clocks are this machine's."""
    book.done(
        book.cell(
            "def ticks():\n    import random\n    time.sleep(2)\n    for number in range(120):\n"
            "        print(f'tick {number} {1000 * time.time():.1f}')\n"
            "        time.sleep(random.uniform(0.1, 0.2))\n"
            "    time.sleep(60)"
        )
    )
    cell = book.cell("run = ice.launch(ticks, nproc_per_node=2, devices='cpu')\nrun")
    book.panel(cell)
    took = sorted(book.page.evaluate(_TICKS, [cell, 120]))
    median, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
    print(
        f"{len(took)} lines: median {median:.0f} ms, 99 % within {p99:.0f} ms, longest {took[-1]:.0f} ms"
    )
    assert len(took) >= 110


_TICKS = """([cell, number]) => new Promise((resolve) => {
  const panel = document.querySelectorAll('.jp-Notebook .jp-Cell')[cell];
  panel.querySelector('.ice-terminal').scrollIntoView({ block: 'nearest' });
  const took = new Map();
  const look = () => {
    for (const row of [...panel.querySelectorAll('.xterm-rows > div')].slice(-20)) {
      const [, tick, printed] = /tick (\\d+) ([\\d.]+)/.exec(row.textContent.replaceAll('\\u00a0', ' ')) ?? [];
      if (tick && !took.has(tick)) took.set(tick, performance.timeOrigin + performance.now() - Number(printed));
    }
    if (took.has(String(number - 1))) resolve([...took.values()]);
    else requestAnimationFrame(look);
  };
  look();
})"""


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_a_saved_notebook_that_is_opened_without_its_kernel_shows_the_summary(
    lab, server, browser, app
):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    setup = (
        "%load_ext icelaunch_nb\n"
        "import icelaunch_nb as ice\n"
        "def fails():\n"
        "    print('its last words')\n"
        "    raise ValueError('the cause')"
    )
    book = lab.Book(server, page, server.notebook([setup]), app=app)
    try:
        book.run(0)
        book.done(0, 60)
        cell = book.cell("run = ice.launch(fails, nproc_per_node=2, devices='cpu')\nrun")
        book.wait_for_state(cell, "FAILED", 20)
        page.wait_for_function(_HTML.replace("SUCCEEDED", "FAILED"), arg=cell, timeout=30_000)
        book.save()
        session = next(one for one in server.request("api/sessions") if one["path"] == book.name)
        page.goto("about:blank")
        server.request(f"api/sessions/{session['id']}", "DELETE")
        book.open()
        output = book.output(cell)
        output.get_by_text("ValueError: the cause").wait_for(timeout=30_000)
        shown = output.inner_text()
        assert "FAILED fails · 2 ranks · 0 restarts" in shown and "its last words" in shown
        assert "widget" not in shown and output.locator(".ice-panel").count() == 0
    finally:
        page.close()
