"""Limits of a panel: what it sends, its memory, its delays, and what it leaves behind."""

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
            line = b"%d a line of a flood that nobody can read so fast\\n"
            os.write(1, b"".join(line % n for n in range(lines, due)))
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
            "widgets": len(ipywidgets.widgets.widget._instances),
            "comms": len(comm.get_comm_manager().comms)}
"""


class Traffic:
    """The time and size of each websocket frame that a page receives."""

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
def test_a_flood_is_cut_to_the_rate_limit_and_stop_still_acts(book):
    """8 ranks print 20,000 lines/s each for 10 s."""
    traffic = Traffic(book.page)
    book.open()  # the listener gets only sockets that are opened after it
    book.wait_for_end(book.cell(FLOOD + "\nimport psutil\nme = psutil.Process()"))
    cell = book.cell("run = ice.launch(flood, nproc_per_node=8, devices='cpu')\nrun")
    book.panel(cell)
    book.wait_for_text(cell, "a line of a flood")
    before = _memory(book)
    started = time.monotonic()
    book.page.wait_for_timeout(4000)
    size, frames = traffic.rates(started)
    asked = time.monotonic()
    answered = book.cell("6 * 7")
    book.wait_for_end(answered)
    answer = time.monotonic() - asked
    assert "the last of" not in book.text(cell), "the cell waited for the flood's end"
    book.page.wait_for_timeout(3000)
    after = _memory(book)
    print(
        f"{size / 1e6:.2f} MB/s, {frames:.1f} frames/s, a cell answered after {answer:.2f} s, "
        f"memory in MB: {before} before, {after} after"
    )
    assert size < 1e6
    assert frames <= 20
    assert after["kernel"] - before["kernel"] < 40
    assert after["page"] - before["page"] < 150
    book.wait_for_text(cell, "the last of 200000 lines", 20)
    book.click(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    book.panel(cell).get_by_role("searchbox").fill("skipped, on disk")
    book.wait_for_text(cell, "skipped, on disk")
    on_disk = book.cell("print([run.logs(rank).count('\\n') for rank in range(8)])")
    book.wait_for_end(on_disk)
    assert book.output(on_disk).inner_text().strip() == str([200_001] * 8)


@pytest.mark.slow
def test_stop_acts_in_the_middle_of_a_flood(book):
    book.wait_for_end(book.cell(FLOOD))
    cell = book.cell("run = ice.launch(flood, args=(60,), nproc_per_node=8, devices='cpu')\nrun")
    book.panel(cell)
    book.wait_for_text(cell, "a line of a flood")
    book.page.wait_for_timeout(2000)
    pressed = time.monotonic()
    book.click(cell, "stop")
    book.wait_for_state(cell, "STOPPED")
    print(f"stopped after {time.monotonic() - pressed:.2f} s")
    printed = book.cell("print('the last of' in run.logs(0))")
    book.wait_for_end(printed)
    assert book.output(printed).inner_text().strip() == "False", (
        "the stop waited for the flood's end"
    )


def _memory(book) -> dict[str, int]:
    """Memory in MB: the page's JavaScript heap after a garbage collection, and the kernel."""
    session = book.page.context.new_cdp_session(book.page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    cell = book.cell("print(me.memory_info().rss >> 20)")
    book.wait_for_end(cell)
    return {"page": used >> 20, "kernel": int(book.output(cell).inner_text())}


def test_launches_leave_nothing_behind(book):
    book.wait_for_end(
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
    book.wait_for_end(last, 60)
    output = book.output(last)
    printed = book.cell(
        "print(json.dumps([seen[5], seen[-1]]))"
    )  # JupyterLab draws the first 50 outputs of a cell
    book.wait_for_end(printed)
    before, after = json.loads(book.output(printed).inner_text())
    # There are 14 launches between the two. A socket or two of ipykernel's may just open or close.
    assert {name: after[name] - before[name] < 5 for name in before} == dict.fromkeys(
        before, True
    ), (before, after)
    # The oldest panels have turned into their summary.
    assert output.locator("details summary", has_text="rank 0, last lines").count() >= 10


@pytest.mark.long
def test_two_hundred_launches_leave_threads_files_widgets_and_comms_flat(book):
    book.wait_for_end(
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
    book.wait_for_end(many, 110)
    printed = book.cell(
        "print(json.dumps(seen))"
    )  # JupyterLab draws the first 50 outputs of a cell
    book.wait_for_end(printed)
    before, after = json.loads(book.output(printed).inner_text())
    print(before, after)
    # A socket or two of ipykernel's may just open or close.
    assert {name: after[name] - before[name] < 3 for name in before} == dict.fromkeys(
        before, True
    ), (before, after)


def test_a_saved_notebook_holds_the_summary_and_stays_small(book, server):
    book.wait_for_end(
        book.cell("def much():\n    for i in range(100000): print('line', i, 'x' * 80)")
    )
    before = len(json.dumps(book.save()))
    cell = book.cell("run = ice.launch(much, nproc_per_node=2, devices='cpu')\nrun")
    book.wait_for_state(cell, "SUCCEEDED", 20)
    book.wait_for_text(cell, "line 99999")
    saved = book.page.wait_for_function(_HTML, arg=cell, timeout=30_000)
    assert saved
    content = book.save()
    assert len(json.dumps(content)) - before < 100_000
    data = content["cells"][cell]["outputs"][0]["data"]
    assert "SUCCEEDED" in "".join(data["text/html"]) and "line 99999" in "".join(data["text/html"])
    assert "SUCCEEDED" in "".join(data["text/plain"])


def test_the_panel_and_its_buttons_work_in_notebook_7(lab, server, browser):
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
        book.wait_for_end(0, 60)
        cell = book.cell("run = ice.launch(talk, nproc_per_node=2, devices='cpu')\nrun")
        book.wait_for_text(cell, "line 5", 20)
        waits = book.cell("try: run.result()\nexcept ice.RunStopped: print('was stopped')")
        book.click(cell, "stop")
        book.wait_for_state(cell, "STOPPED")
        book.wait_for_end(waits)
    finally:
        page.close()


_HTML = """(cell) => {
  const { outputs } =
    window.jupyterapp.shell.currentWidget.content.widgets[cell].model.toJSON();
  return outputs[0]?.data['text/html']?.includes?.('SUCCEEDED') ||
    JSON.stringify(outputs).includes('SUCCEEDED');
}"""


def test_a_print_without_flush_or_newline_shows_while_the_rank_runs(book):
    book.wait_for_end(
        book.cell(
            "def mumbles():\n"
            "    time.sleep(2)\n"
            "    print('no newline', end=' ')\n"
            "    time.sleep(1000)"
        )
    )
    cell = book.cell("run = ice.launch(mumbles, nproc_per_node=1, devices='cpu')\nrun")
    book.wait_for_text(cell, "no newline")
    book.wait_for_state(cell, "RUNNING")


@pytest.mark.long
def test_the_delay_from_print_to_page_in_a_quiet_run(book):
    """The ranks print the time. The page notes when it shows it, by the same machine's clock."""
    book.wait_for_end(
        book.cell(
            "def ticks():\n    import random\n    time.sleep(2)\n    for number in range(120):\n"
            "        print(f'tick {number} {1000 * time.time():.1f}')\n"
            "        time.sleep(random.uniform(0.1, 0.2))\n"
            "    time.sleep(60)"
        )
    )
    cell = book.cell("run = ice.launch(ticks, nproc_per_node=2, devices='cpu')\nrun")
    book.panel(cell)
    delays = sorted(book.page.evaluate(_TICKS, [cell, 120]))
    median, p99 = delays[len(delays) // 2], delays[int(len(delays) * 0.99)]
    print(
        f"{len(delays)} lines: median {median:.0f} ms, 99 % within {p99:.0f} ms, "
        f"longest {delays[-1]:.0f} ms"
    )
    assert len(delays) >= 110


_TICKS = """([cell, number]) => new Promise((resolve) => {
  const panel = document.querySelectorAll('.jp-Notebook .jp-Cell')[cell];
  panel.querySelector('.ice-terminal').scrollIntoView({ block: 'nearest' });
  const delays = new Map();
  const poll = () => {
    for (const row of [...panel.querySelectorAll('.xterm-rows > div')].slice(-20)) {
      const text = row.textContent.replaceAll('\\u00a0', ' ');
      const [, tick, printed] = /tick (\\d+) ([\\d.]+)/.exec(text) ?? [];
      const now = performance.timeOrigin + performance.now();
      if (tick && !delays.has(tick)) delays.set(tick, now - Number(printed));
    }
    if (delays.has(String(number - 1))) resolve([...delays.values()]);
    else requestAnimationFrame(poll);
  };
  poll();
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
        book.wait_for_end(0, 60)
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
