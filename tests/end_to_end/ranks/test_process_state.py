"""Ranks have the state of the process that launches them, by whatever start method.

Other processes and a launch inline change nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

# What a user does before the launch, and an expression that shows it in a process.
STATES = {
    "default dtype": ("torch.set_default_dtype(torch.float64)", "str(torch.ones(1).dtype)"),
    "default device": ("torch.set_default_device('meta')", "str(torch.empty(1).device)"),
    "matmul precision": (
        "torch.set_float32_matmul_precision('high')",
        "torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32",
    ),
    "deterministic algorithms": (
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        "torch.are_deterministic_algorithms_enabled(), "
        "torch.is_deterministic_algorithms_warn_only_enabled()",
    ),
    "memory isn't filled": (
        "torch.utils.deterministic.fill_uninitialized_memory = False",
        "torch.utils.deterministic.fill_uninitialized_memory",
    ),
    "cudnn": (
        "torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = True; "
        "torch.backends.cudnn.enabled = False",
        "torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, "
        "torch.backends.cudnn.enabled",
    ),
    "tf32 of cudnn": ("torch.backends.cudnn.allow_tf32 = False", "torch.backends.cudnn.allow_tf32"),
    "cublas": (
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False",
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    ),
    "attention": (
        "torch.backends.cuda.enable_flash_sdp(False)",
        "torch.backends.cuda.flash_sdp_enabled()",
    ),
    "mkldnn": (
        "torch.backends.mkldnn.enabled = False; torch.backends.mkldnn.deterministic = True",
        "torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic",
    ),
    "sharing strategy": (
        "torch.multiprocessing.set_sharing_strategy('file_system')",
        "torch.multiprocessing.get_sharing_strategy()",
    ),
    "denormals": ("torch.set_flush_denormal(True)", "sys.float_info.min / 2"),
    "gradients": ("torch.set_grad_enabled(False)", "torch.is_grad_enabled()"),
    "anomalies": (
        "torch.autograd.set_detect_anomaly(True, check_nan=False)",
        "torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()",
    ),
    "threads": (
        "torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)",
        "None if os.cpu_count() == 1 else torch.get_num_threads()",
    ),
    "torch's printing": (
        "torch.set_printoptions(precision=9, sci_mode=False)",
        "repr(torch.tensor([1 / 3], device='cpu'))",
    ),
    "numpy's errors": ("np.seterr(divide='raise', under='warn')", "np.geterr()"),
    "numpy's printing": (
        "np.set_printoptions(precision=3, suppress=True)",
        "repr(np.array([1 / 3]))",
    ),
    "recursion": ("sys.setrecursionlimit(4321)", "sys.getrecursionlimit()"),
    "digits": ("sys.set_int_max_str_digits(9999)", "sys.get_int_max_str_digits()"),
    "bytecode": (
        "sys.dont_write_bytecode = not sys.dont_write_bytecode",
        "sys.dont_write_bytecode",
    ),
    "sockets": ("socket.setdefaulttimeout(12.5)", "socket.socket().gettimeout()"),
    "garbage": ("gc.set_threshold(1234, 5, 6)", "gc.get_threshold()[:2]"),
    "decimals": (
        "decimal.getcontext().prec = 50; decimal.getcontext().traps[decimal.Inexact] = True",
        "decimal.getcontext().prec, decimal.getcontext().traps[decimal.Inexact]",
    ),
    "start method": (
        "multiprocessing.set_start_method('spawn', force=True)",
        "multiprocessing.get_start_method()",
    ),
    "locale": (
        "locale.setlocale(locale.LC_ALL, 'C.UTF-8' if locale.setlocale(locale.LC_TIME) == 'C' "
        "else 'C')",
        "locale.setlocale(locale.LC_TIME)",
    ),
    "warnings": (
        "warnings.filterwarnings('ignore', 'nobody .*', FutureWarning); "
        "warnings.simplefilter('error', Mine)",
        "[(f[0], f[1] and f[1].pattern, f[2].__name__) for f in warnings.filters]",
    ),
    "a warning of one's own": ("pass", "warned()"),
    "logging": (
        "logging.basicConfig(level=logging.DEBUG, format='{message} {name}', style='{', "
        "stream=sys.stdout)\n"
        "log = logging.getLogger('mine'); log.setLevel(logging.ERROR); log.propagate = False; "
        "log.addHandler(logging.StreamHandler())\n"
        "logging.getLogger('numpy').setLevel(logging.CRITICAL); logging.disable(5)",
        "[(log.level, log.propagate, log.manager.disable, [(h.stream.name, "
        "h.formatter and h.formatter._fmt) for h in log.handlers])"
        " for log in map(logging.getLogger, ('root', 'mine', 'numpy', 'other'))]",
    ),
    "arguments": ("pass", "sys.argv"),
}
SCRIPT = """
    import decimal, gc, json, locale, logging, multiprocessing, os, socket, sys, warnings
    import numpy as np, torch
    import icelaunch_nb as ice

    class Mine(UserWarning):
        pass

    def warned():
        try:
            warnings.warn("careful", Mine)
        except Mine:
            return "raised"
        return "warned"

    states = json.load(open("states.json"))

    def read_state():
        import decimal, gc, locale, logging, multiprocessing, os, socket, sys, warnings
        import numpy as np, torch
        modules = dict(locals())

        def read(expression):
            if expression == "warned()":
                return warned()
            return json.dumps(eval(expression, modules), default=str)

        return {name: read(expression) for name, (_, expression) in states.items()}

    if __name__ == "__main__":
        fresh = read_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a deprecated way to set a state
            for set_up, _ in states.values():
                if "warnings" not in set_up:
                    exec(set_up)
        exec(states["warnings"][0])
        here, found = read_state(), {}
        for method in sys.argv[2:]:
            run = ice.launch(read_state, nproc_per_node=1, devices="cpu", start_method=method)
            found[method] = run.result()[0]
            assert read_state() == here, "the launch changed it"
        json.dump([fresh, here, found], open("found.json", "w"))
