"""``inline=True``: the same function in the kernel itself, for ``%debug``."""

from __future__ import annotations

from typing import Any

import pytest


def test_the_function_runs_in_the_kernel_with_a_ranks_context(kernel: Any) -> None:
    kernel.does("""
def who():
    context = ice.get_context()
    numbers = context.rank, context.world_size, context.local_rank, context.restart_count
    return os.getpid(), *numbers, str(context.device)
run = ice.launch(who, inline=True)
""")
    assert kernel.value("run.result()") == {0: (kernel.pid, 0, 1, 0, 0, "cpu")}
    assert kernel.value("str(run.state), run.result() == run.result()") == ("SUCCEEDED", True)
    assert kernel.value("repr(run)").startswith("<Run ")


def test_results_are_the_objects_themselves(kernel: Any) -> None:
    assert (
        kernel.value(
            "thing = object(); ice.launch(lambda: thing, inline=True).result()[0] is thing"
        )
        is True
    )


def test_a_process_group_works_and_can_be_made_again(kernel: Any) -> None:
    kernel.does("""
def group():
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    x = torch.ones(1)
    dist.all_reduce(x)
    dist.destroy_process_group()
    return x.item()
""")
    assert kernel.value("[ice.launch(group, inline=True).result()[0] for _ in range(2)]") == [
        1.0,
        1.0,
    ]


@pytest.mark.parametrize(
    "body", ["return 1", "raise ValueError('x')", "raise KeyboardInterrupt", "raise SystemExit(1)"]
)
def test_the_environment_is_put_back(kernel: Any, body: str) -> None:
    kernel.does(f"""
os.environ["WORLD_SIZE"] = "mine"
before = dict(os.environ)
def fn():
    assert os.environ["WORLD_SIZE"] == "1"
    {body}
try:
    ice.launch(fn, inline=True)
except BaseException:
    pass
""")
    assert kernel.value("dict(os.environ) == before") is True
    assert kernel.value("'RANK' in os.environ") is False
    kernel.does("del os.environ['WORLD_SIZE']")
    assert kernel.run("ice.get_context()").ename == "IcelaunchError"


def test_an_exception_is_raised_as_it_is(kernel: Any) -> None:
    cell = kernel.does("def fail():\n    secret = 42\n    raise ValueError('raw')  # here")
    error = kernel.run("ice.launch(fail, inline=True)")
    assert error.ename == "ValueError"
    assert error.error.splitlines()[-1] == "ValueError: raw"
    assert f"Cell In[{cell.number}], line 3" in error.error and "# here" in error.error
    assert (
        kernel.value(
            "t = sys.last_traceback\nwhile t.tb_next: t = t.tb_next\nt.tb_frame.f_locals['secret']"
        )
        == 42
    )


def test_debug_reaches_the_frame_of_the_function(kernel: Any) -> None:
    kernel.does("def fail():\n    secret = 4711\n    raise ValueError('raw')")
    assert kernel.run("ice.launch(fail, inline=True)").ename == "ValueError"
    cell = kernel.start("%debug")
    for answer in ("p secret + 1", "q"):
        assert kernel.client.get_stdin_msg(timeout=30)["msg_type"] == "input_request"
        kernel.client.input(answer)
    assert "4712" in cell.wait().out


def test_more_than_one_rank_is_refused_with_a_remedy(kernel: Any) -> None:
    cell = kernel.run("ice.launch(lambda: 1, nproc_per_node=2, inline=True)")
    assert cell.ename == "ConfigError"
    assert "inline" in cell.evalue and "nproc_per_node=1" in cell.evalue


def test_it_can_be_interrupted(kernel: Any) -> None:
    kernel.does(
        "def forever():\n    (HOME / 'up').touch()\n    while True:\n        time.sleep(0.05)"
    )
    assert kernel.interrupted("ice.launch(forever, inline=True)", "up").ename == "KeyboardInterrupt"
    assert kernel.value("'RANK' in os.environ") is False
