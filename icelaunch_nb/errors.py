"""Every exception of icelaunch_nb, each with the message it shows.

All of them are `IcelaunchError`. Which one you get says when things went wrong:

* before any process was started: `ConfigError` (a field), `PackingError` (an argument or a captured value);
* while processes were being started: `HostError`;
* afterwards: `RunFailed` (a rank failed), `RunStopped` (somebody stopped it), `RunLost` (its agent vanished).
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


class IcelaunchError(Exception):
    """What all exceptions of this package have in common."""


class ConfigError(IcelaunchError, ValueError):
    """A field holds what can't work. Raised before any process starts.

    You *don't* get this error for a function or an argument that can't be carried to the ranks: that is `PackingError`.

    Args:
        field: Name of the field, keyword or option.
        value: What it held.
        remedy: What would be right, as a clause ("must be at least 1").
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{field}={_short(value)}: {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.remedy)


class PackingError(IcelaunchError, TypeError):
    """The function, an argument or a result can't be pickled.

    Args:
        path: Where the culprit sits, written as one would reach it (``args[1].lock``).
        type_name: Its type.
        reason: What pickle said.
    """

    def __init__(self, path: str, type_name: str, reason: str) -> None:
        self.path, self.type_name, self.reason = path, type_name, reason
        super().__init__(f"{path} (a {type_name}) can't be pickled: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.type_name, self.reason)


class HostError(IcelaunchError, RuntimeError):
    """The process that starts agents for this kernel could not be started, or ended."""


class BigCaptureWarning(UserWarning):
    """A launched function captures a global so large that every launch pays for it."""


@dataclass
class Failure:
    """How one rank failed.

    Attributes:
        rank: Global rank.
        local_rank: Rank on its machine.
        attempt: Number of the attempt, from 0.
        time: When, in seconds since the epoch, by the rank's own clock where it could still say so.
        pid: Its process.
        kind: ``raised``, ``exited`` (ended without returning), ``killed`` (by a signal), ``loading`` (the call could not
            be unpickled there) or ``result`` (it returned, but its value can't be pickled).
        exitcode: As `multiprocessing.Process.exitcode` has it; negative for a signal.
        type_name: Name of the exception, or a word for the way it ended.
        message: One line.
        traceback: The rank's own traceback, frames of torch and of this package left out; empty where there is none.
        hint: The likely cause; empty where there is nothing to say.
        consequence: Whether it only tells that another rank had ended (a closed connection).
    """

    rank: int
    local_rank: int
    attempt: int
    time: float
    pid: int
    kind: str
    exitcode: int | None
    type_name: str
    message: str
    traceback: str = ""
    hint: str = ""
    consequence: bool = False

    @property
    def signal(self) -> str | None:
        """The signal's name (``"SIGKILL"``) where one ended the rank, else None."""
        return (
            signal_name(-self.exitcode) if self.exitcode is not None and self.exitcode < 0 else None
        )

    @property
    def title(self) -> str:
        """One line: ``RuntimeError: boom``, ``killed by SIGKILL``."""
        return f"{self.type_name}: {self.message}" if self.message else self.type_name

    def to_json(self) -> dict[str, Any]:
        """The fields, as the journal keeps them."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """The way back from `to_json`; fields of a newer version are passed over."""
        known = cls.__dataclass_fields__
        return cls(**{key: value for key, value in data.items() if key in known})


class RunFailed(IcelaunchError):
    """A rank failed and no restart was left.

    The message ends with the root rank's own traceback. The original exception, where it could be carried over, is the
    `__cause__`.

    Attributes:
        failures: One `Failure` per failed rank of the last attempt, the earliest first.
        results: What the ranks returned that did return, by global rank.
        rank: The root rank: the one that failed first.
        log_dir: Where the logs of all ranks are.
    """

    def __init__(
        self,
        failures: Sequence[Failure],
        results: Mapping[int, Any] | None = None,
        *,
        world_size: int = 0,
        attempt: int = 0,
        log_dir: str = "",
        note: str = "",
    ) -> None:
        self.failures = list(failures)
        self.results = dict(results or {})
        self.world_size, self.attempt, self.log_dir, self.note = world_size, attempt, log_dir, note
        self.rank = self.failures[0].rank if self.failures else None
        super().__init__("\n".join(self._lines()))

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "world_size": self.world_size,
            "attempt": self.attempt,
            "log_dir": self.log_dir,
            "note": self.note,
        }
        return _rebuild_run_failed, (self.failures, self.results, state)

    def _lines(self) -> list[str]:
        if not self.failures:
            return [self.note or "the run failed", f"logs: {self.log_dir}"]
        root, groups = (
            self.failures[0],
            fold([f for f in self.failures if not f.consequence] or self.failures),
        )
        lost = [f.rank for f in self.failures if f.consequence and f not in groups[0]]
        where = f"rank {root.rank} of {self.world_size}" if self.world_size else f"rank {root.rank}"
        lines = [f"{where} failed" + (f" in attempt {self.attempt}" if self.attempt else "")]
        also = [f.rank for f in groups[0][1:]]
        if also:
            lines[0] += f", {_ranks(also)} the same way"
        for group in groups[1:]:
            lines.append(f"then {_ranks([f.rank for f in group])}: {_clipped(group[0].title)}")
        if lost:
            lines.append(f"then {_ranks(lost)} lost the connection to it")
        if self.note:
            lines.append(self.note)
        lines.append(f"logs: {self.log_dir}")
        if root.hint:
            lines.append(root.hint)
        lines.append("")
        told_itself = root.kind in ("raised", "loading", "result") or root.type_name == "SystemExit"
        lines += [root.traceback.rstrip()] if root.traceback else []
        lines += [] if told_itself and root.traceback else [root.title]
        return lines

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: no frames of ours, the rank's traceback last."""
        red, off = "\x1b[31m", "\x1b[39m"
        *head, last = str(self).split("\n")
        return [
            f"{red}{type(self).__name__}{off}: {head[0]}" if head else "",
            *head[1:],
            f"{red}{last}{off}",
        ]


def _rebuild_run_failed(
    failures: list[Failure], results: dict[int, Any], state: dict[str, Any]
) -> RunFailed:
    return RunFailed(failures, results, **state)


class RunStopped(IcelaunchError):
    """The run was stopped before its ranks returned. `results` has what did arrive, by global rank."""

    def __init__(self, message: str, results: Mapping[int, Any] | None = None) -> None:
        super().__init__(message)
        self.results = dict(results or {})


class RunLost(IcelaunchError):
    """The run's agent vanished without a word (a power cut, ``kill -9`` of everything).

    You *don't* get this error when a rank was killed: the agent sees that, and it is a `RunFailed`.
    """


def fold(failures: Sequence[Failure]) -> list[list[Failure]]:
    """Groups equal failures (same kind, exception and traceback), groups and members in order of time."""
    groups: dict[tuple[Any, ...], list[Failure]] = {}
    for failure in failures:
        groups.setdefault(
            (failure.kind, failure.exitcode, failure.title, failure.traceback), []
        ).append(failure)
    return list(groups.values())


def signal_name(number: int) -> str:
    """``signal_name(9) == "SIGKILL"``; a number without a name stays a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def how_it_ended(code: int | None) -> str:
    """A process's exit code, as multiprocessing and subprocess give it, as a clause: ``was killed by SIGKILL``."""
    return (
        f"was killed by {signal_name(-code)}"
        if code is not None and code < 0
        else f"ended with code {code}"
    )


def nearest(word: str, words: Sequence[str]) -> str:
    """A clause that names the `closest` of `words`, or lists them all where there is none."""
    close = closest(word, words)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(words)}"


