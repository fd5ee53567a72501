"""Which endpoints are this machine's own, and the interface that they are reached by."""

from __future__ import annotations

import ipaddress
import socket


def is_loopback(endpoint: str) -> bool:
    """Whether a host, or ``host:port``, means this machine's loopback; decided without DNS."""
    host = endpoint.rpartition(":")[0] if endpoint.count(":") == 1 or "]:" in endpoint else endpoint
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def interface() -> str | None:
    """Its name (``lo``); None where there is none of a known name."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), None)
