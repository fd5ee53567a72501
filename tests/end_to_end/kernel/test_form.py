"""The launch form in a kernel without a browser: its text, its launches, a page's messages."""

from __future__ import annotations

from typing import Any

import pytest

CELL = """
import enum, threading
class Size(enum.Enum):
    SMALL = 1
    LARGE = 2
def lesson(data, epochs: int = 3, *, size: Size = Size.SMALL):
    print("learning", data, epochs, size.name)
    return epochs * 10, ice.get_context().rank
"""


@pytest.fixture(scope="module", autouse=True)
def ready(kernel: Any) -> None:
    kernel.does(CELL)


class Page:
    """Sends a form the messages that its front end would send."""

    def __init__(self, kernel: Any, name: str) -> None:
        self.kernel, self.comm, self.number = kernel, kernel.value(f"{name}._fields.model_id"), 0

    def requests(self, action: str, **rest: Any) -> None:
        self.number += 1
        content = {"action": action, "sender": "a page", "seq": self.number, **rest}
        message = {"comm_id": self.comm, "data": {"method": "custom", "content": content}}
        self.kernel.client.shell_channel.send(self.kernel.client.session.msg("comm_msg", message))


def test_without_widgets_the_form_says_what_it_would_launch(kernel: Any) -> None:
    [shown] = kernel.does("form = ice.LaunchPanel(lesson)\nform").displayed
    assert shown["text/plain"].splitlines() == [
        "LaunchPanel: lesson, 1 rank, cpu",
        "    data      <- needs a value",
        "    epochs  3",
        "    size    SMALL",
    ]
    assert "&lt;- needs a value" in shown["text/html"]
    cell = kernel.run("form.launch()")
    assert (cell.ename, cell.evalue) == ("ConfigError", "data='': needs a value")


def test_what_a_page_types_is_launched(kernel: Any) -> None:
    kernel.does("form = ice.LaunchPanel(lesson)")
    page = Page(kernel, "form")
    page.requests("set", key="argument.data", value="list('ab')")
    page.requests("set", key="argument.size", value="LARGE")
    page.requests("set", key="setting.nproc_per_node", value="2")
    assert (
        kernel.does("print(form.cell)").out
        == "%%icelaunch --nproc-per-node 2\nlesson(data=list('ab'), size=Size.LARGE)\n"
    )
    page.requests("launch")
    kernel.does("until(lambda: form.run and form.run.state.over)")
    # The panels' thread sets it a little later.
    kernel.does("until(lambda: form._fields.run_status['over'])")
    assert kernel.value("form.run.result()") == {0: (30, 0), 1: (30, 1)}
    assert kernel.value("form.run.logs(1)") == "learning ['a', 'b'] 3 LARGE\n"
    assert kernel.value("form._fields.run_status['state'], len(form.children)") == ("SUCCEEDED", 2)


def test_a_second_launch_replaces_the_first(kernel: Any) -> None:
    kernel.does("form = ice.LaunchPanel(lesson)")
    page = Page(kernel, "form")
    page.requests("set", key="argument.data", value="1")
    page.requests("launch")
    kernel.does("until(lambda: form.run and form.run.state.over); first = form.run")
    page.requests("set", key="argument.epochs", value="4")
    page.requests("launch")
    kernel.does("until(lambda: form.run is not first and form.run.state.over)")
    assert kernel.value("first.result()[0][0], form.run.result()[0][0], len(form.children)") == (
        30,
        40,
        2,
    )


def test_a_second_click_while_the_run_lives_starts_nothing(kernel: Any) -> None:
    kernel.does(
        "def waits():\n    while not (HOME / 'go on').exists():\n        time.sleep(0.005)\n"
        "    return 1\nform = ice.LaunchPanel(waits)"
    )
    before = kernel.value("len(ice.runs())")
    page = Page(kernel, "form")
    page.requests("launch")
    page.requests("launch")
    kernel.does("until(lambda: form.run); (HOME / 'go on').touch(); form.run.result(60)")
    assert kernel.value("len(ice.runs())") == before + 1
    page.requests("launch")
    kernel.does(f"until(lambda: len(ice.runs()) == {before + 2})\nform.run.result(60)")


def test_the_error_of_a_launch_is_gone_at_the_next(kernel: Any) -> None:
    kernel.does("lock = threading.Lock()\ndef locked():\n    lock\nform = ice.LaunchPanel(locked)")
    page = Page(kernel, "form")
    page.requests("launch")
    assert "lock (a _thread.lock) can't be pickled" in kernel.value(
        "form._fields.run_status['error']"
    )
    page.requests("set", key="setting.nproc_per_node", value="0")
    page.requests("launch")
    assert kernel.value("form._fields.run_status['error'], form._fields.form_state['invalid']") == (
        "",
        ["setting.nproc_per_node"],
    )
    page.requests("reset")


def test_a_run_of_a_form_can_restart_its_ranks(kernel: Any) -> None:
    kernel.does(
        "def second_time():\n    if ice.get_context().restart_count < 1:\n"
        "        raise OSError('once')\n    return 'well'"
    )
    kernel.does("form = ice.LaunchPanel(second_time)")
    page = Page(kernel, "form")
    page.requests("set", key="setting.max_restarts", value="1")
    page.requests("launch")
    kernel.does("until(lambda: form._fields.run_status.get('over'))")
    assert kernel.value(
        "form.run.result(), form.run.restarts, form._fields.run_status['state']"
    ) == ({0: "well"}, 1, "SUCCEEDED")


