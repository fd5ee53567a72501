"""Ranks get the kernel's environment, directory, import path and modules as of the launch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any

import psutil

SEEN = "def seen(*names):\n    return [os.environ.get(name) for name in names]"


def test_variables_set_changed_and_deleted_between_launches(kernel: Any) -> None:
    kernel.does(SEEN)
    for change, expected in [
        ("os.environ['ICE_TOKEN'] = 'one'", "one"),
        ("os.environ['ICE_TOKEN'] = 'two'", "two"),
        ("os.environ['ICE_TOKEN'] = ''", ""),
        ("del os.environ['ICE_TOKEN']", None),
    ]:
        kernel.does(change)
        assert kernel.value("results(seen, 'ICE_TOKEN')") == {0: [expected], 1: [expected]}


def test_a_rank_has_the_kernels_variables_and_those_of_its_rank_alone(kernel: Any) -> None:
    kernel.does("def everything():\n    return dict(os.environ)")
    kernel.does("rank = results(everything)[1]; kernel = dict(os.environ)")
    assert kernel.value("sorted(kernel.keys() - rank.keys())") == []
    assert kernel.value("sorted(name for name in kernel if rank[name] != kernel[name])") == []
    added = kernel.value("sorted(rank.keys() - kernel.keys())")
    assert {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_RUN_ID",
    } <= set(added)
    known = (
        "TORCH",
        "RANK",
        "PYTHONBREAKPOINT",
        "LOCAL_",
        "GROUP_",
        "ROLE_",
        "WORLD_",
        "MASTER_",
        "ICELAUNCH_",
        "OMP_NUM_THREADS",
        "GLOO_",
        "NCCL_",
    )
    assert [name for name in added if not name.startswith(known)] == []


def test_a_secret_is_in_the_environment_of_no_process_of_ours_that_lasts(kernel: Any) -> None:
    kernel.does(SEEN)
    kernel.does("os.environ['API_TOKEN'] = 'hunter2'; results(seen, 'API_TOKEN')")
    assert len(kernel.leftovers()) >= 2
    for process in kernel.leftovers():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that doesn't last
            assert "hunter2" not in process.environ().values()
    kernel.does("del os.environ['API_TOKEN']")


def test_working_directory_and_import_path(kernel: Any) -> None:
    kernel.does(
        "here, there = HOME / 'here', HOME / 'there'\nfor d in (here, there): d.mkdir()\n"
        "(there / 'only_there.py').write_text('VALUE = 5')\n"
        "def use():\n    import only_there\n    return os.getcwd(), only_there.VALUE"
    )
    kernel.does("old = os.getcwd(); os.chdir(here); sys.path.insert(0, str(there))")
    assert kernel.value("results(use)") == dict.fromkeys((0, 1), (str(kernel.home / "here"), 5))
    kernel.does("os.chdir(old); sys.path.remove(str(there))")
    error = kernel.run("results(use)").error
    assert error.splitlines()[-1] == "ModuleNotFoundError: No module named 'only_there'"


def test_a_helper_edited_between_two_launches_runs_as_it_is_now(kernel: Any) -> None:
    """Edits within the same second and of the same size, which Python's own cache misses."""
    kernel.does(
        "helper = pathlib.Path('edited_helper.py')\n"
        "def write(n):\n    helper.write_text(f'def value():\\n    return {n}\\n')\n"
        "def use():\n    import edited_helper\n    return edited_helper.value()"
    )
    assert kernel.value(
        "got = []\nfor n in range(5):\n    write(n)\n    got.append(results(use, ranks=1)[0])\ngot"
    ) == [0, 1, 2, 3, 4]


def test_a_helper_edited_at_full_speed(kernel: Any) -> None:
    kernel.does(
        "quick = pathlib.Path('quick_helper.py')\n"
        "def use():\n    import quick_helper\n    return quick_helper.N"
    )
    assert kernel.value(
        "got = []\nfor n in range(5):\n    quick.write_text(f'N = {n}')\n"
        "    got.append(list(results(use).values()))\ngot"
    ) == [[n, n] for n in range(5)]


