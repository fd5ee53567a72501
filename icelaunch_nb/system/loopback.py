"""The loopback interface of this machine, and the endpoints that lie on it."""

from __future__ import annotations

import ipaddress
import socket

from icelaunch_nb.errors import HostError


def is_loopback(endpoint: str) -> bool:
    """Whether a host, or ``host:port``, is this machine's loopback. It doesn't ask DNS."""
    host = endpoint.rpartition(":")[0] if endpoint.count(":") == 1 or "]:" in endpoint else endpoint
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def interface() -> str | None:
    """The name of the loopback interface (``lo``); None where no interface has a known name."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), None)


def check() -> None:
    """Checks that 127.0.0.1 can be reached. Without it, ranks would wait until their time-out.

    Raises:
        HostError: There is no loopback interface, or it is down.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("127.0.0.1", 9))  # UDP: looks up the route and sends nothing
        except OSError as error:
            raise HostError(
                f"ranks can't reach each other: 127.0.0.1: {error.strerror}; "
                "the loopback interface is missing or down (`ip link set lo up`)"
            ) from None
