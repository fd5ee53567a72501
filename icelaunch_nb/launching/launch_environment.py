"""The launching process as its ranks find it: environment, working directory, import path."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from icelaunch_nb.launching import inherited, process_state
from icelaunch_nb.rundir.records import Record
from icelaunch_nb.system import bytecode, cpython


@dataclass(eq=False, repr=False)
class LaunchEnvironment(Record):
    """The launching process as a rank should find it: environment, working directory, import path.

    Kept in memory and handed from process to process; never written to a run directory, since environments hold secrets.

    Attributes:
        environ: All variables at the launch.
        cwd: Working directory; empty where that was removed.
        sys_path: Import path.
        main_file: ``__main__.__file__`` where a script launches; None in a notebook.
        inherited: What a child of the launching process would inherit (`inherited.here`).
        process_state: What `process_state.capture` gave.
    """

    environ: dict[str, str]
    cwd: str
    sys_path: list[str]
    main_file: str | None = None
    inherited: dict[str, Any] = field(default_factory=dict)
    process_state: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def here(cls) -> LaunchEnvironment:
        """Those of this process, now."""
        main_file = getattr(sys.modules.get("__main__"), "__file__", None)
        try:
            cwd = os.getcwd()
        except FileNotFoundError:
            cwd = ""
        return cls(
            dict(os.environ),
            cwd,
            [str(path) for path in sys.path],
            os.path.normpath(os.path.join(cwd, main_file)) if isinstance(main_file, str) else None,
            inherited.here(),
            process_state.capture(),
        )


@contextlib.contextmanager
def variables(extra: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with `extra` laid over, put back afterwards.

    A launch within it takes them along early enough: OMP_NUM_THREADS and CUDA_VISIBLE_DEVICES must be there before torch is
    imported.
    """
    before = {name: os.environ.get(name) for name in extra}
    os.environ.update(extra)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old


def enter(environment: LaunchEnvironment, extra: dict[str, str], *, as_rank: bool = False) -> None:
    """Makes this process look like the launching one: environment (deletions included), directory, import path.

    Args:
        environment: Those of the launching process.
        extra: Variables beside its own.
        as_rank: Also what a child of it would inherit, and a removed working directory where it has one: in a rank, relative paths
            must lead nowhere then, not into the host's directory.
    """
    wanted, found = {**environment.environ, **extra}, dict(os.environ)
    for name in found.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if found.get(name) != value:
            os.environ[name] = value
    sys.path[:] = environment.sys_path
    tempfile.tempdir = None  # the forkserver looked it up by its own environment
    try:
        os.chdir(environment.cwd)
    except OSError:
        if as_rank:
            _chdir_nowhere()
    if as_rank:
        inherited.apply(environment.inherited)


def _chdir_nowhere() -> None:
    """Stands in a directory that was removed, as the launching process does."""
    with contextlib.suppress(OSError):
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)


def become_main(environment: LaunchEnvironment) -> None:
    """Gives this process a fresh ``__main__`` and the defaults that a script started by torchrun would find.

    Only a rank does this: in an agent, multiprocessing would have each rank run the script that ``__main__`` names.
    """
    main = types.ModuleType("__main__")
    if environment.main_file:
        main.__file__ = environment.main_file
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    sys.argv = [environment.main_file or ""]  # until the process state comes
    cpython.reset_start_method()
    bytecode.ignore_stale_bytecode()
