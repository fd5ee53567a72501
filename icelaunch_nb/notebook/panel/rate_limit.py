"""Limits how much a panel sends.

A browser can handle about 1 MB and 20 messages a second from one panel.
"""

from __future__ import annotations

import time

# Bytes a second. Together with the messages' headers, this is less than 1 MB.
_BYTES_PER_SECOND = 850_000
# Bytes that may be sent at once.
_BURST_BYTES = 1 << 17
# Messages a second, beside the live state.
_MESSAGES_PER_SECOND = 12
# Messages that may follow each other at once, so that a line of a quiet run shows immediately.
_BURST_MESSAGES = 5.0


class RateLimit:
    """Counts the bytes and messages that may be sent now. Both grow with time.

    Attributes:
        bytes: The bytes that may be sent now. It is negative after a larger message.
    """

    def __init__(self) -> None:
        self.bytes, self._messages = float(_BURST_BYTES), _BURST_MESSAGES
        self._counted = time.monotonic()

    def allows(self) -> bool:
        """Whether another message may be sent."""
        now = time.monotonic()
        self.bytes = min(_BURST_BYTES, self.bytes + (now - self._counted) * _BYTES_PER_SECOND)
        self._messages = min(
            _BURST_MESSAGES, self._messages + (now - self._counted) * _MESSAGES_PER_SECOND
        )
        self._counted = now
        return self._messages >= 1 and self.bytes >= 1024

    def spend(self, length: int) -> None:
        """Counts a message of `length` bytes."""
        self.bytes -= length
        self._messages -= 1
