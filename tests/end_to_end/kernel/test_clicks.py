"""Clicks on a panel while a cell waits for its run, with ipykernel 6: the cell takes them, and everything else keeps its turn."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def six(kernel: Any) -> Any:
    if kernel.value("import ipykernel; ipykernel.version_info[0]") > 6:
        pytest.skip(
            "ipykernel 7 has subshells for this, which front ends ask for: tests/end_to_end/browser; `pytest --ipykernel 6` runs it"
        )
    return kernel


def send(kernel: Any, comm_id: str, content: dict[str, Any]) -> None:
    message = {"comm_id": comm_id, "data": {"method": "custom", "content": content}}
    kernel.client.shell_channel.send(kernel.client.session.msg("comm_msg", message))


@pytest.mark.parametrize("waiting", ["run.result()", "await run", "run.wait()"])
def test_a_click_acts_while_a_cell_waits_and_nothing_else_is_overtaken(
    six: Any, waiting: str
) -> None:
    six.does(
        "import ipywidgets\norder = []\nother = ipywidgets.Button()\nother.on_msg(lambda *_: order.append('their widget'))\n"
        "def long():\n    for step in ice.get_context().steps(range(6000)):\n        time.sleep(0.01)\n    return 'stopped at a step'\n"
        "run = launch(long)\npanel = run.panel()"
    )
    panel, other = six.value("panel.model_id, other.model_id")
    six.does("until(lambda: run.state == 'RUNNING' and run.pids)")
    waits = six.start(
        f"print('waits', flush=True)\nvalue = {waiting}\norder.append('the waiting cell')\nprint('after', flush=True)"
    )
    waits.wait_for("waits")
    first, second = six.start("order.append('first')"), six.start("order.append('second')")
    send(six, other, {})
    send(six, panel, {"do": "stop", "id": "one"})
    assert waits.wait().out.endswith("after\n"), (
        "what the cell prints after the click is still its own"
    )
    assert not waits.ename
    first.wait(), second.wait()
    assert six.value("run.state.value, order") == (
        "STOPPED",
        ["the waiting cell", "first", "second", "their widget"],
    )


def test_an_interrupt_meanwhile_loses_no_cell(six: Any) -> None:
    six.does(
        "run = launch(lambda: print('up', flush=True) or time.sleep(600), ranks=1)\npanel = run.panel()\nuntil(lambda: run.pids)"
    )
    waits = six.start("run.result()")
    waits.wait_for("up")  # printed by the cell once it waits
    queued = six.start("print('still here')")
    six.interrupt()
    assert waits.wait().ename == "KeyboardInterrupt"
    # ipykernel itself answers what was queued behind a cell that failed.
    queued.wait()
    assert six.value("run.state.value") == "STOPPED"
