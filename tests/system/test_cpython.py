"""Tests that use each private name of CPython, torch, cloudpickle and IPython that we use.

They fail on a version in which a name has moved.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import cloudpickle
import pytest
import torch
from cloudpickle import cloudpickle as private

from icelaunch_nb.launching import process_state
from icelaunch_nb.pickling import torch_objects, torch_operators, torchscript
from icelaunch_nb.system import cpython


def run_script(folder: Path, code: str, *, quiet: bool = True) -> str:
    """Runs code as a file, so that a forkserver's children can import its functions.

    Args:
        folder: Where the file is written.
        code: The code.
        quiet: Whether it must not write to stderr.

    Returns:
        What it printed.
    """
    (folder / "script.py").write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not quiet or not done.stderr
    return done.stdout


# CPython.

FAMILY = """
    import multiprocessing, os
    from icelaunch_nb.system import cpython

    def grandchild(answers):
        answers.send((os.getpid(), os.getppid()))

    def child(answers, share):
        if share:
            cpython.share_parents_forkserver()
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe(False)
        process = context.Process(target=grandchild, args=(theirs,))
        process.start()
        _, parent = ours.recv()
        process.join()
        answers.send((os.getppid(), parent, process.exitcode))

    if __name__ == "__main__":
        assert cpython.forkserver_pid() is None
        context = multiprocessing.get_context("forkserver")
        for share in (True, False):
            ours, theirs = context.Pipe(False)
            process = context.Process(target=child, args=(theirs, share))
            process.start()
            mine, theirs_parent, exitcode = ours.recv()
            process.join()
            assert process.exitcode == exitcode == 0
            assert mine == cpython.forkserver_pid()
            print("shared" if mine == theirs_parent else "its own")
