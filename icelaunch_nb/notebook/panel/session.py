"""What is sent to one panel: its run's story, its pulse, what the ranks print and what they report; and what its clicks are answered."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.notebook.panel.budget import Budget
from icelaunch_nb.notebook.panel.curves import Curves
from icelaunch_nb.notebook.panel.deeds import DEEDS, Deed
from icelaunch_nb.notebook.panel.follower import STREAMS, Chunk, Follower
from icelaunch_nb.notebook.panel.portrait import Portrait

_REPLAY = (
    3 << 18
)  # bytes of logs that a front end gets that has just opened; with what is printed meanwhile less than is left out again
_OLDER = 1 << 18  # and that it gets of a rank that is looked at: more than 1,000 lines
_CURVES = 0.5  # seconds between two looks at what ranks reported
_PULSE = 0.25  # between two pulses
_BEAT = 1.0  # and at the latest, so that a front end knows that we live
_RENEWED = 2.0  # between two renewals of the outputs, which hold the summary
_RENEWED_AT_LEAST = 60.0  # and where ranks only go on printing: after a fiftieth of the run's time, and after this at the latest
SHOWN_AGAIN = (
    0.3,
    1.0,
    2.5,
)  # after a display; a front end whose "hello" waits for a busy kernel has missed what came before


class Service:
    """What the thread does for one panel.

    Args:
        panel: A `RunPanel`.
    """

    def __init__(self, panel: Any) -> None:
        self.panel = panel
        self._portrait = Portrait(panel.run)
        self.run_dir = self._portrait.dir
        self._follower = Follower(self.run_dir)
        self._attempts: tuple[Mapping[str, Any], ...] = ()
        self._curves: list[
            Curves
        ] = []  # of an attempt that somebody looked at, and of the newest one, which is the last
        self._budget = Budget()
        self._older: list[
            tuple[int, int, list[int]]
        ] = []  # attempt, rank and places before which older lines are asked for
        self._next_curves = self._next_pulse = 0.0
        self._pulse_sent: tuple[float, str] = (0.0, "")
        self._story_sent: Any = None
        self._over_told = False
        self._renewed = time.monotonic()
        self._shown: tuple[Any, Any] = (
            None,
            None,
        )  # what the outputs tell: how it stands, and when each rank wrote last
        self._helpers: list[threading.Thread] = []
        self.rests_until = 0.0

    def turn(self) -> bool:
        """Sends what is new; whether there is more to wait for."""
        panel = self.panel
        story = panel.run.story
        self._see(story.attempts)
        while panel.wishes:
            self._grant(panel.wishes.popleft())
            self._next_pulse = 0.0  # what it changed is seen at once
        if panel.shown_again_at and time.monotonic() >= panel.shown_again_at[0]:
            panel.shown_again_at.pop(0)
            if not panel.seen:
                panel.send_code()
                self.replay()
        if story is not self._story_sent:
            self._story_sent = story
            panel.story = self._portrait.story()
        self._follower.look()
        more_curves = self._send_curves(
            over=story.state.over
        )  # before the logs, which would always take what may be sent
        self._send_older()
        self._send_logs()
        self._send_pulse(over=story.state.over)
        self._helpers = [helper for helper in self._helpers if helper.is_alive()]
        waits = bool(
            self._follower.backlog
            or more_curves
            or self._older
            or self._helpers
            or panel.wishes
            or (panel.shown_again_at and not panel.seen)
        )
        if not story.state.over:
            self._renew(story)
        elif not waits and not self._over_told:
            self._over_told = True
            panel.renew_displays()
        return waits or not story.state.over

    def replay(self, attempt: int | None = None) -> None:
        """Sends the last lines of an attempt once more, and its metrics.

        Args:
            attempt: Its number; one that isn't known is passed over. None: the newest.
        """
        number = len(self._attempts) - 1 if attempt is None else attempt
        if not 0 <= number < len(self._attempts):
            return
        self._follower.rewind(number, _REPLAY)
        if all(curves.attempt != number for curves in self._curves):
            self._curves = [Curves(self.run_dir, self._attempts[number]), self._curves[-1]]
        for curves in self._curves:
            curves.again()
        self._next_curves = 0.0

    def look_back(self, attempt: int, rank: int, before: list[int]) -> None:
        """Sends what a rank printed before what a front end holds of it, once the budget allows.

        Args:
            attempt: The attempt's number.
            rank: The rank.
            before: Where what it holds begins, in stdout and stderr.
        """
        self._older.append((attempt, rank, before))

    def _see(self, attempts: tuple[Mapping[str, Any], ...]) -> None:
        """Follows the attempts that are new; of those before, what they have written until now still comes."""
        for attempt in attempts[len(self._attempts) :]:
            self._follower.follow(attempt)
            self._curves = [*self._curves[-1:], Curves(self.run_dir, attempt)]
        self._attempts = attempts

    def _send_logs(self) -> None:
        if not self._follower.backlog or not self._budget.allows():
            return
        self._send_chunks("log", self._follower.take(int(self._budget.bytes)))

    def _send_older(self) -> None:
        if self._older and self._budget.allows():
            self._send_chunks(
                "older", self._follower.older(*self._older.pop(), _OLDER)
            )  # the newest wish first: that rank is looked at now

    def _send_chunks(self, kind: str, chunks: list[Chunk]) -> None:
        data = b"".join(chunk.data for chunk in chunks)
        if data:
            index = [
                [
                    chunk.attempt,
                    chunk.rank,
                    STREAMS.index(chunk.stream),
                    chunk.start,
                    len(chunk.data),
                ]
                for chunk in chunks
            ]
            self._send({"kind": kind, "chunks": index}, data)

    def _send_curves(self, *, over: bool) -> bool:
        """Sends what ranks reported; whether there is more to come."""
        now = time.monotonic()
        if now >= self._next_curves or over:
            self._next_curves = now + _CURVES
            for curves in self._curves:
                curves.look()
        for curves in self._curves:
            while curves.changed and self._budget.allows():
                about, data = zip(*curves.take(int(self._budget.bytes)), strict=True)
                self._send({"kind": "curves", "curves": about}, b"".join(data))
        return any(curves.changed or curves.backlog for curves in self._curves)

    def _renew(self, story: Any) -> None:
        """Brings the outputs up to date where something changed: a page that is closed early saves them, one without widgets shows them."""
        waited, run = time.monotonic() - self._renewed, self.panel.run
        if waited < _RENEWED:
            return
        shown = (story, str(run.state)), self._follower.written(len(self._attempts) - 1)
        if shown == self._shown or (
            shown[0] == self._shown[0] and waited < min(_RENEWED_AT_LEAST, run.elapsed / 50)
        ):
            return
        self._renewed, self._shown = time.monotonic(), shown
        self.panel.renew_outputs()

    def _send(self, message: dict[str, Any], data: bytes) -> None:
        self._budget.spend(len(data))
        self.panel.send(message, [data])

    def _send_pulse(self, *, over: bool) -> None:
        now = time.monotonic()
        if now < self._next_pulse and not over:
            return
        self._next_pulse = now + _PULSE
        newest = len(self._attempts) - 1
        reported = next((curves.steps for curves in self._curves if curves.attempt == newest), {})
        pulse = self._portrait.pulse(self._follower.written(newest), reported)
        words = json.dumps({**pulse, "t": 0})
        sent, before = self._pulse_sent
        if words != before or (now - sent > _BEAT and not over):
            self._pulse_sent = now, words
            self.panel.pulse = pulse

    def _grant(self, wish: dict[str, Any]) -> None:
        """Does what a click asks for, and says what came of it."""
        deed = DEEDS.get(str(wish.get("do")))
        if deed is None:
            return
        if deed.slow:
            self.panel.send({"kind": "heard", "id": wish.get("id"), "says": deed.slow})
            helper = threading.Thread(
                target=self._answer, args=(wish, deed), name=f"icelaunch-{wish['do']}", daemon=True
            )
            self._helpers.append(helper)
            helper.start()
        else:
            self._answer(wish, deed)

    def _answer(self, wish: dict[str, Any], deed: Deed) -> None:
        try:
            answer = {"ok": True, **deed.do(self, wish)}
        except Exception as error:
            answer = {"ok": False, "says": f"{type(error).__name__}: {error}"}
        self.panel.join_cell()
        self.panel.send({"kind": "answer", "id": wish.get("id"), "do": wish["do"], **answer})
