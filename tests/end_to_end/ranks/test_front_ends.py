"""launch_agent works wherever Python runs: a script without a guard, a REPL, a thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import threading
import icelaunch_nb as ice

class Answer:
    def __init__(self, value):
        self.value = value

def work(x):
    import inspect
    print("hello from rank", ice.get_context().rank)
    return Answer(x), inspect.getsource(work), __name__

config = ice.LaunchConfig(1, 1, 2, start_method={start_method!r}, max_restarts=0, tee=3)

def main():
    values = ice.launch_agent(config, work, [5])
    assert isinstance(values[0][0], Answer), "a result has the script's own class"
    assert values[1][1].startswith("def work(x):")
    print("values", values[0][0].value, values[1][2])

{call}
"""


@pytest.mark.parametrize("start_method", ["forkserver", "spawn", "fork"])
def test_a_script_needs_no_guard(start_method: str, runs: Path) -> None:
    script = runs / "script.py"
    script.write_text(SCRIPT.format(start_method=start_method, call="main()"))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.count("values 5 __main__") == 1, "the script must not run again in the ranks"
    assert "[default_role1]:hello from rank 1\n" in done.stdout
    assert done.stderr == ""


def test_a_thread_of_a_script_can_launch(runs: Path) -> None:
    script = runs / "script.py"
    call = "thread = threading.Thread(target=main); thread.start(); thread.join()"
    script.write_text(SCRIPT.format(start_method="forkserver", call=call))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=True
    )
    assert "values 5 __main__" in done.stdout


def test_a_repl_can_launch(runs: Path) -> None:
    typed = (
        "import icelaunch_nb as ice\n"
        "def work(x):\n    print('typed')\n    return x + ice.get_context().rank\n\n"
        "ice.launch_agent(ice.LaunchConfig(1, 1, 2, start_method='forkserver', max_restarts=0), "
        "work, [5], None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=typed,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "[default_role0]:typed" in done.stdout
    assert "{0: 5, 1: 6}" in done.stdout


def test_importing_is_cheap_and_brings_no_torch() -> None:
    code = (
        "import sys, icelaunch_nb; print([m for m in ('torch', 'numpy', 'IPython', "
        "'ipywidgets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_nothing_is_forked_and_torch_stays_out_of_the_launching_process(runs: Path) -> None:
    code = (
        "import os, sys\nforks = []\nos.register_at_fork(before=lambda: forks.append(1))\n"
        "import icelaunch_nb as ice\n"
        "print(ice.launch(lambda: ice.get_context().rank, nproc_per_node=2).result(), forks, "
        "'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "{0: 0, 1: 1} [] False\n"
