"""The launching process as its ranks find it: environment, working directory, import path."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from icelaunch_nb import cpython, imports


@dataclass
class Surroundings:
    """The launching process as a rank should find it: environment, working directory, import path.

    Kept in memory and handed from process to process; never written to a run directory, since environments hold secrets.

    Attributes:
        environ: All variables at the launch.
        cwd: Working directory.
        sys_path: Import path.
        main_file: ``__main__.__file__`` where a script launches; None in a notebook.
    """

    environ: dict[str, str]
    cwd: str
    sys_path: list[str]
    main_file: str | None = None

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process, now."""
        main_file = getattr(sys.modules.get("__main__"), "__file__", None)
        try:
            cwd = os.getcwd()
        except FileNotFoundError:
            cwd = os.path.sep
        return cls(
            dict(os.environ),
            cwd,
            [str(path) for path in sys.path],
            os.path.abspath(main_file) if isinstance(main_file, str) else None,
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


def enter(surroundings: Surroundings, extra: dict[str, str]) -> None:
    """Makes this process look like the launching one: environment (deletions included), directory, import path."""
    wanted = {**surroundings.environ, **extra}
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    with contextlib.suppress(OSError):  # a directory that was removed: the kernel stands in it too
        os.chdir(surroundings.cwd)
    sys.path[:] = surroundings.sys_path
    tempfile.tempdir = None  # the forkserver looked it up by its own environment


def become_main(surroundings: Surroundings) -> None:
    """Gives this process a fresh ``__main__`` and the defaults that a script started by torchrun would find.

    Only a rank does this: in an agent, multiprocessing would have each rank run the script that ``__main__`` names.
    """
    main = types.ModuleType("__main__")
    if surroundings.main_file:
        main.__file__ = surroundings.main_file
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    sys.argv = [surroundings.main_file or ""]
    cpython.forget_start_method()
    imports.trust_only_fresh_bytecode()