"""


def test_forkserver_child_shares_the_forkserver_instead_of_starting_its_own(tmp_path):
    assert run_script(tmp_path, FAMILY) == "shared\nits own\n"


def test_process_without_forkserver_cannot_share_one():
    with pytest.raises(RuntimeError, match="not started by a forkserver"):
        cpython.share_parents_forkserver()


def test_process_starts_its_own_resource_tracker(tmp_path):
    printed = run_script(
        tmp_path,
        """
        import multiprocessing, os, time
        from multiprocessing import resource_tracker, shared_memory
        from icelaunch_nb.system import cpython

        def grandchild():
            name = f"tracker-{os.getppid()}-{os.getpid()}"
            shared_memory.SharedMemory(create=True, size=10, name=name)
            os.kill(os.getpid(), 9)

        def child(answers):
            cpython.share_parents_forkserver()
            cpython.start_resource_tracker("tracker")
            process = multiprocessing.get_context("forkserver").Process(target=grandchild)
            process.start()
            process.join()
            tracker = resource_tracker._resource_tracker._pid
            answers.send((process.exitcode, tracker, len(of(process.pid)), process.pid))
            answers.recv()
            os._exit(0)

        def of(pid):
            names = os.listdir("/dev/shm")
            return [one for one in names if one.startswith("tracker-") and one.endswith(f"-{pid}")]

        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            ours, theirs = context.Pipe()
            process = context.Process(target=child, args=(theirs,))
            process.start()
            code, pid, left, grandchild = ours.recv()
            assert pid != resource_tracker._resource_tracker._pid
            print(code, left, open(f"/proc/{pid}/comm").read().strip())
            ours.send("go")
            process.join()
            end = time.monotonic() + 30
            while of(grandchild) and time.monotonic() < end:
                time.sleep(0.01)
            print(of(grandchild))
    """,
        quiet=False,
    )
    assert printed == "-9 1 tracker\n[]\n"


def test_forkserver_child_restores_the_default_start_method(tmp_path):
    printed = run_script(
        tmp_path,
        """
        import multiprocessing, subprocess, sys
        from icelaunch_nb.system import cpython

        def child(answers):
            before = multiprocessing.get_start_method()
            cpython.reset_start_method()
            forgotten = multiprocessing.get_start_method(allow_none=True)
            answers.send((before, forgotten, multiprocessing.get_start_method()))

        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            ours, theirs = context.Pipe(False)
            process = context.Process(target=child, args=(theirs,))
            process.start()
            before, forgotten, after = ours.recv()
            process.join()
            code = "import multiprocessing; print(multiprocessing.get_start_method())"
            plain = subprocess.check_output([sys.executable, "-c", code], text=True)
            print(before, forgotten, after == plain.strip())
    """,
    )
    assert printed == "forkserver None True\n"


def test_exit_functions_run_and_threads_are_joined_before_os_exit(
    tmp_path,
):
    printed = run_script(
        tmp_path,
        """
        import atexit, multiprocessing, os, threading
        from icelaunch_nb.system import cpython

        def child(answers, run):
            go = threading.Event()
            atexit.register(answers.send, "atexit")
            threading.Thread(target=lambda: (go.wait(), answers.send("thread"))).start()
            go.set()
            if run:
                cpython.run_exit_functions()
                os._exit(0)

        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            ours, theirs = context.Pipe(False)
            process = context.Process(target=child, args=(theirs, True))
            process.start()
            print(ours.recv(), ours.recv())
            process.join()
            print(process.exitcode)
    """,
    )
    assert printed == "thread atexit\n0\n"


def test_disabled_finalizers_do_not_run_and_new_ones_do(tmp_path):
    printed = run_script(
        tmp_path,
        """
        import weakref, atexit
        from icelaunch_nb.system import cpython

        class Thing: pass
        old, new = Thing(), Thing()
        finalizer = weakref.finalize(old, print, "old")
        cpython.disable_finalizers_at_exit()
        weakref.finalize(new, print, "new")
        assert finalizer.alive
        cpython.run_exit_functions()
    """,
    )
    assert printed == "new\n"


def test_disabled_log_handlers_are_not_closed_and_new_ones_are(
    tmp_path,
):
    printed = run_script(
        tmp_path,
        """
        import logging
        from icelaunch_nb.system import cpython

        class Handler(logging.Handler):
            def close(self):
                print(self.name)
        old = Handler()
        old.name = "old"
        cpython.disable_log_handlers_at_exit()
        new = Handler()
        new.name = "new"
        cpython.run_exit_functions()
    """,
    )
    assert printed == "new\n"


def test_recording_of_warnings_is_detected():
    with warnings.catch_warnings(record=True):
        assert cpython.warnings_are_recorded()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert cpython.warnings_are_recorded()
    code = """
        import warnings
        from icelaunch_nb.system import cpython
        with warnings.catch_warnings():
            assert not cpython.warnings_are_recorded()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_interpreter_options_are_passed_as_flags_or_variables(tmp_path):
    code = (
        "from icelaunch_nb.system import cpython; "
        "print(cpython.interpreter_flags(), cpython.interpreter_variables())"
    )
    flags = ["-OO", "-bb", "-Xmine", "-Xutf8=1", "-Xno_debug_ranges", "-Werror"]
    printed = subprocess.check_output([sys.executable, *flags, "-c", code], text=True, timeout=60)
    assert printed == (
        "['-OO', '-bb', '-Xmine', '-Xutf8=1', '-Xno_debug_ranges'] {'PYTHONNODEBUGRANGES': '1'}\n"
    )


def test_replacing_and_restoring_a_signal_handler_is_reported(tmp_path):
    printed = run_script(
        tmp_path,
        """
        import asyncio, faulthandler, signal, tempfile
        from icelaunch_nb.system import cpython

        file, seen = tempfile.TemporaryFile(), []
        cpython.watch_handler(
            signal.SIGURG, lambda: seen.append("replaced"), lambda: seen.append("restored")
        )

        def report():
            print(*seen or ["nothing"])
            seen.clear()

        old = signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGUSR1, old); report()
        old = signal.signal(signal.SIGURG, lambda *_: None); report()
        signal.signal(signal.SIGURG, old); report()
        signal.signal(signal.SIGURG, signal.SIG_IGN); report()
        faulthandler.register(signal.SIGURG, file); report()
        faulthandler.unregister(signal.SIGURG); report()
        signal.signal(signal.SIGURG, signal.SIG_DFL); report()
        async def watches():
            asyncio.get_running_loop().add_signal_handler(signal.SIGURG, print)
            report()
        asyncio.run(watches()); report()
    """,
    )
    assert printed.splitlines() == [
        "nothing",
        "replaced",
        "replaced restored",
        "replaced",
        "replaced",
        "nothing",
        "replaced restored",
        "replaced",
        "replaced restored",
    ]


