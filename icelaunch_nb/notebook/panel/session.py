"""The session of one panel: it sends what is new to the page, and answers the page's requests.

The widget belongs to the threads that run cells and handle clicks. The session belongs to the panel
thread. The widget sends messages to its session through a queue.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from icelaunch_nb.notebook import subshell
from icelaunch_nb.notebook.panel.actions import ACTIONS, Action
from icelaunch_nb.notebook.panel.log_follower import STREAMS, Chunk, LogFollower
from icelaunch_nb.notebook.panel.metric_bins import MetricBins
from icelaunch_nb.notebook.panel.rate_limit import RateLimit
from icelaunch_nb.notebook.panel.view_model import ViewModel
from icelaunch_nb.notebook.widgets import request_id
from icelaunch_nb.system.plaintext import sendable

# Bytes of logs that are replayed for a page that opens the panel. They and what is printed
# meanwhile stay below the follower's MAX_BACKLOG, so that nothing is skipped.
_REPLAY_SIZE = 3 << 18
# Bytes of a rank's older lines that answer one request: more than 1,000 lines.
_OLDER_SIZE = 1 << 18
# Seconds between two polls of the metrics.
_METRICS_INTERVAL = 0.5
# Seconds between two live states, where something changed.
_LIVE_STATE_INTERVAL = 0.25
# Seconds between two live states at most. They show the page that the kernel is alive.
_HEARTBEAT_INTERVAL = 1.0
# Seconds between two updates of the outputs, which contain the summary.
_SUMMARY_INTERVAL = 2.0
# Where ranks only print, the interval is a fiftieth of the run's elapsed time, up to this.
_MAX_SUMMARY_INTERVAL = 60.0
# Seconds after a display at which everything is sent again. The "open" request of a page may wait
# for a busy kernel, and until then the page misses what is sent.
_REPLAY_DELAYS = (0.3, 1.0, 2.5)


@dataclass(frozen=True)
class Shown:
    """The panel is displayed.

    Attributes:
        cell: The message that requested the execution of the displaying cell. It becomes the parent
            of what the session sends.
        at: The time of the display, by the monotonic clock.
    """

    cell: Mapping[str, Any]
    at: float


@dataclass(frozen=True)
class Clicked:
    """A page sent a message.

    Attributes:
        content: Any JSON, since pages of other software may send it too.
    """

    content: Any


@dataclass(frozen=True)
class Closed:
    """The widget is closed. Nothing is sent afterwards."""


@dataclass(frozen=True)
class Retired:
    """The panel turns into its summary, because there are enough newer panels."""


@dataclass(frozen=True)
class _Handled:
    """A worker has carried out a slow request.

    Attributes:
        reply: The reply to send.
    """

    reply: dict[str, Any]


Message = Shown | Clicked | Closed | Retired | _Handled


class PanelSession:
    """Sends one panel's messages, and answers its page.

    All methods but `post` and `has_messages` belong to the panel thread.

    Args:
        panel: A `RunPanel`.
        wake: Wakes the panel thread. Any thread may call it.
    """

    def __init__(self, panel: Any, wake: Callable[[], None] = lambda: None) -> None:
        self.panel = panel
        self._view_model = ViewModel(panel.run)
        self.run_dir = self._view_model.dir
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._wake = wake
        self._closed = False
        # The message that requested the execution of the cell that last displayed the panel.
        self._cell: Mapping[str, Any] = {}
        # Whether a page has sent anything.
        self._page_answered = False
        # When everything is sent again, by the monotonic clock.
        self._replay_at: list[float] = []

        self._follower = LogFollower(self.run_dir)
        self._attempts: tuple[Any, ...] = ()
        # The metrics of an older attempt that the page shows, if any, and of the newest attempt.
        self._metrics: list[MetricBins] = []
        self._limit = RateLimit()
        # Requests for older lines: attempt, rank, and the offsets that the lines end at.
        self._older_requests: list[tuple[int, int, list[int]]] = []
        self._workers: list[threading.Thread] = []

        self._next_metrics = self._next_live_state = 0.0
        self._live_state_sent: tuple[float, str] = (0.0, "")
        self._run_state_sent: Any = None
        self._end_summary_sent = False
        self._summary_sent_at = time.monotonic()
        # The run's state, and each rank's last write, when the outputs were last updated.
        self._summary_content: tuple[Any, Any] = (None, None)

    def post(self, message: Message) -> None:
        """Posts a message to the session. Any thread may call this."""
        self._messages.put(message)

    @property
    def has_messages(self) -> bool:
        """Whether messages wait to be handled."""
        return not self._messages.empty()

    @property
    def closed(self) -> bool:
        """Whether the widget is closed."""
        return self._closed

    def serve(self) -> bool:
        """Handles the messages and sends what is new.

        Returns:
            Whether the session still has something to send or to wait for.
        """
        self._publish_under_cell()
        waits = self._serve()
        if not waits:
            self._publish_under_cell(with_subshell=False)
        return waits

    def _serve(self) -> bool:
        panel = self.panel
        run_state = panel.run._run_state
        self._follow(run_state.attempts)
        self._handle_messages()
        if self._closed:
            return False
        self._replay_until_answered()
        self._send_run_state(run_state)
        self._follower.poll()
        # The metrics come before the logs, which may use all bytes that the rate limit allows.
        more_metrics = self._send_metrics(over=run_state.state.over)
        self._send_older()
        self._send_logs()
        self._send_live_state(over=run_state.state.over)
        self._workers = [worker for worker in self._workers if worker.is_alive()]
        if not run_state.state.over:
            self._update_outputs(run_state)
            return True
        return bool(
            self._follower.backlog
            or more_metrics
            or self._older_requests
            or self._workers
            or self._replay_at
            or self.has_messages
        )

    # Messages from the widget and the workers.

    def _handle_messages(self) -> None:
        while self.has_messages and not self._closed:
            message = self._messages.get()
            if isinstance(message, Shown):
                self._cell = message.cell
                if not self._page_answered:
                    self._replay_at = [message.at + after for after in _REPLAY_DELAYS]
                self._publish_under_cell()
            elif isinstance(message, Clicked):
                self._page_answered = True
                self._replay_at = []
                self._handle_request(message.content)
                # The effect of the request shows at once.
                self._next_live_state = 0.0
            elif isinstance(message, _Handled):
                self.panel.send(message.reply)
                self._next_live_state = 0.0
            elif isinstance(message, Retired):
                self.send_summary(self.panel.update_displays(live=False))
                self.panel.close()
            else:
                self._closed = True

    def _handle_request(self, request: Any) -> None:
        """Carries out a request and replies to it. Anything that is no request is ignored."""
        action = ACTIONS.get(str(request.get("action"))) if isinstance(request, dict) else None
        if action is None:
            return
        if not action.pending:
            self.panel.send(self._reply(request, action))
            return
        pending = {"kind": "pending", "id": request_id(request.get("id")), "text": action.pending}
        self.panel.send(pending)
        worker = threading.Thread(
            target=self._handle_in_worker,
            args=(request, action),
            name=f"icelaunch-{request['action']}",
            daemon=True,
        )
        self._workers.append(worker)
        worker.start()

    def _handle_in_worker(self, request: Mapping[str, Any], action: Action) -> None:
        self.post(_Handled(self._reply(request, action)))
        self._wake()

    def _reply(self, request: Mapping[str, Any], action: Action) -> dict[str, Any]:
        try:
            fields = {"ok": True, **action.handle(self, request)}
        except Exception as error:
            fields = {"ok": False, "text": f"{type(error).__name__}: {error}"}
        to, name = request_id(request.get("id")), request["action"]
        return sendable({"kind": "reply", "id": to, "action": name, **fields})

    def _publish_under_cell(self, *, with_subshell: bool = True) -> None:
        """Makes the cell that displays the panel the parent of what this thread publishes."""
        kernel = subshell.current_kernel()
        if kernel is not None:
            reply_to = subshell.get_or_create(kernel) if with_subshell else None
            subshell.publish_under(kernel, self._cell, reply_to)

    # The methods that actions call.

    def replay(self, attempt: int | None = None) -> None:
        """Sends the last lines of an attempt once more, and its metrics.

        Args:
            attempt: The attempt's number; None for the newest. An unknown one is ignored.
        """
        number = len(self._attempts) - 1 if attempt is None else attempt
        if not 0 <= number < len(self._attempts):
            return
        self._follower.rewind(number, _REPLAY_SIZE)
        if all(metrics.attempt != number for metrics in self._metrics):
            older = MetricBins(self.run_dir, self._attempts[number])
            self._metrics = [older, self._metrics[-1]]
        for metrics in self._metrics:
            metrics.resend()
        self._next_metrics = 0.0

    def load_older(self, attempt: int, rank: int, before: list[int]) -> None:
        """Sends what a rank printed before the lines that a page holds.

        It is sent when the rate limit allows.

        Args:
            attempt: The attempt's number.
            rank: The rank.
            before: The offsets in stdout and stderr where the page's lines begin.
        """
        self._older_requests.append((attempt, rank, before))

    def send_summary(self, data: Mapping[str, Any] | None) -> None:
        """Makes each page update the summary in its notebook, which Jupyter saves.

        A page that was reloaded doesn't know the display ids, so the kernel can't update its
        outputs otherwise.

        Args:
            data: The summary by MIME type. Nothing is sent where it is empty.
        """
        if data:
            self.panel.send({"kind": "summary", "data": data})

    # The messages to the page.

    def _follow(self, attempts: tuple[Any, ...]) -> None:
        """Follows new attempts. What earlier attempts have written so far is still sent."""
        for attempt in attempts[len(self._attempts) :]:
            self._follower.follow(attempt)
            self._metrics = [*self._metrics[-1:], MetricBins(self.run_dir, attempt)]
        self._attempts = attempts

    def _replay_until_answered(self) -> None:
        """Sends everything again a few times after a display, until a page answers."""
        if self._replay_at and time.monotonic() >= self._replay_at[0]:
            self._replay_at.pop(0)
            self.panel.send_code()
            self.replay()

    def _send_run_state(self, run_state: Any) -> None:
        if run_state is self._run_state_sent:
            return
        if run_state.state.over and not self._end_summary_sent:
            # The summary is sent first, so that a saved notebook is never behind the page.
            self._end_summary_sent = True
            self.send_summary(self.panel.update_displays())
        self._run_state_sent = run_state
        self.panel.run_state = self._view_model.run_state()

    def _send_logs(self) -> None:
        if self._follower.backlog and self._limit.allows():
            self._send_chunks("log", self._follower.read_new(int(self._limit.bytes)))

    def _send_older(self) -> None:
        if self._older_requests and self._limit.allows():
            # The newest request comes first, because the page shows its rank now.
            newest = self._older_requests.pop()
            self._send_chunks("older_log", self._follower.read_before(*newest, _OLDER_SIZE))

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

    def _send_metrics(self, *, over: bool) -> bool:
        """Sends the metrics that are new. Returns whether more can be read or sent now."""
        now = time.monotonic()
        if now >= self._next_metrics or over:
            self._next_metrics = now + _METRICS_INTERVAL
            for metrics in self._metrics:
                metrics.poll()
        for metrics in self._metrics:
            while metrics.changed and self._limit.allows():
                updates, data = zip(*metrics.pop_changes(int(self._limit.bytes)), strict=True)
                self._send({"kind": "metrics", "metrics": updates}, b"".join(data))
        return any(metrics.changed or metrics.backlog for metrics in self._metrics)

    def _send_live_state(self, *, over: bool) -> None:
        now = time.monotonic()
        if now < self._next_live_state and not over:
            return
        self._next_live_state = now + _LIVE_STATE_INTERVAL
        newest = len(self._attempts) - 1
        steps = next((one.steps for one in self._metrics if one.attempt == newest), {})
        live_state = self._view_model.live_state(self._follower.last_writes(newest), steps)
        content = json.dumps({**live_state, "t": 0})
        sent_at, before = self._live_state_sent
        if content != before or (now - sent_at > _HEARTBEAT_INTERVAL and not over):
            self._live_state_sent = now, content
            self.panel.live_state = live_state

    def _send(self, message: dict[str, Any], data: bytes) -> None:
        self._limit.spend(len(data))
        self.panel.send(message, [data])

    def _update_outputs(self, run_state: Any) -> None:
        """Updates the summary in the outputs where something changed.

        Jupyter saves them if the page is closed before the run ends. A front end without widgets
        shows them.
        """
        waited, run = time.monotonic() - self._summary_sent_at, self.panel.run
        if waited < _SUMMARY_INTERVAL:
            return
        last_writes = self._follower.last_writes(len(self._attempts) - 1)
        content = (run_state, str(run.state)), last_writes
        only_printed = content[0] == self._summary_content[0]
        too_soon = waited < min(_MAX_SUMMARY_INTERVAL, run.elapsed / 50)
        if content == self._summary_content or (only_printed and too_soon):
            return
        self._summary_sent_at, self._summary_content = time.monotonic(), content
        self.send_summary(self.panel.update_live_outputs())
