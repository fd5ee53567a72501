"""Exit codes and signals in words."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """The name of a signal: ``SIGKILL`` for 9; ``signal 77`` for a number without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_exit(code: int | None) -> str:
    """An exit code as a clause: ``was killed by SIGKILL``, ``ended with code 1``.

    Args:
        code: As multiprocessing and subprocess report it, negative for a signal.
    """
    if code is not None and code < 0:
        return f"was killed by {signal_name(-code)}"
    return f"ended with code {code}"
