"""``%%icelaunch`` in a real kernel, with real ranks."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest

import icelaunch_nb as ice


@pytest.fixture
def magic(kernel: Any) -> Any:
    """Runs a ``%%icelaunch`` cell to its end."""
    return lambda line, body: kernel.run(f"%%icelaunch {line}\n{body}")


def started(kernel: Any) -> int:
    """The number of runs so far."""
    return kernel.value("len(ice.runs())")


# What a cell does.


def test_the_first_cell_of_a_notebook_can_sum_over_ranks(kernel: Any, magic: Any) -> None:
    cell = magic(
        "--nproc-per-node 4 --max-restarts 1 --out results",
        "import torch.distributed as dist\ndist.init_process_group()\n"
        "total = torch.tensor(float(rank)); dist.all_reduce(total)\ntotal.item()",
    )
    assert cell.literal == dict.fromkeys(range(4), 6.0)
    assert (cell.out, cell.err) == ("", "")
    assert kernel.value("_, results") == (dict.fromkeys(range(4), 6.0),) * 2
    assert kernel.value("'total' in globals(), 'rank' in globals(), 'torch' in globals()") == (
        False,
        False,
        False,
    )


def test_a_body_has_the_notebooks_names_and_rank_world_size_device_and_ctx(
    kernel: Any, magic: Any
) -> None:
    kernel.does(
        "factor = 10\nclass Scaler:\n    def __init__(self, by): self.by = by\n"
        "    def __call__(self, x): return x * self.by\n"
        "scale = Scaler(factor)\ndef helper(x):\n    return scale(x) + offset\noffset = 1"
    )
    cell = magic(
        "-n 2",
        "factor += rank\nhelper(rank), factor, local_rank, world_size, str(device), "
        "ctx.world_size, type(scale) is Scaler",
    )
    assert cell.literal == {r: (r * 10 + 1, 10 + r, r, 2, "cpu", 2, True) for r in range(2)}
    assert kernel.value("factor") == 10, "what ranks assign stays in the ranks"


def test_what_ranks_print_is_shown_and_a_value_of_none_is_not(kernel: Any, magic: Any) -> None:
    cell = magic("-n 2 --out said", "print('hello', rank)")
    assert sorted(cell.out.splitlines()) == ["[default_role0]:hello 0", "[default_role1]:hello 1"]
    assert cell.value == ""
    assert kernel.value("said") == {0: None, 1: None}


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("import asyncio\nawait asyncio.sleep(0, rank)", {0: 0, 1: 1}),
        ("n = 0\ndef up():\n    global n\n    n += 1\n    return n\nup(); up()", {0: 2, 1: 2}),
        ('"""Only words."""', {0: "Only words.", 1: "Only words."}),
        ("# NBVAL_IGNORE_OUTPUT\nrank * 2", {0: 0, 1: 2}),
        (
            "class A:\n    def f(self):\n        return [x for x in range(self.n)]\nclass B(A):\n"
            "    n = 2\n"
            "def make():\n    def inner():\n        return B().f()\n    return inner\nmake()()",
            {0: [0, 1], 1: [0, 1]},
        ),
        (
            "import pickle\nclass A:\n    pass\ntype(pickle.loads(pickle.dumps(A()))) is A",
            {0: True, 1: True},
        ),
        ("    x = rank\n    if x:\n        x += 1\n    x", {0: 0, 1: 2}),
        ("'{rank} $rank'", {0: "{rank} $rank", 1: "{rank} $rank"}),
        (
            "import inspect\ndef f():\n    # mine\n    return 1\ninspect.getsource(f)",
            dict.fromkeys(range(2), "def f():\n    # mine\n    return 1\n"),
        ),
    ],
    ids=[
        "await",
        "global",
        "a docstring",
        "a comment for nbval",
        "classes and functions",
        "pickled by name",
        "indented",
        "braces",
        "getsource",
    ],
)
def test_bodies(magic: Any, body: str, value: Any) -> None:
    assert magic("-n 2", body).literal == value


def test_results_can_be_of_a_class_that_the_body_defines(kernel: Any, magic: Any) -> None:
    magic("-n 2 --out made", "class Point:\n    def __init__(self, x): self.x = x\nPoint(rank)")
    assert kernel.value("[made[r].x for r in made], {type(p).__name__ for p in made.values()}") == (
        [0, 1],
        {"Point"},
    )


def test_a_semicolon_hides_the_value(kernel: Any, magic: Any) -> None:
    assert magic("-n 1 --out quiet", "1 + 1;").value == ""
    assert kernel.value("quiet") == {0: 2}
    assert magic("-n 1 --no-wait --out quiet", "x = rank + 1;").value == ""
    assert kernel.value("quiet.result()") == {0: None}


def test_the_notebooks_values_expand_on_the_line(kernel: Any, magic: Any) -> None:
    kernel.does("n = 2\nname = 'made_up'")
    assert magic("-n {n} --out $name", "1").literal == {0: 1, 1: 1}
    assert kernel.value("made_up") == {0: 1, 1: 1}
    assert magic("-n {n} --env A=$$n{{}}", "import os\nos.environ['A']").literal == {
        0: "$n{}",
        1: "$n{}",
    }


def test_a_value_with_spaces_and_quotes_stays_one(kernel: Any, magic: Any) -> None:
    kernel.does("path, said, usual = HOME / 'my logs', 'it\\'s \"so\"', '-n 2 --no-panel'")
    assert magic(
        "{usual} --log-dir {path} --env A={said} --out kept", "import os\nos.environ['A']"
    ).literal == dict.fromkeys(range(2), 'it\'s "so"')
    assert kernel.value("[one.name for one in path.iterdir()] != []") is True


def test_defaults_that_were_shown_can_be_pasted(kernel: Any, magic: Any) -> None:
    try:
        shown = kernel.does("%icelaunch defaults -n 1 --env A=$$HOME/{{x}} --no-wait --detach").out
        line = shown.removeprefix("defaults: ").strip()
        assert kernel.does("%icelaunch defaults --reset").out == "defaults: none\n"
        assert kernel.does(f"%icelaunch defaults {line}").out == shown
        assert magic("--wait --no-detach", "import os\nos.environ['A']").literal == {0: "$HOME/{x}"}
    finally:
        kernel.does("%icelaunch defaults --reset")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-n {nowhere}", "NameError: name 'nowhere' is not defined"),
        ("-n $nowhere", "name 'nowhere' is not defined"),
        ("--env A={1/0}", "ZeroDivisionError"),
        ("--env A=$HOMELESS", "name 'HOMELESS' is not defined"),
        ("--env A={}", "{{, }} and $$ stand for themselves"),
    ],
)
def test_what_cannot_be_expanded_is_named(kernel: Any, magic: Any, line: str, message: str) -> None:
    before = started(kernel)
    cell = magic(line, "1")
    assert cell.ename == "ConfigError" and message in cell.error
    assert started(kernel) == before


def test_variables_for_the_ranks_alone(kernel: Any, magic: Any) -> None:
    cell = magic(
        "-n 1 --env ICE_A='x y' --env ICE_B=", "import os\nos.environ['ICE_A'], os.environ['ICE_B']"
    )
    assert cell.literal == {0: ("x y", "")}
    assert kernel.value("'ICE_A' in os.environ") is False


def test_a_variable_that_torch_reads_when_it_is_imported(magic: Any) -> None:
    assert magic("-n 1 --env OMP_NUM_THREADS=1", "torch.get_num_threads()").literal == {0: 1}


def test_restarts_are_those_of_launch(magic: Any) -> None:
    cell = magic(
        "-n 2 --max-restarts 2",
        "if ctx.restart_count < 1:\n    raise OSError('once')\nctx.restart_count",
    )
    assert cell.literal == {0: 1, 1: 1}


def test_help_starts_nothing(kernel: Any, magic: Any) -> None:
    before = started(kernel)
    without_body = (kernel.run("%%icelaunch --help"), kernel.run("\n%%icelaunch -h\n\n"))
    lines = [kernel.run(f"%icelaunch{rest}") for rest in ("", " --help", " help", " help stop")]
    for cell in (magic("--help", "1"), magic("-n 2 -h", "1"), *lines, *without_body):
        assert (
            not cell.ename
            and "--nproc-per-node N|auto" in cell.out
            and "How often the ranks may be restarted" in cell.out
        )
    assert started(kernel) == before


def test_the_option_no_panel_shows_no_panel(kernel: Any, magic: Any) -> None:
    [shown] = magic("-n 1", "rank").displayed
    assert "icelaunch-mount" in shown["text/html"]
    plain = magic("-n 1 --no-panel", "print('plainly')\nrank")
    assert plain.displayed == [] and plain.out == "[default_role0]:plainly\n"
    [shown] = magic("-n 1 --no-panel --no-wait", "rank").displayed
    assert list(shown) == ["text/plain"] and shown["text/plain"].startswith("<Run ")
    assert kernel.value("_.result()") == {0: 0}


# Errors.


@pytest.mark.parametrize("cell", ["%%icelaunch", "%%icelaunch -n 2\n", "%%icelaunch -n 2\n  \n\n"])
def test_a_cell_without_a_body_is_refused(kernel: Any, cell: str) -> None:
    before = started(kernel)
    ended = kernel.run(cell)
    assert ended.ename == "IcelaunchError" and "on every rank, and nothing does" in ended.error
    assert started(kernel) == before


@pytest.mark.parametrize(
    ("line", "body", "ename", "message"),
    [
        (
            "-n 2",
            "x = 1\ndef f():\n    return undefined_name",
            "NameError",
            "name 'undefined_name' is not defined",
        ),
        ("-n 2", "x = 1\ny = 2\n!ls -l", "IcelaunchError", "!ls -l: shell escapes"),
        ("-n 2", "x = 1\ny = 2\n%time sum(range(9))", "IcelaunchError", "%time: magics"),
        ("-n 2", "x = 1\ny = 2\nreturn y", "SyntaxError", "'return' outside function"),
        ("-n 2", "x = 1\ny = 2\nx = = 1", "SyntaxError", "invalid syntax"),
        ("-n 2", "x = 1\ny = 2\nyield x", "SyntaxError", "'yield' outside function"),
        ("-n 2", "x = 1\ny = 2\n  x", "IndentationError", "unexpected indent"),
    ],
)
def test_a_wrong_body_is_shown_at_its_line_before_anything_starts(
    kernel: Any, magic: Any, line: str, body: str, ename: str, message: str
) -> None:
    before = started(kernel)
    cell = magic(line, body)
    assert cell.ename == ename
    assert message in cell.error
    assert f"Cell In[{cell.number}], line 4" in cell.error
    assert body.splitlines()[2].strip() in cell.error
    assert (
        "SyntaxError" in ename
        or "Indentation" in ename
        or ("icelaunch_nb" not in cell.error and "interactiveshell" not in cell.error)
    )
    assert started(kernel) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--nproc-pre-node 2", "did you mean '--nproc-per-node'?"),
        ("--no-wiat", "did you mean '--no-wait'?"),
        ("-n two", "--nproc-per-node='two': must be an int"),
        ("-n 0", "nproc_per_node=0: must be at least 1"),
        ("--start-method forkserve", "did you mean 'forkserver'?"),
        ("--devices gpu", "devices='gpu': must be"),
        ("stray", "'stray'"),
    ],
)
def test_a_wrong_option_is_one_line(kernel: Any, magic: Any, line: str, message: str) -> None:
    before = started(kernel)
    cell = magic(line, "1")
    assert cell.ename == "ConfigError" and message in cell.error
    assert len(cell.error.strip().splitlines()) == 1, "no frames of the magic"
    assert started(kernel) == before


def test_an_error_in_a_rank_has_the_cells_lines(kernel: Any, magic: Any) -> None:
    cell = magic("-n 2", "def f(x):\n    return 1 / x  # by what\n\nif rank >= 0:\n    f(0)")
    assert cell.ename == "RunFailed"
    assert f"Cell In[{cell.number}], line 6\n" in cell.error and "----> 6     f(0)" in cell.error
    assert (
        f"Cell In[{cell.number}], line 3, in f\n" in cell.error
        and "----> 3     return 1 / x  # by what" in cell.error
    )
    assert cell.error.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "icelaunch_nb/notebook" not in cell.error
    assert kernel.value("1 + 1") == 2


def test_an_error_after_an_await_has_the_cells_lines_too(magic: Any) -> None:
    cell = magic("-n 2", "import asyncio\nawait asyncio.sleep(0)\nraise LookupError('late')")
    assert f"Cell In[{cell.number}], line 4\n" in cell.error and "asyncio/" not in cell.error
    assert cell.error.splitlines()[-1] == "LookupError: late"


def test_an_error_in_the_notebooks_function_is_that_cells(kernel: Any, magic: Any) -> None:
    first = kernel.does("def faulty():\n    raise KeyError('from afar')")
    cell = magic("-n 1", "faulty()")
    assert (
        f"Cell In[{first.number}], line 2, in faulty" in cell.error
        and f"Cell In[{cell.number}], line 2\n" in cell.error
    )


def test_what_cannot_be_pickled_is_named(kernel: Any, magic: Any) -> None:
    kernel.does("import threading\nbusy = {'lock': threading.Lock()}")
    cell = magic("-n 1", "busy")
    assert cell.error.startswith(
        f"PackingError: Cell In[{cell.number}] → busy['lock'] (a _thread.lock) can't be pickled"
    )
    assert magic("-n 1", "busy = 1\nbusy").literal == {0: 1}, (
        "what the body defines itself is not taken along"
    )
    assert magic("-n 1", "def f():\n    return busy\nbusy = 3\nf()").literal == {0: 3}, (
        "it may bind it before it reads it"
    )
    assert magic("-n 1", "busy = [busy]\nbusy").ename == "PackingError"


def test_open_in_a_body_is_pythons_own(kernel: Any, magic: Any) -> None:
    assert "IPython" in kernel.value("open.__code__.co_filename")
    cell = magic("-n 1", "open('/nowhere/at all')")
    assert (
        "FileNotFoundError" in cell.error
        and "IPython" not in cell.error
        and "interactiveshell" not in cell.error
    )


def test_interrupt_stops_the_run(kernel: Any) -> None:
    cell = kernel.start("%%icelaunch -n 2\nimport time\nprint('up', flush=True)\ntime.sleep(600)")
    cell.wait_until(lambda: cell.out.count("up") == 2 or cell.over, "both ranks are up", 60)
    kernel.interrupt()
    assert cell.wait().ename == "KeyboardInterrupt"
    assert kernel.value("ice.runs()[0].state.value") == "STOPPED"


# Without waiting, and the line magic.


def test_no_wait_returns_a_run_and_two_live_at_once(kernel: Any, magic: Any) -> None:
    kernel.does("gate = str(HOME / 'gate')")
    body = "import os, time\nwhile not os.path.exists(gate):\n    time.sleep(0.01)\nrank"
    assert not magic("-n 2 --no-wait --out first", body).ename
    assert not magic("-n 2 --no-wait", body).ename
    assert kernel.value("second = _; type(first) is type(second) is ice.Run") is True
    assert magic("-n 2", "rank + 10").literal == {0: 10, 1: 11}
    assert kernel.value("first.state.over, second.state.over, first.run_id != second.run_id") == (
        False,
        False,
        True,
    )
    assert (
        kernel.value("open(gate, 'w').close(); first.result(60), second.result(60)")
        == ({0: 0, 1: 1},) * 2
    )


def test_a_rank_that_raises_waits_in_the_debugger(kernel: Any, magic: Any) -> None:
    cell = magic(
        "-n 1 --post-mortem --no-wait --out broken", "missing = {}\nword = 'here'\nmissing[word]"
    )
    assert not cell.ename
    kernel.does("until(lambda: broken.in_debugger)")
    assert "'here'" in kernel.does("broken.debug(0, ['p word', 'c'], timeout=30)").out
    assert "KeyError: 'here'" in kernel.run("broken.result()").error


def test_a_silent_rank_is_marked_with_its_line_in_the_cell(kernel: Any, magic: Any) -> None:
    cell = magic(
        "-n 2 --hang-after 0.4 --no-wait --out silent",
        "import time\nwhile not ctx.events.resume.is_set():\n    time.sleep(0.01)",
    )
    kernel.does("until(lambda: len(silent.silent) == 2)")
    assert all(
        re.fullmatch(rf"cell {cell.number}, line [34]", where)
        for where in kernel.value("silent.silent").values()
    )
    assert kernel.value("silent.events.resume.set(); silent.result(30)") == {0: None, 1: None}


def test_a_detached_body_outlives_its_kernel(fresh_kernel: Any, another: Any) -> None:
    fresh_kernel.does("get_ipython().run_line_magic('load_ext', 'icelaunch_nb')")
    body = "while not ctx.events.resume.is_set():\n    time.sleep(0.01)\nf'rank {rank} is back'"
    assert not fresh_kernel.run(
        f"%%icelaunch -n 2 --detach --no-wait --rdzv-id left-by-a-cell\nimport time\n{body}"
    ).ename
    fresh_kernel.does("run = _\nuntil(lambda: len(run.pids) == 2)")
    fresh_kernel.shutdown()
    another.does(
        "run = ice.attach('left-by-a-cell')\nassert not run.state.over\nrun.events.resume.set()"
    )
    assert another.value("run.result(30)") == {0: "rank 0 is back", 1: "rank 1 is back"}
    fresh_kernel.leaves_nobody()


def test_status_stop_and_logs(kernel: Any, magic: Any) -> None:
    kernel.does("mine = None")
    body = (
        "import sys, time\nprint('out', rank, flush=True)\n"
        "print('err', rank, file=sys.stderr, flush=True)\ntime.sleep(600)"
    )
    magic("-n 2 --no-wait --out mine --rdzv-id to-stop", body)
    kernel.does(
        "until(lambda: all('err' in mine.logs(r, 'stderr') for r in mine.pids) and "
        "len(mine.pids) == 2)"
    )
    assert kernel.does("%icelaunch status").out.startswith("Run to-stop: RUNNING, 2 ranks")
    assert kernel.does("%icelaunch logs").out == "out 0\n"
    assert kernel.does("%icelaunch logs to-stop --rank 1 --stream stderr").out == "err 1\n"
    assert "rank=5" in kernel.run("%icelaunch logs --rank 5").evalue
    assert "did you mean '--rank'?" in kernel.run("%icelaunch logs --rnak 5").evalue
    assert kernel.does("%icelaunch stop").out == "stopping run to-stop\n"
    assert kernel.value("mine.wait(60), str(mine.state)") == (True, "STOPPED")
    assert kernel.does("%icelaunch stop to-stop").out == "run to-stop is over: STOPPED\n"
    assert "no run of this notebook is alive" in kernel.run("%icelaunch stop").evalue
    assert kernel.does("%icelaunch status").out.startswith("Run to-stop: STOPPED")
    assert "no run 'elsewhere'" in kernel.run("%icelaunch stop elsewhere").evalue
    assert "did you mean 'status'?" in kernel.run("%icelaunch stauts").evalue


def test_attach_finds_a_run_by_its_id(kernel: Any, magic: Any) -> None:
    magic("-n 1 --rdzv-id to-find", "'found'")
    assert kernel.does("again = %icelaunch attach to-find").value == ""
    assert kernel.value("again.result()") == {0: "found"}


def test_defaults(kernel: Any, magic: Any) -> None:
    try:
        assert kernel.does("%icelaunch defaults").out == "defaults: none\n"
        assert (
            kernel.does("%icelaunch defaults -n 3 --env ICE_C=1").out
            == "defaults: --nproc-per-node 3 --env ICE_C=1\n"
        )
        assert magic("", "import os\nos.environ['ICE_C']").literal == dict.fromkeys(range(3), "1")
        assert magic("-n 1", "rank").literal == {0: 0}
        assert (
            kernel.does("%icelaunch defaults --max-restarts 1").out
            == "defaults: --nproc-per-node 3 --env ICE_C=1 --max-restarts 1\n"
        )
        assert "did you mean" in kernel.run("%icelaunch defaults --nproc-pre-node 1").evalue
    finally:
        assert kernel.does("%icelaunch defaults --reset").out == "defaults: none\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("%%icelaunch --sta", ["--start-method"]),
        ("%%icelaunch -n 2 --max-", ["--max-nodes", "--max-restarts"]),
        ("%%icelaunch --start-method f", ["fork", "forkserver"]),
        ("%%icelaunch --start-method=f", ["fork", "forkserver"]),
        ("%%icelaunch --rdzv-backend ", ["c10d", "static", "etcd", "etcd-v2"]),
        ("%%icelaunch --devices c", ["cpu", "cuda"]),
        ("%icelaunch st", ["status", "stop"]),
        ("%icelaunch he", ["help"]),
        ("%icelaunch defaults --nproc", ["--nproc-per-node"]),
        ("%icelaunch logs --stream ", ["stdout", "stderr"]),
    ],
)
def test_tab(kernel: Any, typed: str, offered: list[str]) -> None:
    content = kernel.client.complete(f"{typed}\nrank", len(typed), reply=True, timeout=60)[
        "content"
    ]
    assert [match for match in content["matches"] if not re.match(r"cuda:\d", match)] == offered
    assert typed[content["cursor_start"] :] in offered[0]


@pytest.mark.parametrize("subcommand", ["attach", "stop", "logs"])
def test_tab_offers_runs(kernel: Any, magic: Any, subcommand: str) -> None:
    magic("-n 1 --rdzv-id findable", "1")
    typed = f"%icelaunch {subcommand} find"
    assert (
        "findable"
        in kernel.client.complete(typed, len(typed), reply=True, timeout=60)["content"]["matches"]
    )


def test_tab_offers_what_the_package_makes_public(kernel: Any) -> None:
    matches = kernel.client.complete("ice.", 4, reply=True, timeout=60)["content"]["matches"]
    assert [match.removeprefix(".") for match in matches] == sorted(ice.__all__, key=str.lower)


def test_tab_in_the_body_completes_python(kernel: Any) -> None:
    code = "%%icelaunch -n 2\nimport collections\nlaunc"
    assert (
        "launch"
        in kernel.client.complete(code, len(code), reply=True, timeout=60)["content"]["matches"]
    )


def test_loading_the_extension_again_changes_nothing(kernel: Any, magic: Any) -> None:
    kernel.does("get_ipython().run_line_magic('reload_ext', 'icelaunch_nb')")
    assert ast.literal_eval(magic("-n 2", "rank").value) == {0: 0, 1: 1}
    test_tab(kernel, "%%icelaunch --sta", ["--start-method"])
