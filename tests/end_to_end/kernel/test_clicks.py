"""Clicks on a panel while a cell waits for its run, with ipykernel 6.

The waiting cell carries them out, and every other message keeps its turn. Messages that no panel
sends change nothing.
"""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def ipykernel_6(kernel: Any) -> Any:
    """The kernel, where it is of ipykernel 6."""
    if kernel.value("import ipykernel; ipykernel.version_info[0]") > 6:
        pytest.skip(
            "ipykernel 7 has subshells for this, which front ends ask for: "
            "tests/end_to_end/browser; `pytest --ipykernel 6` runs it"
        )
    return kernel


def send(kernel: Any, comm_id: str, content: dict[str, Any]) -> None:
    message = {"comm_id": comm_id, "data": {"method": "custom", "content": content}}
    kernel.client.shell_channel.send(kernel.client.session.msg("comm_msg", message))


@pytest.mark.parametrize("waiting", ["run.result()", "await run", "run.wait()"])
def test_a_click_acts_while_a_cell_waits_and_nothing_else_is_overtaken(
    ipykernel_6: Any, waiting: str
) -> None:
    ipykernel_6.does(
        "import ipywidgets\norder = []\nother = ipywidgets.Button()\n"
        "other.on_msg(lambda *_: order.append('their widget'))\n"
        "def long():\n    for step in ice.get_context().steps(range(6000)):\n"
        "        time.sleep(0.01)\n    return 'stopped at a step'\n"
        "run = launch(long)\npanel = run.panel()"
    )
    panel, other = ipykernel_6.value("panel.model_id, other.model_id")
    ipykernel_6.does("until(lambda: run.state == 'RUNNING' and run.pids)")
    waits = ipykernel_6.start(
        f"print('waits', flush=True)\nvalue = {waiting}\norder.append('the waiting cell')\n"
        f"print('after', flush=True)"
    )
    waits.wait_for("waits")
    first, second = (
        ipykernel_6.start("order.append('first')"),
        ipykernel_6.start("order.append('second')"),
    )
    send(ipykernel_6, other, {})
    send(ipykernel_6, panel, {"action": "stop", "id": "one"})
    assert waits.wait().out.endswith("after\n"), (
        "what the cell prints after the click is still its own"
    )
    assert not waits.ename
    first.wait(), second.wait()
    assert ipykernel_6.value("run.state.value, order") == (
        "STOPPED",
        ["the waiting cell", "first", "second", "their widget"],
    )


def test_an_interrupt_meanwhile_loses_no_cell(ipykernel_6: Any) -> None:
    ipykernel_6.does(
        "run = launch(lambda: print('up', flush=True) or time.sleep(600), ranks=1)\n"
        "panel = run.panel()\nuntil(lambda: run.pids)"
    )
    waits = ipykernel_6.start("run.result()")
    waits.wait_for("up")  # the cell prints it once it waits
    queued = ipykernel_6.start("print('still here')")
    ipykernel_6.interrupt()
    assert waits.wait().ename == "KeyboardInterrupt"
    # ipykernel itself answers what was queued behind a cell that failed.
    queued.wait()
    assert ipykernel_6.value("run.state.value") == "STOPPED"


def test_messages_that_no_panel_sends_change_nothing(kernel: Any) -> None:
    kernel.does(
        "from icelaunch_nb.notebook.panel.panel_thread import panel_thread\n"
        "run = launch(lambda: time.sleep(600), ranks=1)\npanel = run.panel()\n"
        "form = ice.LaunchPanel(lambda n: n)\n"
        "before = panel.mount_class, panel.version, form._fields.form_state\n"
        "until(lambda: run.state == 'RUNNING')"
    )
    custom = [
        None,
        1,
        "stop",
        [],
        ["stop"],
        [{"action": "stop"}],
        {},
        {"action": ["stop"]},
        {"action": {"action": "stop"}},
        {"action": "load_older", "before": 7},
        {"action": "search"},
    ]
    custom += [
        {"action": "set", "key": key, "value": [7]}
        for key in (None, 1, "setting", "setting.no such", ["x"])
    ]
    data = [
        None,
        1,
        "text",
        [],
        {},
        {"method": None},
        {"method": ["custom"]},
        {"method": "custom"},
        {"method": "update"},
        {"method": "update", "state": 7},
    ]
    states = [
        {name: value, "mount_class": "<img>"}
        for name in ("run_state", "form_state", "run_status")
        for value in (7, {}, [])
    ]
    data += [{"method": "update", "state": state, "buffer_paths": []} for state in states]
    session, shell = kernel.client.session, kernel.client.shell_channel
    ids = kernel.value("panel.model_id, form._fields.model_id")
    for comm_id in ids:
        for one in [*data, *({"method": "custom", "content": content} for content in custom)]:
            shell.send(session.msg("comm_msg", {"comm_id": comm_id, "data": one}))
    send(kernel, ids[0], {"action": "stop", "id": "one"})
    kernel.does("until(lambda: run.state.over)")
    assert kernel.value("run.state.value, panel_thread._retry_at") == ("STOPPED", {})
    assert kernel.value(
        "before[:2] == (panel.mount_class, panel.version) and form.run is None and "
        "before[2]['python'] == form._fields.form_state['python']"
    )
    kernel.does("form.close(); del run, panel, form")
