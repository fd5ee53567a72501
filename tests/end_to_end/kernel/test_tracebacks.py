"""An error shows the user's own lines first. The cell's source is there for `inspect` and torch."""

from __future__ import annotations

import re
from typing import Any

import pytest

BOOM = """def deep(x):
    y = x + 1
    raise ValueError(f"boom {y}")  # some comment

def train(x):
    return deep(x)
"""


def test_the_error_ends_with_the_cells_own_lines(kernel: Any) -> None:
    cell = kernel.does(BOOM)
    error = kernel.run("run = launch(train, 1)\nrun.result()").error
    assert error.splitlines()[-1] == "ValueError: boom 2"
    assert f"Cell In[{cell.number}], line 3, in deep" in error
    assert re.search(r'----> 3 .*raise ValueError\(f"boom \{y\}"\)  # some comment', error)
    assert f"Cell In[{cell.number}], line 6, in train" in error
    assert "/torch/" not in error and "elastic" not in error
    assert "/icelaunch_nb/" not in error and "multiprocessing" not in error
    assert "<frozen" not in error and "ipykernel_" not in error


def test_the_error_says_first_who_failed_and_where_the_logs_are(kernel: Any) -> None:
    kernel.does(BOOM)
    # On a busy machine a rank may raise only after the others were ended for the first one.
    for _ in range(10):
        cell = kernel.run("run = launch(train, 1, ranks=3)\nrun.result()")
        assert cell.ename == "RunFailed"
        if kernel.value("len(run.failures)") == 3:
            break
    assert re.match(r"RunFailed: rank \d of 3 failed, ranks \d, \d the same way\n", cell.error)
    assert kernel.value("run.log_dir") in cell.error
    assert cell.error.count("ValueError: boom 2") == 1, "equal failures are shown once"


def test_failures_has_every_rank_that_failed(kernel: Any) -> None:
    kernel.does(
        "def mixed():\n    rank = ice.get_context().rank\n    time.sleep(rank * 0.5)\n"
        "    if rank == 0:\n        raise KeyError('first')\n"
        "    while True:\n        time.sleep(0.05)"
    )
    kernel.does("run = launch(mixed, ranks=2); run.wait()")
    assert kernel.value("[(f.rank, f.kind, f.type_name, f.attempt) for f in run.failures]") == [
        (0, "raised", "KeyError", 0)
    ]
    kernel.does(
        "def all_of_them():\n    import torch.distributed as dist\n"
        "    dist.init_process_group('gloo')\n    dist.barrier()\n"
        "    raise OSError(ice.get_context().rank)"
    )
    # On a busy machine a rank may raise only after the others were ended for the first one.
    for _ in range(10):
        kernel.does("run = launch(all_of_them, ranks=3); run.wait()")
        if kernel.value("len(run.failures)") == 3:
            break
    assert kernel.value("sorted((f.rank, f.title) for f in run.failures)") == [
        (r, f"OSError: {r}") for r in range(3)
    ]
    assert (
        kernel.value("[f.time for f in run.failures] == sorted(f.time for f in run.failures)")
        is True
    )


@pytest.mark.parametrize(
    ("definition", "expression", "what"),
    [
        ("", "ZeroDivisionError('x')", "type(c) is ZeroDivisionError and c.args == ('x',)"),
        ("class Mine(Exception): pass", "Mine('x', 2)", "type(c) is Mine and c.args == ('x', 2)"),
        (
            "class Coded(Exception):\n    def __init__(self, code):\n"
            "        super().__init__(f'code {code}')\n        self.code = code",
            "Coded(7)",
            "c is None or (type(c) is Coded and c.code == 7)",
        ),
        (
            "class WithData(Exception): pass",
            "WithData({'lock': __import__('threading').Lock()})",
            "c is None",
        ),
        ("", "ExceptionGroup('several', [ValueError(1), KeyError(2)])", "len(c.exceptions) == 2"),
        ("", "KeyboardInterrupt()", "type(c) is KeyboardInterrupt"),
        ("", "SystemExit(0)", "type(c) is SystemExit"),
    ],
)
def test_the_original_exception_is_the_cause(
    kernel: Any, definition: str, expression: str, what: str
) -> None:
    kernel.does(f"{definition}\ndef fail():\n    raise {expression}")
    kernel.does(
        "error = None\ntry:\n    results(fail)\nexcept ice.RunFailed as e:\n    error = e\n"
        "c = error.__cause__"
    )
    assert kernel.value(what), kernel.run("error, c").value


def test_chained_exceptions_are_shown_in_order(kernel: Any) -> None:
    kernel.does(
        "def chained():\n    try:\n        {}['missing']\n    except KeyError as e:\n"
        "        raise RuntimeError('no such thing') from e"
    )
    error = kernel.run("results(chained)").error
    assert (
        error.index("KeyError: 'missing'")
        < error.index("direct cause")
        < error.index("RuntimeError: no such thing")
    )
    assert error.splitlines()[-1] == "RuntimeError: no such thing"


def test_an_error_within_a_library_shows_the_way_there(kernel: Any) -> None:
    cell = kernel.does("import json\ndef parse():\n    return json.loads('{')  # here")
    error = kernel.run("results(parse)").error
    assert f"Cell In[{cell.number}], line 3, in parse" in error and "# here" in error
    assert "JSONDecodeError" in error.splitlines()[-1]


