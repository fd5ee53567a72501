"""No other user gets at a run: modes, owners, sockets. Secrets are written nowhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import psutil
import pytest
from waiting import wait_for

import icelaunch_nb as ice
from icelaunch_nb.client.host_pool import hosts
from icelaunch_nb.notebook.panel import summary
from icelaunch_nb.notebook.panel.view_model import ViewModel
from icelaunch_nb.pickling import packing
from icelaunch_nb.rundir.paths import RunDir

STRANGER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def everything() -> str:
    """Uses every feature that writes files: metrics, steps, checkpoints, stacks, results."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    context = ice.get_context()
    for step in context.steps(range(3)):
        context.report(loss=float(step))
        dist.all_reduce(torch.ones(1))
    context.checkpoint_saved("nowhere")
    if context.restart_count == 0 and context.rank == 0:
        raise RuntimeError("once more")
    return "x" * (2 << 20)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def accessible_to_others(base: Path) -> list[str]:
    """The files that anybody but their owner could read or write, with their modes."""
    found = [base, *base.rglob("*")]
    return [
        f"{path} {oct(stat.S_IMODE(path.lstat().st_mode))}"
        for path in found
        if not path.is_symlink() and stat.S_IMODE(path.lstat().st_mode) & 0o077
    ]


def host_and_descendants(run: ice.Run) -> list[psutil.Process]:
    """The host and every process that descends from it."""
    host = psutil.Process(hosts.for_environ(os.environ).process.pid)
    found = [host, *host.children(recursive=True)]
    assert {run._run_state.agent.pid, *run.pids.values()} <= {process.pid for process in found}
    return found


def connections(process: psutil.Process, kind: str) -> Any:
    """The connections of a process: psutil 6 renamed the method."""
    return (
        process.net_connections(kind)
        if hasattr(process, "net_connections")
        else process.connections(kind)
    )


