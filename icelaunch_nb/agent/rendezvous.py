"""The rendezvous of agents: an embedded store for one machine, torch's registry otherwise."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.torch_version import TorchVersion

from icelaunch_nb.config import LaunchConfig
from icelaunch_nb.system.loopback import is_loopback

# Before torch 2.8, a store on libuv refuses a descriptor to listen on. torch's older server accepts
# one, and uses the same protocol.
_USE_LIBUV = TorchVersion(torch.__version__) >= "2.8"


def make_handler(config: LaunchConfig, run_id: str) -> RendezvousHandler:
    """Makes the rendezvous that `config` asks for."""
    if not config.rdzv_endpoint:
        return EmbeddedRendezvous(run_id, config.rdzv_configs["timeout"])
    settings = dict(config.rdzv_configs)
    # c10d calls its time for joining `join_timeout`. The other backends have `timeout` alone.
    settings.setdefault("join_timeout", settings["timeout"])
    if config.rdzv_backend == "static":
        settings.setdefault("rank", 0)
    parameters = RendezvousParameters(
        backend=config.rdzv_backend,
        endpoint=config.rdzv_endpoint,
        run_id=run_id,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        local_addr=local_addr(config),
        **settings,
    )
    handler = get_rendezvous_handler(parameters)
    return FreshStores(handler, config) if config.rdzv_backend == "static" else handler


def local_addr(config: LaunchConfig) -> str | None:
    """The address of this machine for its peers.

    Returns:
        ``127.0.0.1`` for an endpoint on loopback, so that torch doesn't ask DNS for this machine's
        address. None: torch finds it out.
    """
    return "127.0.0.1" if is_loopback(config.rdzv_endpoint) else None


def _descriptors() -> set[int]:
    """This process's open descriptors. Empty on libuv, where nobody needs them."""
    if _USE_LIBUV:
        return set()
    # The descriptor that `listdir` used doesn't exist any more.
    return {int(name) for name in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{name}")}


class EmbeddedRendezvous(RendezvousHandler):
    """The rendezvous of a single node, with a store that listens on 127.0.0.1 only.

    Each attempt gets a store of its own, since keys of a dead attempt mislead gloo
    (pytorch#135712). The socket is bound here and passed on (``master_listen_fd``), because a
    TCPStore that gets a host name listens on all addresses.

    Args:
        run_id: The run's id.
        timeout: Time-out of the store's operations, in seconds.
    """

    def __init__(self, run_id: str, timeout: float) -> None:
        self._run_id, self._timeout = run_id, timedelta(seconds=timeout)
        self._closed, self._round = False, 0
        self._store: TCPStore | None = None

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return "embedded"

    def next_rendezvous(self) -> RendezvousInfo:
        if self._closed:
            raise RendezvousClosedError
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        port = listener.getsockname()[1]
        before = _descriptors()
        self._store = TCPStore(
            "127.0.0.1",
            port,
            world_size=None,
            is_master=True,
            timeout=self._timeout,
            wait_for_workers=False,
            multi_tenant=False,
            use_libuv=_USE_LIBUV,
            master_listen_fd=listener.detach(),  # the store owns the descriptor from here on
        )
        # Programs would inherit the pipe of the older server.
        for fd in _descriptors() - before:
            with contextlib.suppress(OSError):  # it is closed by now
                os.set_inheritable(fd, False)
        self._round += 1
        store = PrefixStore(f"agent/{self._round}", self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo("127.0.0.1", port))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed, self._store = True, None
        return True


class FreshStores(RendezvousHandler):
    """torch's static rendezvous, with a new store for the ranks of each attempt.

    The static backend gives its one store to the ranks of every attempt. It ignores the variable
    that prevents this in the other backends (``TORCH_DISABLE_SHARE_RDZV_TCP_STORE``). With
    one store, restarts failed in 4 of 8 runs. Here the first node chooses a new port each round,
    and its rank 0 hosts the store.

    Args:
        inner: The static rendezvous.
        config: The launch's configuration.
    """

    def __init__(self, inner: RendezvousHandler, config: LaunchConfig) -> None:
        self._inner, self._round = inner, 0
        self._host = config.rdzv_endpoint.rpartition(":")[0].strip("[]")

    @property
    def use_agent_store(self) -> bool:
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        info = self._inner.next_rendezvous()
        self._round += 1
        store = PrefixStore(f"round/{self._round}", info.store)
        if info.rank == 0:
            store.set("port", str(_free_port()))
        port = int(store.get("port"))
        return RendezvousInfo(
            store, info.rank, info.world_size, RendezvousStoreInfo(self._host, port)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_backend(self) -> str:
        return self._inner.get_backend()

    def is_closed(self) -> bool:
        return self._inner.is_closed()

    def set_closed(self) -> None:
        self._inner.set_closed()

    def num_nodes_waiting(self) -> int:
        return self._inner.num_nodes_waiting()

    def get_run_id(self) -> str:
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        return self._inner.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