def test_an_error_within_torch_ends_at_the_users_line(kernel: Any) -> None:
    cell = kernel.does(
        "import torch\ndef shapes():\n    return torch.nn.Linear(2, 2)(torch.ones(3))  # wrong"
    )
    error = kernel.run("results(shapes)").error
    assert f"Cell In[{cell.number}], line 3, in shapes" in error and "# wrong" in error
    assert "/torch/" not in error
    assert error.splitlines()[-1].startswith("RuntimeError: ")


def test_two_cells_that_define_the_same_name_keep_their_numbers(kernel: Any) -> None:
    first = kernel.does("def part():\n    raise ValueError('in part')  # the first cell")
    second = kernel.does("def whole():\n    part()  # the second cell")
    error = kernel.run("results(whole)").error
    assert f"Cell In[{first.number}], line 2, in part" in error and "# the first cell" in error
    assert f"Cell In[{second.number}], line 2, in whole" in error and "# the second cell" in error


def test_a_result_that_cannot_be_pickled_is_named_and_the_others_are_kept(kernel: Any) -> None:
    kernel.does(
        "import threading\nclass Holder:\n    pass\n"
        "def give():\n    if ice.get_context().rank == 0:\n        return 'fine'\n"
        "    h = Holder(); h.parts = {'lock': threading.Lock()}\n    return h"
    )
    cell = kernel.run("run = launch(give)\nrun.result()")
    assert "rank 1's result.parts['lock'] (a _thread.lock)" in cell.error
    kernel.does("try:\n    run.result()\nexcept ice.RunFailed as e:\n    kept = e.results")
    assert kernel.value("kept") == {0: "fine"}


def test_getsource_finds_the_cell_in_the_rank(kernel: Any) -> None:
    source = (
        "def sourced(x):\n    # a comment of one's own\n    import inspect\n"
        "    return inspect.getsource(sourced)\n"
    )
    kernel.does(source)
    assert kernel.value("results(sourced, 1)") == {0: source, 1: source}


def test_getsource_finds_methods_and_lambdas(kernel: Any) -> None:
    kernel.does(
        "import inspect\nclass Net:\n    def forward(self, x):\n        return x  # as it is\n"
        "double = lambda x: 2 * x\ndef use():\n"
        "    return inspect.getsource(Net.forward), inspect.getsource(double)"
    )
    assert kernel.value("results(use, ranks=1)[0]") == (
        "    def forward(self, x):\n        return x  # as it is\n",
        "double = lambda x: 2 * x\n",
    )


def test_torch_jit_script_of_a_cells_function_and_module(kernel: Any) -> None:
    kernel.does(
        "import torch\ndef twice(x: torch.Tensor) -> torch.Tensor:\n    return x * 2\n"
        "class Net(torch.nn.Module):\n    def forward(self, x: torch.Tensor) -> torch.Tensor:\n"
        "        return x + 1\n"
        "def use():\n    return torch.jit.script(twice)(torch.ones(1)).item(), "
        "torch.jit.script(Net())(torch.ones(1)).item()"
    )
    assert kernel.value("results(use, ranks=1)") == {0: (2.0, 2.0)}


def test_torch_compile_of_a_cells_function_and_module(kernel: Any) -> None:
    kernel.does(
        "import torch\ndef twice(x):\n    return x * 2\n"
        "class Net(torch.nn.Module):\n    def forward(self, x):\n        return twice(x) + 1\n"
        "def use():\n    compiled = torch.compile(twice, backend='eager', fullgraph=True)\n"
        "    net = torch.compile(Net(), backend='eager', fullgraph=True)\n"
        "    return compiled(torch.ones(1)).item(), net(torch.ones(1)).item()"
    )
    assert kernel.value("results(use, ranks=1)", 120) == {0: (2.0, 3.0)}


def test_torchs_log_does_not_get_into_the_notebook(kernel: Any) -> None:
    cell = kernel.does("results(lambda: 1)")
    assert (cell.out, cell.err) == ("", "")
    kernel.does(BOOM)
    cell = kernel.run("results(train, 1)")
    assert (cell.out, cell.err) == ("", "")


def test_a_forked_childs_traceback_has_the_cells_names_and_lines(kernel: Any) -> None:
    cell = kernel.does(
        # An import of torch starts threads, and since Python 3.12 a fork beside threads warns.
        "def forks():\n    import os, warnings; "
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "    if (child := os.fork()) == 0:\n        raise ValueError('of the child')  # its line\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])"
    )
    kernel.does("run = launch(forks, ranks=1); run.wait()")
    assert kernel.value("run.result()") == {0: 1}
    stderr = kernel.value("run.logs(0, stream='stderr')")
    assert stderr.startswith("Traceback (most recent call last):\n") and stderr.endswith(
        "\nValueError: of the child\n"
    )
    assert (
        f"  Cell In[{cell.number}], line 4, in forks\n"
        f"    raise ValueError('of the child')  # its line\n" in stderr
    )
    for name in ("/icelaunch_nb/", "multiprocessing", "ipykernel_"):
        assert name not in stderr


def test_a_librarys_handler_of_sigusr1_costs_no_run(kernel: Any) -> None:
    kernel.does(
        "import signal\ndef quiet():\n    old = signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "    signal.signal(signal.SIGUSR1, old)\n"
        "    ice.get_context().events.resume.wait()\n    return 'whole'"
    )
    kernel.does(
        "run = launch(quiet, ranks=2, hang_after=0.5)\nwhile len(run.silent) < 2: time.sleep(0.01)"
    )
    assert "in quiet" in kernel.value("repr(run.stacks())")
    kernel.does("run.events.resume.set()")
    assert kernel.value("run.result()") == {0: "whole", 1: "whole"}
