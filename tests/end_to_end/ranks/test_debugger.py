"""A rank at a breakpoint waits, says where, and can be debugged from the kernel.

The other ranks wait for it, and no process is left behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from test_events import wait_for

import icelaunch_nb as ice
from icelaunch_nb.client import debug_client
from icelaunch_nb.rundir import debug_socket
from icelaunch_nb.rundir.journal import read_events

HERE = Path(__file__).name


def line_of(marker: str, path: str = __file__) -> int:
    """The number of the line that ends with the comment `marker`."""
    return next(
        number
        for number, line in enumerate(Path(path).read_text().splitlines(), 1)
        if line.endswith(f"# {marker}")
    )


def events_of(run: ice.Run) -> list[tuple]:
    events, _ = read_events(run._dir.journal, 0)
    return [
        (
            getattr(event, "kind", event.name),
            getattr(event, "rank", None),
            getattr(event, "where", None) or None,
        )
        for event in events
    ]


def stops() -> int:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    secret = torch.ones(1) * (rank + 41)
    if rank == 1:
        breakpoint()
        secret += 1  # stops here
        print("printed by the step")
    dist.all_reduce(secret)
    return int(secret)


def loops() -> int:
    made = 0
    for step in ice.get_context().steps(range(10**9)):
        made = step + 1
        if made == 5 and ice.get_context().rank == 0:
            ice.set_trace()
        time.sleep(0.002)
    return made


def test_a_rank_waits_at_a_breakpoint_says_where_and_goes_on(capfd) -> None:
    run = ice.launch(stops, nproc_per_node=2)
    wait_for(lambda: run.in_debugger)
    where = f"{HERE}, line {line_of('stops here')}"
    assert run.in_debugger == {1: where}
    assert f"rank 1 waits at {where}" in repr(run)
    assert run.events.debugger_start.is_set() and not run.events.debugger_end.is_set()
    time.sleep(0.3)  # nobody debugs it, and it waits
    assert run.state == "RUNNING"
    assert "debugger" in run.stacks()[1] and "all_reduce" in run.stacks()[0]
    run.debug(1, ["p secret", "n", "!secret *= 2", "n"])
    wait_for(lambda: run.in_debugger[1] == f"{HERE}, line {line_of('stops here') + 2}")
    assert events_of(run)[-1][:2] == ("debugger_step", 1)
    run.debug(1, ["p secret", "w", "c"])
    out = capfd.readouterr().out
    assert re.search(r"\(Pdb\) p secret\ntensor\(\[42\.\]\)\n\(Pdb\) n\n> .*\n.*printed by", out), (
        out
    )
    assert "(Pdb) n\nprinted by the step\n" in out
    assert "(Pdb) p secret\ntensor([86.])\n" in out
    assert out.count("multiprocessing") == out.count("worker/main") == 0
    assert run.result(30) == {0: 127, 1: 127}
    assert run.state == "SUCCEEDED" and run.in_debugger == {}
    assert run.events.debugger_end.is_set() and not run.events.debugger_start.is_set()
    names = [name for name, *_ in events_of(run)]
    assert names.count("debugger_start") == names.count("debugger_end") == 1
    log = run.logs(1)
    assert log.startswith(f"rank 1 waits at {where}") and "(Pdb) p secret\ntensor([42.])\n" in log
    assert [*Path(run.log_dir).rglob("*.sock")] == []


def test_the_same_prompt_at_each_iteration(capfd) -> None:
    def often() -> list[int]:
        found = []
        for number in range(3):
            breakpoint()
            found.append(number)
        return found

    run = ice.launch(often)
    run.debug(commands=["p number", "c", "p number", "!number = 7", "c", "c"])
    assert re.findall(r"^\d$", capfd.readouterr().out, re.M) == ["0", "1"]
    assert run.result(30) == {0: [0, 7, 2]}


def helps(number: int) -> int:
    return number * 2  # helps


def test_breakpoints_set_at_the_prompt_and_pdbs_own_name_for_it(capfd) -> None:
    def calls() -> int:
        import pdb

        pdb.set_trace(header="the first of all")
        total = sum(helps(number) for number in range(3))
        ice.set_trace()
        raise ValueError(total)

    run = ice.launch(calls, post_mortem=True)
    run.debug(
        0,
        [
            f"b {__file__}:{line_of('helps')}",
            "c",
            "p number",
            "c",
            "p number",
            "cl 1",
            f"b {__file__}:{line_of('helps')}",
            "c",
            "p number",
            "c",
        ],
    )
    assert "the first of all" in (out := capfd.readouterr().out)
    assert re.findall(r"^\d$", out, re.M) == ["0", "1", "2"]
    run.debug(0, ["p total", "c"])
    run.debug(0, ["p total + 1", "c"])
    assert re.findall(r"^\d$", capfd.readouterr().out, re.M) == ["6", "7"]
    with pytest.raises(ice.RunFailed, match="ValueError: 6"):
        run.result(30)


def test_stepping_through_the_end_of_the_function_leaves_the_debugger() -> None:
    def short() -> str:
        breakpoint()
        return "whole"

    run = ice.launch(short)
    run.debug(0, ["n", "n"], timeout=30)
    assert run.result(30) == {0: "whole"}
    assert [name for name, *_ in events_of(run)].count("debugger_end") == 1


@pytest.mark.parametrize("by", ["stop", "quit"])
def test_a_stop_while_a_rank_waits_ends_its_prompt_and_the_loops_together(by: str) -> None:
    run = ice.launch(loops, nproc_per_node=2)
    wait_for(lambda: run.in_debugger)
    with debug_client.connect_to_rank(run, 0) as here:
        "".join(here.read_output())
        if by == "stop":
            run.stop(grace=1000)
            "".join(here.read_output())
        else:
            here.execute("q")
        assert here.ended
    results = run.result(60)
    assert run.state == "STOPPED" and results[0] == results[1] >= 5
    assert run.events.debugger_end.is_set() and not run.events.debugger_start.is_set()


def test_a_stop_ends_a_rank_at_its_prompt_that_knows_nothing_of_steps() -> None:
    run = ice.launch(stops, nproc_per_node=2)
    wait_for(lambda: run.in_debugger)
    run.stop(grace=1000)
    with pytest.raises(ice.RunStopped):
        run.result(60)
    assert run.in_debugger == {} and run.state == "STOPPED"


def test_a_breakpoint_while_the_run_stops_is_passed() -> None:
    def late() -> str:
        for _ in ice.get_context().steps(range(10**9)):
            time.sleep(0.002)
        breakpoint()
        return "whole"

    run = ice.launch(late)
    wait_for(lambda: run.events.progress_bar_iter.value > 2)
    run.stop()
    assert run.result(20) == {0: "whole"}


def test_eight_ranks_at_once(capfd) -> None:
    def all_of_them() -> int:
        rank = ice.get_context().rank
        breakpoint()
        return rank

    run = ice.launch(all_of_them, nproc_per_node=8)
    wait_for(lambda: len(run.in_debugger) == 8)
    for rank in reversed(range(8)):
        run.debug(rank, ["!rank += 10", "c"])
        assert len(run.in_debugger) == rank
        assert run.events.debugger_start.is_set() == (rank > 0) != run.events.debugger_end.is_set()
    assert run.result(30) == {rank: rank + 10 for rank in range(8)}


def test_two_clients_see_the_same_and_both_can_send_commands() -> None:
    run = ice.launch(stops, nproc_per_node=2)
    wait_for(lambda: run.in_debugger)
    with debug_client.connect_to_rank(run, 1) as one, debug_client.connect_to_rank(run, 1) as other:
        for client in (one, other):
            assert "stops here" in "".join(client.read_output()) and client.prompt == "(Pdb) "
        assert one.execute("p 6 * 7") == "42\n"
        assert "".join(other.read_output()) == "(Pdb) p 6 * 7\n42\n"
        assert other.execute("p secret") == "tensor([42.])\n"
    with debug_client.connect_to_rank(run, 1) as later:
        assert "".join(later.read_output()) == "(Pdb) p secret\ntensor([42.])\n"
        later.send("c")
    assert run.result(30) == {0: 84, 1: 84}


def test_completion() -> None:
    run = ice.launch(stops, nproc_per_node=2)
    wait_for(lambda: run.in_debugger)
    assert debug_client.complete(run, 1, "p secr") == (["secret"], 2)
    found, start = debug_client.complete(run, 1, "p secret.rel")
    # The completion ends with ")" where the signature is known to be empty.
    assert start == 2 and any(name.startswith("secret.relu(") for name in found)
    assert "continue" in debug_client.complete(run, 1, "cont")[0]
    assert debug_client.complete(run, 0, "p secr") == ([], 6)
    with pytest.raises(ice.IcelaunchError, match="rank 0 .*doesn't wait"):
        debug_client.send_command(run, 0, "c")
    debug_client.send_command(run, 1, "c")
    run.result(30)


def test_in_a_thread_and_in_workers_of_a_data_loader(capfd) -> None:
    def elsewhere() -> list[int]:
        import torch

        class Data(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return 2

            def __getitem__(self, index: int) -> int:
                value = index + 1
                breakpoint()
                return value

        found = []

        def thread() -> None:
            local = 40
            breakpoint()
            found.append(local)

        threads = [threading.Thread(target=thread, name=f"feeder-{n}") for n in range(2)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        # Only fork works with a local class.
        loader = torch.utils.data.DataLoader(
            Data(), num_workers=2, batch_size=None, multiprocessing_context="fork"
        )
        for batch in loader:
            found.append(int(batch))
        return found

    run = ice.launch(elsewhere)
    run.debug(0, ["!local += 1", "n", "c", "!local += 2", "c"])  # one after the other
    assert re.findall(r"waits at .*, thread (feeder-\d)", capfd.readouterr().out)
    run.debug(0, ["!value *= 10", "c", "!value *= 10", "c"])
    assert "process" in capfd.readouterr().out
    assert sorted(run.result(30)[0]) == [10, 20, 41, 42]


def test_a_rank_that_raises_stops_there_first(capfd) -> None:
    def raises() -> str:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        ctx = ice.get_context()
        if ctx.restart_count == 0 and ctx.rank == 1:
            inner = ["deep"]
            raise ValueError(f"boom {len(inner)}")  # raised here
        dist.barrier()
        return "whole"

    run = ice.launch(raises, nproc_per_node=2, max_restarts=1, post_mortem=True)
    wait_for(lambda: run.in_debugger)
    assert run.in_debugger == {1: f"{HERE}, line {line_of('raised here')}"}
    time.sleep(0.3)
    assert run.state == "RUNNING" and run.attempt == 0
    run.debug(1, ["n", "step", "r", "unt 9", "p inner[0]", "c"])
    out = capfd.readouterr().out
    assert (
        out.count("the function is over: up, down and p look around, c goes on to fail") == 4
        and "'deep'" in out
    )
    assert run.result(30) == {0: "whole", 1: "whole"}
    assert run.restarts == 1
    event = next(
        event
        for event in read_events(run._dir.journal, 0)[0]
        if getattr(event, "kind", None) == "debugger_start"
    )
    assert event.why == "ValueError: boom 1"


def test_an_exception_whose_str_raises_stops_there_too() -> None:
    def raises() -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        raise Mute

    run = ice.launch(raises, post_mortem=True)
    wait_for(lambda: run.in_debugger)
    assert [event.why for event in run._run_state.debugged.values()] == [
        "Mute: <its __str__ raised RuntimeError>"
    ]
    run.debug(0, ["c"])
    with pytest.raises(ice.RunFailed, match="Mute: <(exception str|unprintable)"):
        run.result(30)


def test_post_mortem_of_a_program_or_inline_is_refused() -> None:
    for wrong in ({"fn": "true"}, {"fn": loops, "inline": True}):
        with pytest.raises(ice.ConfigError, match="post_mortem"):
            ice.launch(**wrong, post_mortem=True)


def test_a_breakpoint_again_after_a_restart() -> None:
    def twice() -> int:
        breakpoint()
        if ice.get_context().restart_count == 0:
            os._exit(3)
        return ice.get_context().restart_count

    run = ice.launch(twice, max_restarts=1)
    run.debug(0, ["c"])
    wait_for(lambda: run.attempt == 1)
    run.debug(0, ["c"])
    assert run.result(30) == {0: 1}


def test_a_rank_killed_at_its_prompt_is_a_failure_like_any_other() -> None:
    run = ice.launch(stops, nproc_per_node=2)
    wait_for(lambda: run.in_debugger)
    with debug_client.connect_to_rank(run, 1) as here:
        "".join(here.read_output())
        entry = run._run_state.ranks[1]
        entry.process.send(signal.SIGKILL)
        assert "".join(here.read_output()) == "" and here.ended
    with pytest.raises(ice.RunFailed, match="(?s)rank 1 of 2 failed.*SIGKILL"):
        run.result(30)
    assert run.in_debugger == {}
    with pytest.raises(ice.IcelaunchError, match="is over"):
        run.debug(1)


def test_clients_that_send_nonsense_never_read_or_vanish_do_no_harm() -> None:
    run = ice.launch(stops, nproc_per_node=2)
    wait_for(lambda: run.in_debugger)
    (path,) = Path(run.log_dir).rglob("*.sock")
    never_reads = debug_client.connect_to_rank(run, 1)
    for nonsense in (
        b"\xff\x00{}\n",
        b"[1, 2]\nnull\n{}\n",
        b'{"message": "command", "command": 5}\n',
        b'{"message": "complete", "line": null}\n',
        b'{"message": [], "command": "c"}\n',
        b'{"message": "command", "command": "p 1\\nc"}\n',
        b'{"message": "comm',
        b"x" * 3_000_000,
    ):
        with socket.socket(socket.AF_UNIX) as stranger:
            with debug_socket._address(path) as address:
                stranger.connect(address)
            with contextlib.suppress(OSError):  # the rank may close the connection
                stranger.sendall(nonsense)
    with debug_client.connect_to_rank(run, 1) as here:
        "".join(here.read_output())
        # The rank doesn't wait long for the client that never reads.
        assert here.execute("p 'x' * 5_000_000").count("x") == 5_000_000
        assert here.execute("p 6 * 7") == "42\n"
    assert run.in_debugger
    never_reads.close()
    run.debug(1, ["c"])
    assert run.result(30) == {0: 84, 1: 84}


def test_wrong_arguments_raise_value_error() -> None:
    run = ice.launch(stops, nproc_per_node=2)
    wait_for(lambda: run.in_debugger)
    for wrong, message in (
        ({"rank": 7}, "this machine has 0, 1"),
        ({"rank": 1, "timeout": -1}, "timeout=-1"),
        ({"commands": "c"}, "must be a list"),
    ):
        with pytest.raises(ValueError, match=message):
            run.debug(**wrong)
    run.kill()
    run.wait(20)


def test_debug_times_out_where_no_rank_comes_to_a_breakpoint() -> None:
    run = ice.launch(lambda: time.sleep(60))
    with pytest.raises(TimeoutError):
        run.debug(0, ["c"], timeout=0.2)
    run.kill()
    run.wait(20)


def test_the_socket_works_in_deep_directories_and_is_its_owners_alone(runs: Path) -> None:
    run = ice.launch(stops, nproc_per_node=2, log_dir=str(runs / ("deep" * 40) / ("deeper" * 30)))
    wait_for(lambda: run.in_debugger)
    (path,) = Path(run.log_dir).rglob("*.sock")
    assert len(str(path)) > 300
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_ISSOCK(path.stat().st_mode)
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in list(path.parents)[:3])
    run.debug(1, ["c"])
    run.result(30)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_user_is_refused_whatever_the_rights_of_the_files() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ice-", dir="/tmp"))
    try:
        with (
            debug_socket.listen(folder / "sock") as server,
            socket.socket(socket.AF_UNIX) as stranger,
        ):
            for path in (folder, folder / "sock"):
                path.chmod(0o777)
            os.seteuid(65534)
            try:
                stranger.connect(str(folder / "sock"))
            finally:
                os.seteuid(0)
            with (
                server.accept()[0] as connection,
                pytest.raises(PermissionError, match="user 65534"),
            ):
                debug_socket.check_peer(connection)
            with debug_socket.connect(folder / "sock"), server.accept()[0] as connection:
                debug_socket.check_peer(connection)
    finally:
        shutil.rmtree(folder)


def test_in_a_program(runs: Path, capfd) -> None:
    script = runs / "train.py"
    script.write_text("value = 1\nbreakpoint()\nprint('value is', value)\n")
    run = ice.launch(str(script), nproc_per_node=2)
    wait_for(lambda: len(run.in_debugger) == 2)
    assert run.in_debugger[0] == "train.py, line 3"
    run.debug(0, ["!value = 5", "c"])
    run.debug(1, ["c"])
    run.result(30)
    assert run.logs(0).endswith("value is 5\n") and run.logs(1).endswith("value is 1\n")


def test_breakpoints_that_were_switched_off_stay_off(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    run = ice.launch(stops, nproc_per_node=2)
    assert run.result(30) == {0: 84, 1: 84}


def test_at_the_interpreters_end(capfd) -> None:
    def leaves() -> str:
        import atexit

        def last() -> None:
            text = "last"
            breakpoint()
            print(text)

        atexit.register(last)
        return "whole"

    run = ice.launch(leaves)
    run.debug(0, ["p text", "c"])
    assert run.result(30) == {0: "whole"}
    assert run.logs(0).endswith("(Pdb) c\nlast\n")


def test_outside_of_a_rank_it_is_pythons_own_debugger(runs: Path) -> None:
    script = runs / "script.py"
    script.write_text(
        "import icelaunch_nb as ice\nvalue = 6\nice.set_trace()\nbreakpoint()\nprint('end')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        input="p value * 7\nc\np value * 8\nc\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(ice.__file__).parents[1]),
            "RANK": "0",
            "WORLD_SIZE": "1",
        },
    )
    assert "42" in done.stdout and "48" in done.stdout and done.stdout.endswith("end\n")
