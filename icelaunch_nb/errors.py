"""Every exception of icelaunch_nb, each with the message it shows.

All of them are `IcelaunchError`. The class says when things went wrong:

* before any process was started: `ConfigError` (a field), `PackingError` (an argument or a captured
  value);
* while processes were being started: `HostError`;
* afterwards: `RunFailed` (a rank failed), `RunStopped` (the run was stopped), `RunLost` (the agent
  vanished).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icelaunch_nb.system.exit_codes import signal_name
from icelaunch_nb.system.plaintext import in_colors


class IcelaunchError(Exception):
    """The base class of all exceptions of this package.

    Messages quote ranks and run directories. As text they hold no terminal control sequences but
    colours.
    """

    def __str__(self) -> str:
        return in_colors(super().__str__())


class ConfigError(IcelaunchError, ValueError):
    """A field holds what can't work. Raised before any process starts.

    A function or an argument that can't be pickled raises `PackingError` instead.

    Args:
        field: Name of the field, keyword or option.
        value: The value.
        remedy: What would be right, as a clause ("must be at least 1").
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{field}={_short_repr(value)}: {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.remedy)


# A longer path would hide the reason, so the reason comes first.
_MAX_PATH_LENGTH = 160


class PackingError(IcelaunchError, TypeError):
    """The function, an argument or a result can't be pickled.

    Args:
        path: The way to the object that can't be pickled, as an expression (``args[1].lock``).
        type_name: The object's type.
        reason: The message of pickle.
    """

    def __init__(self, path: str, type_name: str, reason: str) -> None:
        self.path, self.type_name, self.reason = path, type_name, reason
        if len(path) <= _MAX_PATH_LENGTH:
            message = f"{path} (a {type_name}) can't be pickled: {reason}"
        else:
            half = _MAX_PATH_LENGTH // 2
            where = f"{path[:half]} … {path[-half:]}"
            message = f"can't be pickled: {reason}; where: {where} (a {type_name})"
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.type_name, self.reason)


class HostError(IcelaunchError, RuntimeError):
    """The process that starts agents could not be started, or ended; or ranks can't run here."""


class NotARunError(IcelaunchError):
    """A directory holds no run."""


class UnreadableRunError(IcelaunchError):
    """A file of a run can't be read: it is damaged, made up, or of a newer version."""


class UntrustedFileError(IcelaunchError, OSError):
    """A file of a run belongs to another user, or is a FIFO, a link or a device."""


class SharedLogDirWarning(UserWarning):
    """Other users can rename or remove the directories of runs in a `log_dir`."""


class BigCaptureWarning(UserWarning):
    """A launched function captures a global so large that every launch pays for it."""


class SingleProcessWarning(UserWarning):
    """An object that goes to several ranks was made for one process, so each rank trains alone."""


@dataclass
class Failure:
    """How one rank failed.

    Attributes:
        rank: Global rank.
        local_rank: Rank on its machine.
        attempt: Number of the attempt, from 0.
        time: When, in seconds since the epoch, by the rank's clock if the rank could still read it.
        pid: The rank's pid.
        kind: ``raised``, ``exited`` (ended without returning), ``killed`` (by a signal),
            ``loading`` (the call could not be unpickled there) or ``result`` (it returned, but its
            value can't be pickled).
        exitcode: As `multiprocessing.Process.exitcode`: negative for a signal.
        type_name: Name of the exception, or a word for the way the rank ended.
        message: One line.
        traceback: The rank's traceback, without frames of torch and of this package. May be empty.
        hint: The likely cause. May be empty.
        consequence: Whether the failure only follows from another rank's end (a closed connection).
        node: The rank's node, from 0.
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
    node: int = 0

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended the rank (``"SIGKILL"``), if one did."""
        return (
            signal_name(-self.exitcode) if self.exitcode is not None and self.exitcode < 0 else None
        )

    @property
    def title(self) -> str:
        """One line: ``RuntimeError: boom``, ``killed by SIGKILL``."""
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class RunFailed(IcelaunchError):
    """A rank failed and no restart was left.

    The message ends with the root rank's traceback. The original exception is the `__cause__`, if
    it could be pickled.

    Attributes:
        failures: One `Failure` per failed rank of the last attempt, the earliest first.
        results: The values of the ranks that returned, by global rank.
        rank: The root rank, which failed first.
        log_dir: The directory with the logs of all ranks.
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
        root = self.failures[0]
        groups = group_failures([f for f in self.failures if not f.consequence] or self.failures)
        disconnected = [f.rank for f in self.failures if f.consequence and f not in groups[0]]
        where = f"rank {root.rank} of {self.world_size}" if self.world_size else f"rank {root.rank}"
        lines = [f"{where} failed" + (f" in attempt {self.attempt}" if self.attempt else "")]
        also = [f.rank for f in groups[0][1:]]
        if also:
            lines[0] += f", {_format_ranks(also)} the same way"
        for group in groups[1:]:
            lines.append(
                f"then {_format_ranks([f.rank for f in group])}: {_first_line(group[0].title)}"
            )
        if disconnected:
            lines.append(f"then {_format_ranks(disconnected)} lost the connection to it")
        if self.note:
            lines.append(self.note)
        lines.append(f"logs: {self.log_dir}")
        if root.hint:
            lines.append(root.hint)
        lines.append("")
        has_own_text = (
            root.kind in ("raised", "loading", "result") or root.type_name == "SystemExit"
        )
        lines += [root.traceback.rstrip()] if root.traceback else []
        lines += [] if has_own_text and root.traceback else [root.title]
        return lines

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows: no frames of this package, the rank's traceback last."""
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
    """The run was stopped before its ranks returned.

    Attributes:
        results: The values of the ranks that did return, by global rank.
    """

    def __init__(self, message: str, results: Mapping[int, Any] | None = None) -> None:
        super().__init__(message)
        self.results = dict(results or {})


class RunLost(IcelaunchError):
    """The run's agent vanished and recorded no end (a power cut, ``kill -9`` of all processes).

    A rank that is killed isn't this error: the agent sees it, and raises `RunFailed`.
    """


def group_failures(failures: Sequence[Failure]) -> list[list[Failure]]:
    """Groups failures by kind, exception and traceback. Groups and members are in order of time."""
    groups: dict[tuple[Any, ...], list[Failure]] = {}
    for failure in failures:
        groups.setdefault(
            (failure.kind, failure.exitcode, failure.title, failure.traceback), []
        ).append(failure)
    return list(groups.values())


def _format_ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, sorted(ranks)))}"


def _first_line(text: str, limit: int = 120) -> str:
    line = text.split("\n", 1)[0]
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _short_repr(value: object, limit: int = 200) -> str:
    try:
        text = repr(value)
    # An int may have more digits than Python converts, and a __repr__ may be broken.
    except Exception as error:
        text = f"<{type(value).__name__} ({type(error).__name__} in its repr)>"
    return text if len(text) <= limit else text[: limit - 1] + "…"
