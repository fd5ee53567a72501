"""What ranks take over from the launching process: environment, working directory, import path."""

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
    """What a rank takes over from the launching process.

    It passes from process to process in memory. It is never written to a run directory, since
    environments hold secrets.

    Attributes:
        environ: All environment variables at the launch.
        cwd: The working directory; empty if it was removed.
        sys_path: The import path.
        main_file: ``__main__.__file__`` where a script launches; None in a notebook.
        inherited: What a child of the launching process would inherit (`inherited.capture`).
        process_state: The result of `process_state.capture`.
    """

    environ: dict[str, str]
    cwd: str
    sys_path: list[str]
    main_file: str | None = None
    inherited: dict[str, Any] = field(default_factory=dict)
    process_state: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def capture(cls) -> LaunchEnvironment:
        """Captures those of this process, now."""
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
            inherited.capture(),
            process_state.capture(),
        )


@contextlib.contextmanager
def variables(extra: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables of this process, and restores them afterwards.

    A launch within this context passes them on early enough: OMP_NUM_THREADS and
    CUDA_VISIBLE_DEVICES must be set before torch is imported.
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
    """Gives this process the launching one's environment, working directory and import path.

    Variables that the launching process lacks are deleted.

    Args:
        environment: Those of the launching process.
        extra: Variables to add.
        as_rank: Whether to apply the inherited attributes, too. If the launching process's
            directory was removed, a rank's is a removed one as well: there, relative paths must
            lead nowhere, not into the host's directory.
    """
    wanted, found = {**environment.environ, **extra}, dict(os.environ)
    for name in found.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if found.get(name) != value:
            os.environ[name] = value
    sys.path[:] = environment.sys_path
    tempfile.tempdir = None  # the forkserver has computed it from its own environment
    try:
        os.chdir(environment.cwd)
    except OSError:
        if as_rank:
            _chdir_nowhere()
    if as_rank:
        inherited.apply(environment.inherited)


def _chdir_nowhere() -> None:
    """Changes to a new directory and removes it, since the launching process's is removed, too."""
    with contextlib.suppress(OSError):
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)


def become_main(environment: LaunchEnvironment) -> None:
    """Gives this process a fresh ``__main__`` and the defaults of a script that torchrun starts.

    Only a rank calls this. In an agent, multiprocessing would make each rank run the script that
    ``__main__`` names.
    """
    main = types.ModuleType("__main__")
    if environment.main_file:
        main.__file__ = environment.main_file
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    sys.argv = [environment.main_file or ""]  # `process_state.apply` sets the real one
    cpython.reset_start_method()
    bytecode.ignore_stale_bytecode()