def test_forkserver_child_becomes_the_main_process(tmp_path):
    printed = run_script(
        tmp_path,
        """
        import multiprocessing
        from icelaunch_nb.system import cpython

        def grandchild(answers):
            answers.send(multiprocessing.parent_process().name)

        def child(answers):
            before = multiprocessing.current_process().name
            cpython.become_main_process()
            me = multiprocessing.current_process()
            context = multiprocessing.get_context("fork")
            process = context.Process(target=grandchild, args=(answers,))
            process.start()
            process.join()
            parent = multiprocessing.parent_process()
            answers.send((before, me.name, parent, process.name, me.is_alive()))

        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            ours, theirs = context.Pipe(False)
            process = context.Process(target=child, args=(theirs,))
            process.start()
            print(ours.recv(), ours.recv())
            process.join()
            print(process.exitcode)
    """,
    )
    assert (
        printed
        == "MainProcess ('ForkServerProcess-1', 'MainProcess', None, 'ForkProcess-1', True)\n0\n"
    )


# torch.


@pytest.mark.skipif(
    not torch.__version__.startswith("2.13."),
    reason="the names are those of torch 2.13; what a version lacks has no state there",
)
def test_every_part_of_torch_state_is_read():
    state = process_state.capture()["torch"]
    assert state["calls"].keys() == process_state._TORCH_CALLS.keys()
    assert state["flags"].keys() == {*process_state._TORCH_FLAGS}
    assert state["preferred"].keys() == process_state._TORCH_PREFERRED.keys()
    assert {
        "deterministic",
        "fill_uninitialized",
        "anomaly",
        "inference",
        "printing",
        "threads",
    } <= state.keys()
    for _, write, _ in process_state._TORCH_CALLS.values():
        assert callable(process_state._follow(torch, write))
    assert inspect.signature(torch.set_printoptions).parameters.keys() >= state["printing"].keys()
    assert callable(torch._C._set_deterministic_algorithms)


def test_default_device_of_torch_is_read():
    from torch.utils import _device

    with torch.device("meta"):
        assert process_state.capture()["torch"]["device"] == "meta"
    torch.set_default_device("meta")
    try:
        assert str(_device.CURRENT_DEVICE) == process_state.capture()["torch"]["device"] == "meta"
    finally:
        torch.set_default_device(None)
    assert process_state.capture()["torch"]["device"] is None


@pytest.fixture(scope="module")
def plain_agent():
    """torch's own agent. It is made but not run."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

    spec = WorkerSpec(
        role="r", local_world_size=1, rdzv_handler=None, entrypoint=print, max_restarts=2
    )
    return LocalElasticAgent(spec, DefaultLogsSpecs(log_dir="/dev/null"), start_method="spawn")


def test_names_of_torch_agent_exist(plain_agent):
    from icelaunch_nb.agent.elastic import TORCH_NAMES

    assert TORCH_NAMES
    assert [name for name in TORCH_NAMES if not hasattr(plain_agent, name)] == []
    assert plain_agent._remaining_restarts == 2
    assert plain_agent._worker_watchdog is None and plain_agent._health_check_server is None


def test_overridden_methods_of_torch_agent_keep_its_signatures(plain_agent):
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    from icelaunch_nb.agent.elastic import IceAgent

    overridden = [
        name
        for name in vars(IceAgent)
        if inspect.isfunction(getattr(LocalElasticAgent, name, None)) and not name.startswith("__")
    ]
    assert {"_start_workers", "_stop_workers", "_monitor_workers", "_shutdown"} <= set(overridden)
    for name in overridden:
        ours, theirs = (
            inspect.signature(getattr(cls, name)) for cls in (IceAgent, LocalElasticAgent)
        )
        assert list(theirs.parameters) == [
            name for name in ours.parameters if name in theirs.parameters
        ], name
        beyond = [
            parameter
            for parameter in ours.parameters.values()
            if parameter.name not in theirs.parameters
        ]
        assert all(parameter.default is not parameter.empty for parameter in beyond), (
            f"{name}: other versions of torch have {beyond}"
        )


def test_private_names_used_in_elastic_are_listed():
    """``elastic.py`` lists in TORCH_NAMES each private name of ``self`` that it doesn't define."""
    from icelaunch_nb.agent import elastic

    tree = ast.parse(inspect.getsource(elastic.IceAgent))
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    read, written_at_start = set(), set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            read.add(node.attr)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            written_at_start = {
                n.attr
                for n in ast.walk(node)
                if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
            }
    private_of_torch = {name for name in read - own - written_at_start if name.startswith("_")}
    assert private_of_torch - set(elastic.TORCH_NAMES) <= {"_start_method"}


