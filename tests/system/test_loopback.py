"""Tests of `loopback`: endpoints on this machine are recognised without asking DNS."""

from __future__ import annotations

import pytest

from icelaunch_nb.system.loopback import interface, is_loopback


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost",
        "localhost:0",
        "127.0.0.1",
        "127.0.0.1:29500",
        "127.8.8.8:1",
        "::1",
        "[::1]",
        "[::1]:29500",
    ],
)
def test_endpoint_is_loopback(endpoint):
    assert is_loopback(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "node0",
        "node0:29500",
        "10.0.0.1:1",
        "localhost.x.example:1",
        "127.0.0.1.x.example:1",
        "fe80::1",
        "0.0.0.0:1",
    ],
)
def test_endpoint_is_not_loopback(endpoint):
    assert not is_loopback(endpoint)


def test_interface_exists_on_this_machine():
    import socket

    assert interface() in [name for _, name in socket.if_nameindex()]
