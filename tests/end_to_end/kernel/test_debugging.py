"""A rank's debugger in a cell: the kernel's own input box, interrupts, and the kernel's death."""

from __future__ import annotations

import re
import signal
import time
from queue import Empty

from psutil import Process

STOPS = """
def stops():
    word = "found"
    breakpoint()
    word += " it"
    return word
run = ice.launch(stops, nproc_per_node=2)
until(lambda: len(run.in_debugger) == 2)
"""


def answer(kernel, cell, *lines: str) -> list[str]:
    """Types lines where the kernel asks for input. Returns the prompts that it showed."""
    prompts = []
    for line in lines:
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline and not cell.over, cell
            try:
                message = kernel.client.get_stdin_msg(timeout=0.1)
                # An interrupt can leave a request of an earlier cell unanswered.
                if kernel._cells.get(message["parent_header"]["msg_id"]) is cell:
                    break
            except Empty:
                kernel.read_message()
        prompts.append(message["content"]["prompt"])
        kernel.client.input(line)
    return prompts


def test_the_prompt_is_the_kernels_own_input(kernel):
    kernel.does(STOPS)
    assert re.search(r"rank 0 waits at cell \d+, line 4", kernel.does("print(run)").out)
    cell = kernel.start("run.debug(1)")
    assert answer(kernel, cell, "p word", "n", "p word", "c") == ["(Pdb) "] * 4
    cell.wait()
    assert not cell.ename, cell.error
    assert "> Cell In[" in cell.out and "'found'\n" in cell.out and "'found it'\n" in cell.out
    assert kernel.value("run.debug(0, ['!word = \\'lost\\'', 'c'])\nrun.result()") == {
        0: "lost it",
        1: "found it",
    }


def test_an_interrupt_leaves_the_prompt_and_the_rank_stays_there(kernel):
    kernel.does(STOPS)
    cell = kernel.start("run.debug(0)")
    answer(kernel, cell, "p word")
    cell.wait_for("'found'")
    time.sleep(0.3)
    kernel.interrupt()
    cell.wait()
    assert "rank 0 still waits" in cell.out and not cell.ename
    assert kernel.value("sorted(run.in_debugger)") == [0, 1]
    assert kernel.value("run.debug(0, ['c'])\nrun.debug(1, ['c'])\nrun.result()") == {
        0: "found it",
        1: "found it",
    }


def test_a_cell_that_waits_for_the_run_asks_at_the_prompts(kernel):
    kernel.does(STOPS)
    cell = kernel.start("run.result()")
    assert answer(kernel, cell, "p word", "!word = 'first'", "c", "n", "c") == ["(Pdb) "] * 5
    cell.wait()
    assert not cell.ename, cell.error
    assert cell.value == "{0: 'first it', 1: 'found it'}"
    assert cell.out.count("waits at cell") == 2 and cell.out.count("'found'\n") == 1, cell.out
    # The second wait has no prompt and nothing to print again.
    assert kernel.does("run.result()").out == ""


def test_an_interrupt_at_the_prompt_of_a_waiting_cell_stops_the_run(kernel):
    kernel.does(STOPS)
    cell = kernel.start("run.result()")
    answer(kernel, cell, "p word")
    cell.wait_for("'found'")
    time.sleep(0.3)
    kernel.interrupt()
    cell.wait()
    assert cell.ename == "KeyboardInterrupt"
    assert kernel.value("str(run.state)") == "STOPPED"


def test_a_front_end_without_input_is_not_asked(kernel):
    kernel.does(STOPS)
    kernel.client.allow_stdin = False
    try:
        cell = kernel.start("import threading\nthreading.Timer(1, run.kill).start()\nrun.wait()")
        cell.wait()
    finally:
        kernel.client.allow_stdin = True
    assert not cell.ename and cell.value == "True"
    assert kernel.value("str(run.state)") == "STOPPED"


def test_an_interrupt_ends_debug_while_it_waits_for_a_breakpoint(kernel):
    kernel.does("run = ice.launch(time.sleep, (60,), nproc_per_node=1)\nuntil(lambda: run.pids)")
    cell = kernel.start("(HOME / 'waits').touch(); run.debug()")
    kernel.until((kernel.home / "waits").exists, "it waits")
    kernel.interrupt()
    cell.wait()
    assert cell.ename == "KeyboardInterrupt"
    assert kernel.value("str(run.state)") == "RUNNING"
    kernel.does("run.kill(); run.wait()")


def test_a_kernels_death_at_the_prompt_leaves_no_process(fresh_kernel):
    fresh_kernel.does(STOPS)
    cell = fresh_kernel.start("run.debug(1)")
    answer(fresh_kernel, cell, "p word")
    cell.wait_for("'found'")
    fresh_kernel.kill()
    fresh_kernel.leaves_nobody(within=8)


def test_a_detached_run_waits_on_and_another_kernel_can_debug_it(fresh_kernel, tmp_path):
    fresh_kernel.does(STOPS + "run.detach()")
    path = fresh_kernel.does("print(run.log_dir)").out.strip()
    pids = list(fresh_kernel.value("run.pids").values())
    fresh_kernel.kill()
    import icelaunch_nb as ice

    run = ice.Run(path)
    try:
        time.sleep(1)
        assert sorted(run.in_debugger) == [0, 1]
        run.debug(0, ["c"])
        run.debug(1, ["!word = 'elsewhere'", "c"])
        assert run.result(30)[1].startswith("elsewhere")
    finally:
        for pid in pids if not run.state.over else []:
            Process(pid).send_signal(signal.SIGKILL)