def test_a_cell_that_runs_again_closes_the_form_that_it_made_before(kernel: Any) -> None:
    # Front ends send a cell's id with every execution.
    again = (
        "get_ipython().kernel.get_parent()['metadata']['cellId'] = 'c1'\n"
        "form, other = ice.LaunchPanel(lesson), ice.LaunchPanel(lesson)"
    )
    count = (
        "import ipywidgets; len(ipywidgets.widgets.widget._instances), "
        "len(get_ipython().events.callbacks['post_run_cell'])"
    )
    kernel.does(again)
    kernel.does("first = form")
    before = kernel.value(count)
    kernel.does(again)
    assert kernel.value(count) == before
    assert kernel.value("first.comm is None, form.comm is None, other.comm is None") == (
        True,
        False,
        False,
    )
    kernel.does(again.replace("c1", "c2"))
    assert kernel.value(f"{count}") != before
    kernel.does("form.close(), other.close()")


@pytest.mark.parametrize(
    ("typed", "field", "message"),
    [
        ({"argument.data": "threading.Lock()"}, "argument.data", "can't be carried to the ranks"),
        ({"argument.data": "1 // 0"}, "argument.data", "ZeroDivisionError"),
        ({"argument.data": "1", "setting.devices": "cuda"}, "setting.devices", "no GPU is visible"),
        (
            {"argument.data": "1", "setting.log_dir": "/proc/no"},
            "setting.log_dir",
            "a run's directory can't be made there",
        ),
    ],
)
def test_a_launch_that_fails_is_shown_at_its_field_and_starts_nothing(
    kernel: Any, typed: dict[str, str], field: str, message: str
) -> None:
    if "devices" in field and kernel.value(
        "from icelaunch_nb.client.devices import count_gpus; count_gpus(os.environ)"
    ):
        pytest.skip("there are GPUs here")
    before = kernel.value("len(ice.runs())")
    kernel.does("form = ice.LaunchPanel(lesson)")
    page = Page(kernel, "form")
    page.requests("reset")
    for key, value in typed.items():
        page.requests("set", key=key, value=value)
    page.requests("launch")
    fields = (
        "[*form._fields.form_state['arguments'], *form._fields.form_state['main'], "
        "*form._fields.form_state['advanced']]"
    )
    errors = kernel.value(f"{{one['key']: one['error'] for one in {fields} if one['error']}}")
    assert list(errors) == [field] and message in errors[field]
    assert kernel.value("len(ice.runs()), form.run") == (before, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"action": None},
        {"action": "set"},
        {"action": "set", "key": None, "value": None},
        {"action": "set", "key": ["a"], "value": {"b": 1}},
        {"action": "explode"},
        {"action": "set", "key": "setting.nproc_per_node", "value": "9" * 5000},
        {"action": "set", "key": "argument.data", "value": "(" * 5000},
    ],
)
def test_a_form_stays_usable_whatever_a_page_sends(kernel: Any, wrong: dict[str, Any]) -> None:
    kernel.does("form = ice.LaunchPanel(lesson)")
    page = Page(kernel, "form")
    page.requests(wrong.pop("action", "nothing"), **wrong)
    page.requests("reset")
    page.requests("set", key="argument.data", value="5")
    assert kernel.does("print(form.cell)").out == "%%icelaunch\nlesson(data=5)\n"


def test_settings_outlive_a_restart_and_belong_to_one_notebook(bare_kernel: Any) -> None:
    kernel = bare_kernel
    name = "os.environ['JPY_SESSION_NAME'] = '/home/me/lessons.ipynb'"
    start = f"import os\n{name}\nimport icelaunch_nb as ice\n{CELL}\nform = ice.LaunchPanel(lesson)"
    kernel.does(start)
    page = Page(kernel, "form")
    page.requests("set", key="argument.epochs", value="7")
    page.requests("set", key="setting.max_restarts", value="2")
    assert (
        kernel.does("print(form.cell)").out
        == "%%icelaunch --max-restarts 2\nlesson(data=..., epochs=7)\n"
    )
    kernel.restart()
    kernel.does(start)
    assert (
        kernel.does("print(form.cell)").out
        == "%%icelaunch --max-restarts 2\nlesson(data=..., epochs=7)\n"
    )
    kernel.does(start.replace("lessons", "others"))
    assert kernel.does("print(form.cell)").out == "%%icelaunch\nlesson(data=...)\n"


def test_a_closed_form_leaves_nothing_behind(kernel: Any) -> None:
    count = (
        "import gc, ipywidgets; gc.collect(); len(ipywidgets.widgets.widget._instances), "
        "len(get_ipython().events.callbacks['post_run_cell'])"
    )
    before = kernel.value(count)
    kernel.does("for _ in range(5): ice.LaunchPanel(lesson).close()")
    assert kernel.value(count) == before
    wrong = kernel.run("ice.LaunchPanel('train.py')")
    assert (wrong.ename, wrong.err) == (
        "ConfigError",
        "",
    ) and "fn='train.py': must be a function" in wrong.evalue


def test_an_import_of_the_package_imports_no_widgets(bare_kernel: Any) -> None:
    assert bare_kernel.value(
        "import sys, icelaunch_nb; 'ipywidgets' in sys.modules, 'anywidget' in sys.modules"
    ) == (False, False)
    bare_kernel.does("icelaunch_nb.LaunchPanel")