"""


def run_script(folder: Path, code: str, *arguments: str, flags: tuple[str, ...] = ()) -> str:
    (folder / "script.py").write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, *flags, "script.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The state of a fresh process, the launching process, and a rank of each start method."""
    folder = tmp_path_factory.mktemp("states")
    (folder / "states.json").write_text(json.dumps(STATES))
    run_script(folder, SCRIPT, "--lr", "forkserver", "spawn", "fork")
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_rank_has_the_state_of_the_process_that_launches_it(
    found: Any, state: str, method: str
) -> None:
    fresh, here, ranks = found
    if STATES[state][0] != "pass" and state != "threads":
        assert here[state] != fresh[state], "the test sets nothing"
    assert ranks[method][state] == here[state]


FLAGS = """
    import json
    import sys
    import warnings
    import icelaunch_nb as ice

    def read_flags():
        import sys
        import warnings
        import helper

        try:
            warnings.warn("later", FutureWarning)
            found = "warned"
        except FutureWarning:
            found = "raised"
        return [helper.asserts(), *sys.flags[:-1], sys._xoptions, sys.warnoptions, found]

    if __name__ == "__main__":
        for method in sys.argv[1:]:
            run = ice.launch(read_flags, nproc_per_node=1, devices="cpu", start_method=method)
            found = run.result()[0]
            assert found == read_flags(), (method, found, read_flags())
        print(found[0], sys.flags.dev_mode)
"""


def test_ranks_run_under_the_interpreters_own_options(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(
        "def asserts():\n    try:\n        assert False\n    except AssertionError:\n"
        "        return True\n    return False"
    )
    printed = run_script(
        tmp_path,
        FLAGS,
        "forkserver",
        flags=("-O", "-Xdev", "-Xmine=3", "-Xno_debug_ranges", "-Werror::FutureWarning", "-b"),
    )
    assert printed == "False True\n"


def test_warnings_that_are_errors_end_no_process_of_ours(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def asserts():\n    return True")
    assert run_script(tmp_path, FLAGS, "forkserver", flags=("-Werror",)) == "True False\n"