def closest(word: str, words: Sequence[str]) -> str:
    """The only one of `words` that begins with `word`, else the one that is spelt most like it; empty where none is close."""
    import difflib

    beginning = [known for known in words if known.startswith(word)]
    return (
        beginning[0]
        if len(beginning) == 1
        else next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.5)), "")
    )


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, sorted(ranks)))}"


def _clipped(text: str, limit: int = 120) -> str:
    line = text.split("\n", 1)[0]
    return line if len(line) <= limit else line[: limit - 1] + "…"


def message(error: BaseException) -> str:
    """What an exception says, also where it can't say it."""
    try:
        return str(error)
    except Exception as worse:
        return f"<its __str__ raised {type(worse).__name__}>"


def _short(value: object, limit: int = 200) -> str:
    try:
        text = repr(value)
    except (
        Exception
    ) as error:  # an int of more digits than Python turns into text, a broken __repr__
        text = f"<{type(value).__name__} ({type(error).__name__} in its repr)>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_seconds(name: str, value: object, *, most: float = math.inf) -> None:
    """Refuses what is no span of time for an argument of a handle's method.

    Raises:
        ValueError: It isn't a number of seconds from 0 to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(
            f"{name}={value!r}: must be seconds, 0 or more{'' if most == math.inf else f' and at most {most:,}'}"
        )