def test_torch_records_events_by_the_replaced_name(monkeypatch):
    from torch.distributed.elastic.agent.server import api

    from icelaunch_nb.agent import elastic

    assert "record" in api.SimpleElasticAgent._record_worker_events.__code__.co_names
    assert list(inspect.signature(api.record).parameters) == ["event", "destination"]
    monkeypatch.setattr(api, "record", api.record)
    elastic.record_no_events()
    assert api.record(None) is api.record(None, "null") is None


def test_torch_looks_up_the_host_name_by_the_replaced_name():
    from torch.distributed.elastic.agent.server import api

    assert callable(api._get_fq_hostname)
    assert "_get_fq_hostname()" in inspect.getsource(api.SimpleElasticAgent)


def test_private_parts_of_torch_storages_exist():
    tensor = torch.arange(4)
    typed = tensor._typed_storage()
    assert type(typed) is torch.storage.TypedStorage
    untyped = typed._untyped_storage
    assert type(untyped) is torch.UntypedStorage
    assert untyped._cdata == tensor[1:]._typed_storage()._untyped_storage._cdata
    again = torch.storage.TypedStorage(wrap_storage=untyped, dtype=tensor.dtype, _internal=True)
    assert again._untyped_storage.data_ptr() == tensor.data_ptr() and again.dtype == tensor.dtype


def test_pickler_receives_typed_storage_of_a_tensor():
    seen = []

    class Watcher(cloudpickle.Pickler):
        def reducer_override(self, obj):
            seen.append(type(obj))
            return super().reducer_override(obj)

    Watcher(io.BytesIO()).dump(torch.arange(4))
    assert torch.storage.TypedStorage in seen


# cloudpickle.


def test_class_tracker_of_cloudpickle_exists():
    class Local:
        pass

    cloudpickle.dumps(Local)
    tracker_id = private._DYNAMIC_CLASS_TRACKER_BY_CLASS[Local]
    assert private._DYNAMIC_CLASS_TRACKER_BY_ID[tracker_id] is Local


def test_cloudpickle_extracts_globals_of_nested_code():
    def outer():
        def inner():
            return pytest

        return inner

    assert list(private._extract_code_globals(outer.__code__)) == ["pytest"]


def test_cloudpickle_takes_function_globals_from_globals_ref():
    namespace = {"__name__": "__main__", "x": 1}
    exec("def f(): return x", namespace)
    file = io.BytesIO()
    pickler = cloudpickle.Pickler(file, protocol=5)
    stand_in = {"__name__": "elsewhere"}
    pickler.globals_ref[id(namespace)] = stand_in
    pickler.dump(namespace["f"])
    again = pickle.loads(file.getvalue())
    assert again.__globals__["__name__"] == "elsewhere" and again() == 1


def test_cloudpickle_reduces_code_to_a_constructor_and_its_arguments():
    code = compile("def f():\n    return lambda: 1", "a cell", "exec")
    make, args = private._code_reduce(code)
    made = make(*args).replace(co_filename="a cell")
    assert make is type(code)
    assert (made.co_code, made.co_consts, list(made.co_lines())) == (
        code.co_code,
        code.co_consts,
        list(code.co_lines()),
    )


