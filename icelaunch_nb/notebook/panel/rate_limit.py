"""How much a panel may send: a browser takes about 1 MB and 20 messages a second from one panel, whatever the ranks do."""

from __future__ import annotations

import time

BYTES = 850_000  # a second; with all that goes around them less than 1 MB
_BURST = 1 << 17  # and how much may come at once
MESSAGES = 12  # a second, beside the pulses
_SALVO = 5.0  # messages that may follow each other closely: a quiet run's line is shown at once


class Budget:
    """Bytes and messages that may be sent now; both grow with time."""

    def __init__(self) -> None:
        self.bytes, self._messages = float(_BURST), _SALVO
        self._counted = time.monotonic()

    def allows(self) -> bool:
        """Whether another message may be sent."""
        now = time.monotonic()
        self.bytes = min(_BURST, self.bytes + (now - self._counted) * BYTES)
        self._messages = min(_SALVO, self._messages + (now - self._counted) * MESSAGES)
        self._counted = now
        return self._messages >= 1 and self.bytes >= 1024

    def spend(self, length: int) -> None:
        """A message of that many bytes was sent."""
        self.bytes -= length
        self._messages -= 1
