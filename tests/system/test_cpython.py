"""The doors to private names of CPython, torch and cloudpickle: each is opened here for real, so a moved one is noticed."""

from __future__ import annotations

import ast
import inspect
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import cloudpickle
import pytest
import torch
from cloudpickle import cloudpickle as private

from icelaunch_nb import cpython


def run_script(folder: Path, code: str) -> str:
    """Runs code as a file, so that a forkserver's children can import its functions; returns what was printed."""
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
    assert not done.stderr
    return done.stdout


# CPython.

FAMILY = """
    import multiprocessing, os
    from icelaunch_nb import cpython

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


def test_a_child_of_a_forkserver_can_share_it_and_would_start_its_own_otherwise(tmp_path):
    assert run_script(tmp_path, FAMILY) == "shared\nits own\n"


def test_a_process_that_no_forkserver_started_has_none_to_share():
    with pytest.raises(RuntimeError, match="not started by a forkserver"):
        cpython.share_parents_forkserver()


def test_a_forkserver_child_can_find_the_start_method_that_a_script_finds(tmp_path):
    said = run_script(
        tmp_path,
        """
        import multiprocessing, subprocess, sys
        from icelaunch_nb import cpython

        def child(answers):
            before = multiprocessing.get_start_method()
            cpython.forget_start_method()
            answers.send((before, multiprocessing.get_start_method(allow_none=True), multiprocessing.get_start_method()))

        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            ours, theirs = context.Pipe(False)
            process = context.Process(target=child, args=(theirs,))
            process.start()
            before, forgotten, after = ours.recv()
            process.join()
            plain = subprocess.check_output(
                [sys.executable, "-c", "import multiprocessing; print(multiprocessing.get_start_method())"], text=True)
            print(before, forgotten, after == plain.strip())
    """,
    )
    assert said == "forkserver None True\n"


def test_a_process_that_leaves_by_os_exit_can_run_its_exit_functions_and_wait_for_its_threads(
    tmp_path,
):
    said = run_script(
        tmp_path,
        """
        import atexit, multiprocessing, os, threading
        from icelaunch_nb import cpython

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
    assert said == "thread atexit\n0\n"


def test_finalizers_of_a_forkserver_do_not_run_in_its_children_while_new_ones_do(tmp_path):
    said = run_script(
        tmp_path,
        """
        import weakref, atexit
        from icelaunch_nb import cpython

        class Thing: pass
        old, new = Thing(), Thing()
        finalizer = weakref.finalize(old, print, "old")
        cpython.keep_finalizers_from_children()
        weakref.finalize(new, print, "new")
        assert finalizer.alive
        cpython.run_exit_functions()
    """,
    )
    assert said == "new\n"


# torch.


@pytest.fixture(scope="module")
def plain_agent():
    """torch's own agent, made but not run: it meets nobody."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

    spec = WorkerSpec(
        role="r", local_world_size=1, rdzv_handler=None, entrypoint=print, max_restarts=2
    )
    return LocalElasticAgent(spec, DefaultLogsSpecs(log_dir="/dev/null"), start_method="spawn")


def test_every_name_of_torchs_agent_that_we_lean_on_is_there(plain_agent):
    from icelaunch_nb.agent.elastic import TORCH_NAMES

    assert TORCH_NAMES
    assert [name for name in TORCH_NAMES if not hasattr(plain_agent, name)] == []
    assert plain_agent._remaining_restarts == 2
    assert plain_agent._worker_watchdog is None and plain_agent._health_check_server is None


def test_torch_can_call_what_we_override_as_it_calls_its_own(plain_agent):
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
        assert list(ours.parameters) == list(theirs.parameters), name


def test_private_names_of_the_agents_room_are_all_listed():
    """What ``elastic.py`` reads of ``self`` and doesn't set itself is torch's, and must stand in TORCH_NAMES."""
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


def test_torch_asks_for_the_host_name_by_the_name_that_we_replace():
    from torch.distributed.elastic.agent.server import api

    assert callable(api._get_fq_hostname)
    assert "_get_fq_hostname()" in inspect.getsource(api.SimpleElasticAgent)


def test_torch_takes_storages_apart_as_we_expect():
    tensor = torch.arange(4)
    typed = tensor._typed_storage()
    assert type(typed) is torch.storage.TypedStorage
    untyped = typed._untyped_storage
    assert type(untyped) is torch.UntypedStorage
    assert untyped._cdata == tensor[1:]._typed_storage()._untyped_storage._cdata
    again = torch.storage.TypedStorage(wrap_storage=untyped, dtype=tensor.dtype, _internal=True)
    assert again._untyped_storage.data_ptr() == tensor.data_ptr() and again.dtype == tensor.dtype


def test_a_tensors_storage_comes_by_the_pickler_as_a_typed_one():
    seen = []

    class Watcher(cloudpickle.Pickler):
        def reducer_override(self, obj):
            seen.append(type(obj))
            return super().reducer_override(obj)

    Watcher(io.BytesIO()).dump(torch.arange(4))
    assert torch.storage.TypedStorage in seen


# cloudpickle.


def test_cloudpickles_private_names_are_where_we_look():
    class Local:
        pass

    cloudpickle.dumps(Local)
    tracker_id = private._DYNAMIC_CLASS_TRACKER_BY_CLASS[Local]
    assert private._DYNAMIC_CLASS_TRACKER_BY_ID[tracker_id] is Local


def test_cloudpickle_extracts_globals_also_of_nested_code():
    def outer():
        def inner():
            return pytest

        return inner

    assert list(private._extract_code_globals(outer.__code__)) == ["pytest"]


def test_cloudpickle_takes_a_functions_globals_from_globals_ref():
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