def test_a_helper_that_the_notebook_imported_itself_runs_as_it_is_on_disk(kernel: Any) -> None:
    kernel.does(
        "mine = pathlib.Path('my_helper.py')\nmine.write_text('def value():\\n    return 1\\n')\n"
        "import my_helper\n"
        "def use():\n    return my_helper.value()"
    )
    assert kernel.value("results(use)") == {0: 1, 1: 1}
    kernel.does("mine.write_text('def value():\\n    return 2\\n')")
    assert kernel.value("results(use), my_helper.value()") == ({0: 2, 1: 2}, 1)


def test_ranks_share_the_processors_as_threads_unless_the_user_sets_them(kernel: Any) -> None:
    kernel.does(
        "def threads():\n    import torch\n"
        "    return torch.get_num_threads(), os.environ.get('OMP_NUM_THREADS')"
    )
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {n for n, _ in kernel.value("results(threads)").values()} <= {share, 1}, (
        "a cgroup may grant less than the affinity"
    )
    wanted = 2 if share != 2 else 1  # not more than the processors there are: libgomp wouldn't
    kernel.does(f"os.environ['OMP_NUM_THREADS'] = '{wanted}'")
    assert kernel.value("results(threads)") == dict.fromkeys((0, 1), (wanted, str(wanted)))
    kernel.does("del os.environ['OMP_NUM_THREADS']")
    assert (
        kernel.value("[n for n, _ in results(threads, ranks=8).values()]")
        == [max(1, len(os.sched_getaffinity(0)) // 8)] * 8
    )


def test_variables_that_act_when_an_interpreter_starts_act(kernel: Any) -> None:
    kernel.does("def hashed():\n    return hash('ice')\nos.environ['PYTHONHASHSEED'] = '7'")
    plain = subprocess.run(
        [sys.executable, "-c", "print(hash('ice'))"],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    assert kernel.value("results(hashed)") == dict.fromkeys((0, 1), int(plain.stdout))
    kernel.does("del os.environ['PYTHONHASHSEED']")
    assert kernel.value("results(hashed)[0]") != int(plain.stdout)
    kernel.until(lambda: len(kernel.host()) <= 3, "hosts that nobody needs any more end")


def test_ranks_have_the_arguments_that_a_cell_sets_and_none_of_the_kernels(kernel: Any) -> None:
    kernel.does("def arguments():\n    return sys.argv\nown = sys.argv[:]")
    assert kernel.value("len(own) > 1, results(arguments, ranks=1)[0]") == (True, [""])
    kernel.does("sys.argv = ['train.py', '--lr', '0.5']")
    assert kernel.value("results(arguments, ranks=1)[0]") == ["train.py", "--lr", "0.5"]
    kernel.does("sys.argv = own[:1]")
    assert kernel.value("results(arguments, ranks=1)[0]") == [""]
    kernel.does("sys.argv = own")


def test_ranks_have_the_state_of_torch_numpy_and_python_that_a_cell_sets(kernel: Any) -> None:
    kernel.does(
        "import warnings\n"
        "def state():\n    import numpy, torch, warnings\n"
        "    return (str(torch.ones(1).dtype), numpy.geterr()['over'], "
        "torch.backends.cudnn.benchmark,\n"
        "            [f[0] for f in warnings.filters if f[2] is EncodingWarning])"
    )
    assert kernel.value("results(state)[1], 'torch' in sys.modules, 'numpy' in sys.modules") == (
        ("torch.float32", "warn", False, []),
        False,
        False,
    )
    kernel.does(
        "import torch, numpy\ntorch.set_default_dtype(torch.float64); "
        "numpy.seterr(over='raise'); torch.backends.cudnn.benchmark = True"
    )
    kernel.does("warnings.simplefilter('error', EncodingWarning)")
    assert kernel.value("results(state)[1]") == ("torch.float64", "raise", True, ["error"])
    kernel.does(
        "torch.set_default_dtype(torch.float32); numpy.seterr(over='warn'); "
        "torch.backends.cudnn.benchmark = False; warnings.filters.pop(0)"
    )
    assert kernel.value("results(state)[1]") == ("torch.float32", "warn", False, [])


def test_a_time_out_of_all_new_sockets_stops_nothing_of_ours(kernel: Any) -> None:
    kernel.does(
        "import socket\nsocket.setdefaulttimeout(0.001)\nos.environ['TORCH_NEW_HOST'] = '1'"
    )
    assert kernel.value("results(lambda: 5)") == {0: 5, 1: 5}
    kernel.does("socket.setdefaulttimeout(None); del os.environ['TORCH_NEW_HOST']")
