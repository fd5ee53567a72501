"""``error.json``: how a rank failed, in torch elastic's layout, with our fields beside torch's.

The ranks of a program write it by torch's ``@record``, those of a function by `worker.results`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from icelaunch_nb.rundir.paths import RankDir
from icelaunch_nb.rundir.records import Bool, Record, Time, Word, parse_json, text
from icelaunch_nb.system import safe_open

_Text = Annotated[str, text(1 << 20)]


@dataclass(eq=False, repr=False, kw_only=True)
class RankError(Record):
    """How a rank failed, as the rank itself reports it.

    Attributes:
        kind: As `Failure.kind`.
        type_name: Name of the exception.
        message: The exception's message.
        traceback: The rank's own traceback, as its user should read it.
        time: When, in seconds since the epoch, by the rank's clock.
        incurable: Whether a retry can't help.
    """

    kind: Word
    type_name: _Text
    message: _Text
    traceback: _Text
    time: Time | None = None
    incurable: Bool = False


def format_error(error: RankError, stack: str) -> bytes:
    """The content of an error file.

    Args:
        error: How the rank failed.
        stack: Python's own traceback, which torch elastic shows.
    """
    extra = {"py_callstack": stack, "timestamp": str(int(error.time or 0))}
    message = {"message": f"{error.type_name}: {error.message}", "extraInfo": extra}
    return json.dumps({"message": message, "icelaunch": error.to_json()}, default=str).encode()


def read_error(rank_dir: RankDir) -> RankError | None:
    """Reads a rank's error file. None: there is none, or it can't be read."""
    try:
        data = parse_json(
            safe_open.read_whole(
                safe_open.open_file(rank_dir.error, any_owner=True), rank_dir.error
            )
        )
        return RankError.parse(
            data["icelaunch"]
            if isinstance(data, dict) and "icelaunch" in data
            else _from_record(data)
        )
    except (OSError, ValueError):
        return None


def _from_record(data: Any) -> dict[str, Any]:
    """Our fields, from what ``@record`` in a program wrote. A program may write anything there.

    Raises:
        ValueError: There is no message in it.
    """
    message = data.get("message") if isinstance(data, dict) else None
    summary, extra = (
        (message.get("message"), message.get("extraInfo"))
        if isinstance(message, dict)
        else (message, None)
    )
    if not isinstance(summary, str) or not summary:
        raise ValueError("no words")
    extra = extra if isinstance(extra, dict) else {}
    kind, _, rest = summary.partition(": ")
    stack, when = extra.get("py_callstack"), extra.get("timestamp")
    return {
        "kind": "raised",
        "type_name": kind,
        "message": rest,
        "traceback": stack if isinstance(stack, str) else summary,
        "time": float(when) if isinstance(when, int | float | str) else None,
    }
