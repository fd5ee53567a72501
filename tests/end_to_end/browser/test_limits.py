"""What the panel must not do, whatever the ranks do: flood the browser, slow the kernel, leave something behind."""

from __future__ import annotations

import json
import time

import pytest

FLOOD = """
def flood():
    deadline, number = time.time() + 4, 0
    while time.time() < deadline:
        os.write(1, b"".join(b"%d a line of a flood that nobody can read so fast\\n" % n for n in range(number, number + 200)))
        number += 200
        time.sleep(0.01)  # 20,000 lines/s
    print("the last line")
    time.sleep(60)
"""
COUNTS = """
import gc, threading, json, ipywidgets, comm
def counts():
    gc.collect()
    return {"threads": threading.active_count(), "files": len(os.listdir("/proc/self/fd")),
            "widgets": len(ipywidgets.widgets.widget._instances), "comms": len(comm.get_comm_manager().comms)}
"""


@pytest.mark.slow
def test_a_flood_is_cut_to_what_a_browser_can_take_and_stop_still_acts(book):
    received: list[tuple[float, int]] = []

    def watch(socket):
        socket.on("framereceived", lambda payload: received.append((time.monotonic(), len(payload))))

    book.page.on("websocket", watch)
    book.open()  # so that the kernel's socket is a watched one
    book.done(book.cell(FLOOD))
    cell = book.cell("run = ice.launch(flood, nproc_per_node=4, devices='cpu')\nrun")
    book.panel(cell)
    book.sees(cell, "a line of a flood")
    started, before = time.monotonic(), len(received)
    asked = time.monotonic()
    answered = book.cell("6 * 7")
    book.done(answered)
    assert time.monotonic() - asked < 3  # the browser's way of starting a cell included; 2 cores are shared with the flood
    book.page.wait_for_timeout(2000)
    seconds, frames = time.monotonic() - started, received[before:]
    print(f"{sum(size for _, size in frames) / seconds / 1e6:.2f} MB/s, {len(frames) / seconds:.0f} frames/s")
    assert sum(size for _, size in frames) / seconds < 1.15e6
    assert len(frames) / seconds < 20 + 11 + 10  # logs, pulses, and what the cell above brought
    book.sees(cell, "the last line")
    pressed = time.monotonic()
    book.press(cell, "stop")
    book.word(cell, "STOPPED")
    assert time.monotonic() - pressed < 3
    book.panel(cell).get_by_role("searchbox").fill("skipped, on disk")
    book.sees(cell, "skipped, on disk")


def test_launches_leave_nothing_behind(book):
    book.done(book.cell(COUNTS + "\nfrom IPython.display import display\nseen = []\nimport icelaunch_nb.notebook.panels as module\nmodule._KEPT = 3"))
    last = book.cell(
        "for number in range(20):\n"
        "    run = ice.launch(lambda: print('here'), nproc_per_node=1, devices='cpu')\n"
        "    display(run)\n"
        "    run.result()\n"
        "    while module.panels._waiting: time.sleep(0.01)\n"
        "    seen.append(counts())\n"
        "module._KEPT = 16\n"
        "print(json.dumps([seen[5], seen[-1]]))"
    )
    book.done(last, 60)
    output = book.output(last)
    text = output.inner_text()
    before, after = json.loads(next(line for line in text.split("\n") if line.startswith("[{")))
    # 14 launches lie between the two; a socket or two of ipykernel's may just be opening or closing.
    assert {name: after[name] - before[name] < 5 for name in before} == dict.fromkeys(before, True), (before, after)
    # Panels of long ago have turned into their summary.
    assert output.locator("details summary", has_text="rank 0, last lines").count() >= 10


def test_a_saved_notebook_holds_the_summary_and_stays_small(book, server):
    book.done(book.cell("def much():\n    for i in range(100000): print('line', i, 'x' * 80)"))
    before = len(json.dumps(book.save()))
    cell = book.cell("run = ice.launch(much, nproc_per_node=2, devices='cpu')\nrun")
    book.word(cell, "SUCCEEDED", 20)
    book.sees(cell, "line 99999")
    saved = book.page.wait_for_function(_HTML, arg=cell, timeout=10_000)
    assert saved
    content = book.save()
    assert len(json.dumps(content)) - before < 100_000
    data = content["cells"][cell]["outputs"][0]["data"]
    assert "SUCCEEDED" in "".join(data["text/html"]) and "line 99999" in "".join(data["text/html"])
    assert "SUCCEEDED" in "".join(data["text/plain"])


def test_notebook_7_shows_it_and_its_buttons_act(lab, server, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    setup = "%load_ext icelaunch_nb\nimport icelaunch_nb as ice, time\ndef talk():\n    for i in range(600): print('line', i); time.sleep(.05)"
    book = lab.Book(server, page, server.notebook([setup]), app="notebook")
    try:
        book.run(0)
        book.done(0, 60)
        cell = book.cell("run = ice.launch(talk, nproc_per_node=2, devices='cpu')\nrun")
        book.sees(cell, "line 5", 20)
        waits = book.cell("try: run.result()\nexcept ice.RunStopped: print('was stopped')")
        book.press(cell, "stop")
        book.word(cell, "STOPPED")
        book.done(waits)
    finally:
        page.close()


_HTML = """(cell) => window.jupyterapp.shell.currentWidget.content.widgets[cell].model.toJSON().outputs[0]?.data['text/html']
  ?.includes?.('SUCCEEDED') || JSON.stringify(window.jupyterapp.shell.currentWidget.content.widgets[cell].model.toJSON().outputs).includes('SUCCEEDED')"""