def test_children_of_a_process_without_a_file_run_the_given_main(tmp_path):
    (tmp_path / "given.py").write_text("def square(x):\n    return x * x\n")
    code = """
        import multiprocessing, sys
        from icelaunch_nb.system import cpython
        def square(x):
            raise AssertionError("the parent's own")
        cpython.set_main_of_children(lambda: sys.argv[1])
        for how in ("spawn", "forkserver"):
            with multiprocessing.get_context(how).Pool(1) as pool:
                print(pool.map(square, [3]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "given.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[9]\n[9]\n", done.stderr


# torch's compiler and operators.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's own imports
@pytest.mark.parametrize(
    "options",
    [
        {"backend": "eager"},
        {"backend": "aot_eager", "dynamic": True, "fullgraph": True},
        {"backend": "inductor", "dynamic": False, "options": {"max_autotune": True}},
        {"backend": "eager", "fullgraph": True},
    ],
    ids=str,
)
def test_options_of_a_compiled_function_are_read(options):
    context, function = torch_objects.reduce_torch_object(torch.compile(all_of, **options))[1]
    assert function is all_of
    backend, kept = torch_objects.reduce_torch_object(context)[1]
    assert {
        "backend": backend,
        **{
            name: value
            for name, value in kept.items()
            if value not in (None, {}) and (name, value) != ("fullgraph", False)
        },
    } == options
    again = torch_objects._apply(torch_objects._context(backend, kept), function)
    assert torch_objects.reduce_torch_object(torch_objects.reduce_torch_object(again)[1][0])[1] == (
        backend,
        kept,
    )


def all_of(x):
    return x


def one_more(x):
    return x + 1


def test_custom_backend_of_a_compiled_function_is_read():
    def mine(graph, inputs):
        return graph.forward

    context = torch_objects.reduce_torch_object(torch.compile(all_of, backend=mine))[1][0]
    assert torch_objects.reduce_torch_object(context)[1][0] is mine


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch warns so on Python 3.13.0
def test_compilation_of_a_module_is_read_and_restored():
    net = torch.nn.Linear(1, 1)
    assert torch_objects.reduce_torch_object(net) is NotImplemented
    net.compile(backend="eager")
    make, args, (state, context), *_ = torch_objects.reduce_torch_object(net)
    again = make(*args)
    torch_objects._set_and_compile(
        again, (state, torch_objects._context(*torch_objects.reduce_torch_object(context)[1]))
    )
    assert again._compiled_call_impl is not None and torch.equal(
        again(torch.ones(1)), net(torch.ones(1))
    )


@pytest.mark.parametrize("operator", ["add", "add.Tensor", "add.default", "_foreach_add"])
def test_torch_operators_are_reduced_to_their_names(operator):
    try:
        found = functools.reduce(getattr, operator.split("."), torch.ops.aten)
    except AttributeError:
        pytest.skip("this torch has no such overload")
    make, args = torch_operators.reduce_operator(found)
    assert make(*args) is found


@pytest.mark.parametrize("make", [torch.library.custom_op, torch.library.triton_op])
def test_registrations_of_a_custom_operator_are_read(make):
    name = f"test_cpython::{make.__name__}"

    @make(name, mutates_args=())
    def double(x: torch.Tensor, n: int = 2) -> torch.Tensor:
        return x * n

    def kernel(x, n=2):
        return x * (n + 1)

    def backward(ctx, grad):
        return grad

    double.register_kernel("cpu", kernel)
    double.register_autograd(backward)
    (qualname, is_triton, schema, mutated, devices, tags, function), state = (
        torch_operators.reduce_operator(double)[1:3]
    )
    assert (qualname, is_triton, mutated, devices, tags) == (
        name,
        make is torch.library.triton_op,
        (),
        None,
        [],
    )
    assert schema == "(Tensor x, SymInt n=2) -> Tensor" and function.__name__ == "double"
    assert state == {
        "kernels": {"cpu": kernel},
        "fake": None,
        "autograd": (backward, None),
        "vmap": None,
        "autocast": {},
        "dispatch": {},
    }


def test_operators_of_a_library_and_their_registrars_are_read():
    library = torch.library.Library("library_of_a_test", "DEF")
    library.define("same(Tensor x) -> Tensor")
    assert "library_of_a_test::same" in torch.library._defs
    # torch 2.6 names the file of the caller's caller.
    assert "registered at /" in torch._C._dispatch_dump("library_of_a_test::same")
    assert "library_of_a_test" in torch_operators._known_namespaces()
    assert torch.ops.loaded_libraries is not None


# torch warns that TorchScript is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_and_traced_functions_are_distinguished():
    scripted_one, traced = torch.jit.script(one_more), torch.jit.trace(one_more, torch.ones(1))
    assert (
        torchscript.reduce_scripted(scripted_one)[1][0] is one_more
        and torchscript.reduce_scripted(traced)[1][0] is None
    )


def test_parts_of_cmp_to_key_are_read():
    def compare(a, b):
        return b - a

    key = functools.cmp_to_key(compare)
    assert cpython.cmp_to_key_parts(key) == (compare, ()) and cpython.cmp_to_key_parts(key(3)) == (
        compare,
        (3,),
    )


# IPython.


def test_names_that_ipython_adds_are_recognised():
    code = """
        import builtins
        from IPython.core.interactiveshell import InteractiveShell
        from icelaunch_nb.pickling import ipython_names
        shell = InteractiveShell.instance()
        names = shell.user_ns
        carried = {"get_ipython": names["get_ipython"], "x": 1}
        ipython_names.adapt_globals(carried, ["display", "x"])
        print(
            ipython_names.is_shell(shell),
            ipython_names.reduce_injected(names["exit"])[0] is ipython_names.python_exit,
            ipython_names.is_ipython_open(names["open"]),
            carried == {"x": 1, "display": ipython_names.display},
            hasattr(builtins, "display"),
        )
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["True"] * 5, done.stderr