def unix_sockets(process: psutil.Process) -> set[str]:
    """The names of its sockets; none if it ended meanwhile, as a spare rank may."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {connection.laddr for connection in connections(process, "unix") if connection.laddr}
    return set()


@pytest.mark.parametrize("mask", [0, pytest.param(0o022, marks=pytest.mark.long), 0o077])
def test_every_file_is_its_owners_alone_whatever_the_umask(
    mask: int, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(runs / "state"))
    with umask(mask):
        # With a variable of its own it gets a host of its own, which was started under this umask.
        monkeypatch.setenv("TORCH_OF_THIS_TEST", str(mask))
        events = ice.Events()
        events.pause.set()
        run = ice.launch(everything, nproc_per_node=2, max_restarts=1, events=events)
        other = ice.attach(run.log_dir)
        wait_for(events.paused.is_set, 30)
        wait_for(lambda: len(run.stacks()) == 2, 20)
        assert accessible_to_others(Path(run.log_dir)) == []
        run.resume()
        assert len(run.result(60)) == 2 and other.state == "SUCCEEDED"
        inline = ice.launch(os.getpid, inline=True)
        assert accessible_to_others(Path(run.log_dir).parent) == []
        assert accessible_to_others(platformdirs.user_state_path("icelaunch_nb")) == []
        assert accessible_to_others(Path(hosts.for_environ(os.environ)._socket_dir)) == []
    RunDir(Path(inline.log_dir)).journal.unlink()  # `runs` would call this process left behind
    assert {"metrics.jsonl", "stacks.txt", "result.pkl", "stdout.log"} <= {
        path.name for path in Path(run.log_dir).rglob("*")
    }


@as_root
@pytest.mark.parametrize("name", ["result.pkl", "error.pkl", "call.pkl"])
def test_a_file_of_another_user_is_not_unpickled(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    packing.dump(Bomb(tmp_path / "exploded"), path)
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(ice.IcelaunchError, match=f"belongs to user {STRANGER}"):
        packing.load(path)
    assert not (tmp_path / "exploded").exists()


@as_root
def test_a_result_or_run_of_another_user_is_refused(runs: Path) -> None:
    run = ice.launch(lambda: 1, nproc_per_node=1)
    assert run.wait(60)
    path = RunDir(Path(run.log_dir)).rank(0, 0).result
    packing.dump(Bomb(runs / "exploded"), path)
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(ice.RunFailed, match=f"belongs to user {STRANGER}"):
        ice.Run(run.log_dir).result(1)
    os.chown(run.log_dir, STRANGER, STRANGER)
    with pytest.raises(ice.IcelaunchError, match=f"belongs to user {STRANGER}"):
        ice.attach(run.log_dir)
    assert not (runs / "exploded").exists()


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_process_has_a_socket_beyond_loopback(runs: Path) -> None:
    """Sockets are listed again and again: in rendezvous, process group and collectives."""

    def collectives() -> None:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        while not ice.get_context().events.resume.is_set():
            dist.all_reduce(torch.ones(1000))
            dist.barrier()

    ice.launch(os.getpid).result(60)
    run = ice.launch(collectives, nproc_per_node=3)
    seen: set[tuple[str, str]] = set()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(seen) < 4:
        for process in psutil.Process(hosts.for_environ(os.environ).process.pid).children(
            recursive=True
        ):
            with contextlib.suppress(psutil.Error):
                for socket in connections(process, "inet"):
                    # gloo and torch's store have the C library look up this host's name.
                    if socket.raddr and socket.raddr.port == 53:
                        continue
                    seen |= {(socket.status, end.ip) for end in (socket.laddr, socket.raddr) if end}
        if run.state == "RUNNING" and {status for status, _ in seen} >= {"LISTEN", "ESTABLISHED"}:
            deadline = min(deadline, time.monotonic() + 1)
    run.events.resume.set()
    run.kill()
    assert run.wait(30)
    assert {status for status, _ in seen} >= {"LISTEN", "ESTABLISHED"}, (
        "the sockets were listed too late"
    )
    assert {address.removeprefix("::ffff:") for _, address in seen} == {"127.0.0.1"}


@as_root
def test_another_user_can_open_nothing_of_a_run(runs: Path) -> None:
    """Tries every Unix socket, FIFO and file of ours, and the environment of every process."""

    def wait() -> None:
        if ice.get_context().rank == 0:
            breakpoint()
        ice.get_context().events.resume.wait(60)

    for folder in (runs, *runs.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)  # pytest's own directories would keep the other user out
    run = ice.launch(wait, nproc_per_node=2)
    wait_for(lambda: run.in_debugger, 20)
    try:
        mine = host_and_descendants(run)
        names = set().union(*map(unix_sockets, mine))
        assert not [name for name in names if name.startswith(("@", "\0"))], (
            "an abstract socket asks nobody for rights"
        )
        assert any(name.endswith("debugger.sock") for name in names) and len(names) >= 2
        targets = {
            "sockets": sorted(names),
            "files": [str(path) for path in Path(run.log_dir).rglob("*")] + [run.log_dir],
            "proc": [
                f"/proc/{process.pid}/{name}"
                for process in mine
                for name in ("environ", "mem", "fd/1")
            ],
        }
        opened = as_another_user(lambda: try_to_open(targets))
    finally:
        run.kill()
    assert run.wait(30)
    assert opened == []


def as_another_user(fn: Any) -> Any:
    """What a function returns in a copy of this process that belongs to another user."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # The fork of a process with threads warns. This one starts no thread.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            os.write(writing, json.dumps(fn()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def try_to_open(targets: dict[str, list[str]]) -> list[str]:
    """Those of the targets that this user can connect to or open."""
    opened = []
    for name in targets["sockets"]:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(2)
        with contextlib.suppress(OSError):
            client.connect(name)
            opened.append(name)
        client.close()
    for name in targets["files"] + targets["proc"]:
        for flags in (os.O_RDONLY, os.O_WRONLY):
            with contextlib.suppress(OSError):
                os.close(os.open(name, flags | os.O_NONBLOCK))
                opened.append(name)
    return opened


def test_secrets_of_the_environment_are_shown_and_written_nowhere(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2" + os.urandom(8).hex()
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_SETTING"):
        monkeypatch.setenv(name, secret)

    def use_it(fail: bool) -> str:
        found = os.environ["HF_TOKEN"]
        ice.get_context().events.resume.wait(60)
        if fail and ice.get_context().restart_count == 0:
            raise RuntimeError("a failure with its frames")
        return hashlib.sha256(found.encode()).hexdigest()

    texts = []
    for fail in (False, True):
        run = ice.launch(
            use_it,
            (fail,),
            nproc_per_node=2,
            max_restarts=1,
            metrics_cfg={"handler": "console"},
            run_id="secretive",
        )
        wait_for(lambda: run.state == "RUNNING", 20)
        for process in host_and_descendants(run):
            with contextlib.suppress(psutil.Error):
                texts += [f"{process.pid} {process.environ()} {process.cmdline()}"]
        wait_for(lambda: all(run.stacks().values()), 20)
        texts += list(run.stacks().values())
        run.resume()
        assert run.result(60)[1] == hashlib.sha256(secret.encode()).hexdigest(), (
            "the ranks do have it"
        )
        texts += [
            repr(run),
            json.dumps(ViewModel(run).run_state()),
            summary.text(run),
            summary.html(run),
            repr(ice.runs()),
        ]
        texts += [
            path.read_bytes().decode(errors="replace")
            for path in Path(run.log_dir).rglob("*")
            if path.is_file()
        ]
    texts += [hosts.for_environ(os.environ).log_tail()]
    assert len("".join(texts)) > 10_000
    assert not [text for text in texts if secret in text]
