"""A request for stacks leaves the user's own signals alone.

It fires no handler of theirs, ends no process, and goes to no process but a rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for

import icelaunch_nb as ice
from icelaunch_nb.rundir import stack_signal, stacks
from icelaunch_nb.system.processes import Process

SETTABLE = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
OURS = stack_signal.SIGNUM


def ask_stacks(run: ice.Run) -> dict[int, str]:
    """The stacks of the ranks by faulthandler alone, without py-spy."""
    return stacks.collect(run._dir, run.attempt, run._run_state.ranks, 3)


def put_back_what_was_there() -> None:
    """Does for every signal what Lightning does at its end."""
    for signum in SETTABLE:
        signal.signal(signum, signal.signal(signum, lambda *_: None))


def put_back_sigusr1() -> None:
    signal.signal(signal.SIGUSR1, signal.signal(signal.SIGUSR1, lambda *_: None))


def unregister_all() -> None:
    for signum in SETTABLE:
        with contextlib.suppress(RuntimeError):  # those that `faulthandler.enable` is for
            faulthandler.unregister(signum)


def block_all() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SETTABLE)


def ignore_all() -> None:
    for signum in SETTABLE:
        signal.signal(signum, signal.SIG_IGN)


def close_all() -> None:
    """Files that the user opens get the descriptors that faulthandler and others had."""
    os.closerange(3, 4096)


WAYS: list[Callable[[], Any]] = [
    put_back_what_was_there,
    put_back_sigusr1,
    unregister_all,
    block_all,
    ignore_all,
    close_all,
]
HANDLES_ALL, REGISTERS, FORKS = len(WAYS), len(WAYS) + 1, len(WAYS) + 2


def silent_in_its_own_way(folder: Path) -> Any:
    """Keeps the rank silent. Returns the signals and the output that should not have come."""
    context, got = ice.get_context(), []
    own = folder / f"own-{context.rank}"
    if context.rank == HANDLES_ALL:
        for signum in SETTABLE:
            signal.signal(signum, lambda signum, _: got.append(signum))
    elif context.rank == REGISTERS:
        file = own.open("w")
        for signum in (signal.SIGUSR1, OURS):
            faulthandler.register(signum, file=file)
    elif context.rank == FORKS:
        if (child := os.fork()) == 0:
            signal.signal(OURS, signal.SIG_IGN)  # changes nothing for the rank
            while True:
                time.sleep(60)
    else:
        WAYS[context.rank]()
    with own.open("ab", buffering=0) as file, contextlib.ExitStack() as copies:
        for _ in range(40):
            copies.callback(os.close, os.dup(file.fileno()))
        (folder / f"ready-{context.rank}").touch()
        context.events.resume.wait()
    if context.rank == FORKS:
        os.kill(child, signal.SIGKILL)
        got.append(-os.waitpid(child, 0)[1] + signal.SIGKILL)
    return [signum for signum in got if signum] + sorted(signal.sigpending()), own.read_text()


def test_no_handler_of_the_users_is_fired_and_no_rank_ended(runs: Path) -> None:
    ranks = FORKS + 1
    run = ice.launch(
        silent_in_its_own_way, (runs,), nproc_per_node=ranks, devices="cpu", hang_after=0.6
    )
    wait_for(lambda: len(list(runs.glob("ready-*"))) == ranks or run.state.over)
    wait_for(lambda: len(run.silent) == ranks or run.state.over)
    found = ask_stacks(run)
    assert ask_stacks(run).keys() == found.keys() == set(range(ranks))
    for way in (put_back_what_was_there, put_back_sigusr1, unregister_all):
        assert "in silent_in_its_own_way" in found[WAYS.index(way)], way
    assert "in silent_in_its_own_way" in found[FORKS]
    for rank in (HANDLES_ALL, REGISTERS, WAYS.index(ignore_all), WAYS.index(close_all)):
        assert found[rank] == "", rank
    assert OURS.name in stacks.Stacks({0: ""}).groups[0][1]
    run.events.resume.set()
    assert run.result(60) == dict.fromkeys(range(ranks), ([], ""))


def test_a_signal_that_is_given_back_asks_again_and_a_c_call_that_holds_the_gil_answers(
    runs: Path,
) -> None:
    def takes(folder: Path) -> list[int]:
        got: list[int] = []
        old = signal.signal(OURS, lambda signum, _: got.append(signum))
        os.kill(os.getpid(), OURS)
        while not got:
            time.sleep(0.01)
        (folder / "taken").touch()
        while not (folder / "seen").exists():
            time.sleep(0.01)
        signal.signal(OURS, old)
        (folder / "back").touch()
        while not (folder / "answered").exists():
            ctypes.PyDLL(None).usleep(300_000)  # holds the GIL; a signal ends it
        return got

    run = ice.launch(takes, (runs,), devices="cpu")
    # A rank can be faster than its agent's event about it.
    wait_for(lambda: (runs / "taken").exists() and run.state == "RUNNING")
    assert ask_stacks(run) == {0: ""}
    (runs / "seen").touch()
    wait_for((runs / "back").exists)
    assert "in takes" in ask_stacks(run)[0]
    (runs / "answered").touch()
    assert run.result(30) == {0: [OURS]}


def test_a_rank_may_ask_for_stacks_itself() -> None:
    def asks() -> list[str]:
        run = ice.attach(os.environ["ICELAUNCH_RUN_DIR"])
        while not run.pids:
            time.sleep(0.01)
        own = ask_stacks(run)[0]
        ice.get_context().events.resume.wait()
        return [own]

    run = ice.launch(asks, devices="cpu")
    # Another process can still ask, too.
    wait_for(lambda: "wait" in ask_stacks(run)[0] if run.pids else False)
    run.events.resume.set()
    assert "in asks" in run.result(30)[0][0]


BECOMES = """
import os, signal, sys, time
got = []
signal.signal(signal.SIGURG, lambda *_: got.append(1))
open(sys.argv[1] + "/became", "w").close()
while not os.path.exists(sys.argv[1] + "/go"): time.sleep(0.01)
sys.exit(bool(got))
"""


@pytest.mark.parametrize("as_program", [False, True])
def test_a_rank_that_becomes_another_program_gets_no_signal(runs: Path, as_program: bool) -> None:
    (runs / "becomes.py").write_text(BECOMES)
    if as_program:
        run = ice.launch(str(runs / "becomes.py"), (str(runs),), devices="cpu", hang_after=0.5)
    else:
        command = [sys.executable, str(runs / "becomes.py"), str(runs)]
        run = ice.launch(os.execv, (sys.executable, command), devices="cpu", hang_after=0.5)
    wait_for((runs / "became").exists)
    wait_for(lambda: run.silent)
    assert ask_stacks(run) == {0: ""}
    (runs / "go").touch()
    run.wait(30)
    assert (
        run.state == "SUCCEEDED"
        if as_program
        else run.failures[0].title == "exited with code 0 before it returned"
    )


STRANGER = """
import fcntl, signal, sys, time
for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(signum, lambda signum, _: print(signum, flush=True))
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("ready", flush=True)
while True: time.sleep(60)
"""


def test_a_forged_journal_makes_no_process_signal_another(runs: Path) -> None:
    """Not even a process that has locked the file in the place of the stacks file."""
    run = ice.launch(time.sleep, (0,), devices="cpu")
    run.result(30)
    copy = runs / "sent"
    shutil.copytree(run.log_dir, copy, ignore=shutil.ignore_patterns("control", "agent_alive"))
    locked = runs / "locked"
    command = [sys.executable, "-c", STRANGER, str(locked)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stranger:
        try:
            assert stranger.stdout is not None and stranger.stdout.readline() == "ready\n"
            process = Process.of(stranger.pid)
            assert process is not None
            identity = {"pid": process.pid, "started": process.started}
            journal = [
                json.loads(line) for line in (copy / "journal.jsonl").read_text().splitlines()
            ]
            forged = []
            for event in journal:
                if event["event"] == "agent":
                    forged.append({**event, **identity})
                elif event["event"] == "attempt":
                    forged.append(
                        {**event, "ranks": [{**rank, **identity} for rank in event["ranks"]]}
                    )
            (copy / "journal.jsonl").write_text(
                "".join(json.dumps(event) + "\n" for event in forged)
            )
            file = copy / "attempt_0" / "0" / "stacks.txt"
            for stand_in in (
                lambda: None,
                lambda: os.link(locked, file),
                lambda: file.symlink_to(locked),
                lambda: os.mkfifo(file),
            ):
                stand_in()
                attached = ice.attach(str(copy))
                assert attached.state == "RUNNING"
                assert attached.stacks(0.5) == {0: ""}
                assert (
                    stacks.known_pids(attached._dir, attached.attempt, attached._run_state.ranks)
                    == {}
                ), "py-spy doesn't look into it either"
                file.unlink()
        finally:
            stranger.kill()
        assert stranger.stdout.read() == ""


def test_ranks_that_ignore_or_handle_sigterm_are_stopped_as_ever() -> None:
    def refuses_sigterm() -> None:
        signal.signal(
            signal.SIGTERM,
            signal.SIG_IGN if ice.get_context().rank else lambda *_: print("asked to go"),
        )
        print("ready")
        while True:
            time.sleep(0.05)

    run = ice.launch(refuses_sigterm, nproc_per_node=2, devices="cpu")
    wait_for(lambda: all(run.logs(rank) for rank in (0, 1)) if run.pids else False)
    run.stop(grace=0.5)
    assert run.wait(20) and run.state == "STOPPED"
    # A second SIGTERM may come right before SIGKILL.
    assert run.logs(0).startswith("ready\nasked to go\n")
