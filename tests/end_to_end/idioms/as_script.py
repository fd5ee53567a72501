"""Runs each idiom as a script, under torchrun. Results go into ``outcomes-<rank>.json``."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
import types
from pathlib import Path

import torch
import torch.distributed  # so that the forks needn't
from idioms import Idiom, read

_PATIENCE = 60  # seconds that one idiom may take


def main(folder: Path) -> None:
    rank, outcomes = int(os.environ["RANK"]), {}
    for number, idiom in enumerate(read()):
        port = _agreed_port(folder / f"{number}.port", rank)
        if rank < idiom.ranks:
            outcomes[idiom.id] = _in_a_fork(idiom, folder / f"{number}-{rank}.py", port)
    (folder / f"outcomes-{rank}.json").write_text(json.dumps(outcomes))


def _agreed_port(path: Path, rank: int) -> int:
    """A port that rank 0 finds free and writes into a file for the other ranks.

    A process group in this process would be in the way of those in its forks.
    """
    if rank == 0:
        draft = path.with_suffix(".draft")
        draft.write_text(str(_free_port()))
        draft.rename(path)
    while not path.exists():
        time.sleep(0.002)
    return int(path.read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _in_a_fork(idiom: Idiom, script: Path, port: int) -> tuple[str, object]:
    answer = script.with_suffix(".json")
    pid = os.fork()
    if pid == 0:
        os.setsid()
        faulthandler.dump_traceback_later(_PATIENCE, exit=True)
        try:
            os.environ.update(
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                WORLD_SIZE=str(idiom.ranks),
                TORCHELASTIC_USE_AGENT_STORE="False",
            )
            answer.write_text(json.dumps(_run(idiom, script)))
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.waitpid(pid, 0)
    # Ends workers that a script's regular end would have ended.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return tuple(json.loads(answer.read_text())) if answer.exists() else ("died", "")


def _run(idiom: Idiom, script: Path) -> tuple[str, object]:
    """Runs the cell as a script, as ``__main__``, and then its ``work()``."""
    script.write_text(idiom.code)
    main = types.ModuleType("__main__")
    main.__file__ = str(script)
    sys.modules["__main__"] = main
    sys.argv = [str(script)]
    sys.path[0] = str(script.parent)
    torch.default_generator.seed()  # the parent's state is the same in each fork
    sys.stdin = open(os.devnull)
    exec(compile(idiom.code, str(script), "exec", dont_inherit=True), vars(main))
    try:
        return "returns", main.work()
    except Exception as error:
        return "raises", f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
