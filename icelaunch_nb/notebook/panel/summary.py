"""What remains of a run where no panel can live: in a saved notebook, on a code host, in a terminal."""

from __future__ import annotations

import html as markup
import re
import time
from typing import Any

from icelaunch_nb.notebook.panel.portrait import Portrait

_LINES = 20
_LINE = 400  # characters of a line
_TAIL = 32_768  # bytes of a log that are looked at for its last lines
_RANKS = 4  # failing ranks that are shown, so that a summary stays far below 100 kB
_COLORS = {"SUCCEEDED": "#2e7d32", "FAILED": "#c62828", "LOST": "#c62828", "STOPPED": "#8d6e00"}
_CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def text(run: Any) -> str:
    """The run in plain text; it says what the markup says."""
    told = _Told(run)
    lines = [repr(run), *told.as_of(), *told.restarts()]
    error = told.first_error()
    if error:
        lines += ["", *error]
    for rank, said in told.last_words():
        lines += [f"rank {rank}, last lines:", *(f"    {line}" for line in said)]
    return "\n".join(lines)


def html(run: Any) -> str:
    """The run as markup without scripts: state, restarts, first error, last lines."""
    told = _Told(run)
    story = told.story
    color = _COLORS.get(told.state, "#1565c0")
    parts = [
        '<div style="border-left: 3px solid '
        + color
        + '; padding: 2px 0 2px 10px; line-height: 1.5">',
        f'<div><b style="color: {color}">{told.state}</b> {_escape(story["name"])} · {told.figures()}</div>',
        *(
            f"<div>{_escape(line)}</div>"
            for line in [*told.as_of(), *told.restarts(), *run.standing()]
        ),
    ]
    error = told.first_error()
    if error:
        parts.append(_block("\n".join(error)))
    for rank, said in told.last_words():
        opened = " open" if story["failures"] else ""
        parts.append(
            f"<details{opened}><summary>rank {rank}, last lines</summary>{_block(chr(10).join(said))}</details>"
        )
    parts.append(
        f'<div style="opacity: 0.65; font-size: 0.85em">{_escape(story["path"])}</div></div>'
    )
    return "\n".join(parts)


class _Told:
    """A run's story in lines."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.story = Portrait(run).story()
        self.state = str(run.state)

    def as_of(self) -> list[str]:
        """Of a run that isn't over, when that was so: nobody may be there to say what came of it."""
        if self.story["over"]:
            return []
        return [
            f"as of {time.strftime('%H:%M:%S')}; ice.attach({self.story['run_id']!r}) tells more"
        ]

    def figures(self) -> str:
        ranks, restarts = self.story["nproc"], len(self.story["restarts"])
        return f"{ranks} rank{'s' * (ranks != 1)} · {restarts} restart{'s' * (restarts != 1)} · {self.run.elapsed:.1f} s"

    def restarts(self) -> list[str]:
        allowed = self.story["max_restarts"]
        return [
            f"restart {number} of {allowed}: "
            + (f"rank {restart['rank']}, " if restart["rank"] is not None else "")
            + _clean(str(restart["cause"]))
            for number, restart in enumerate(self.story["restarts"], 1)
        ][-_LINES:]

    def first_error(self) -> list[str]:
        if not self.story["failures"]:
            return (
                [_clean(self.story["note"])]
                if self.story["note"] and self.story["state"] != "STOPPED"
                else []
            )
        first = self.story["failures"][0]
        lines = (
            [_clean(line) for line in first["traceback"].rstrip().split("\n")]
            if first["traceback"]
            else [_clean(first["title"])]
        )
        when = f" in attempt {first['attempt']}" if self.story["restarts"] else ""
        return [
            f"rank {first['rank']} failed{when}",
            *lines,
            *([_clean(first["hint"])] if first["hint"] else []),
        ]

    def last_words(self) -> list[tuple[int, list[str]]]:
        """The last lines of the ranks that failed, and of rank 0, as far as they wrote any."""
        ranks = dict.fromkeys(
            [*[failure["rank"] for failure in self.story["failures"]][:_RANKS], 0]
        )
        return [(rank, lines) for rank in ranks if (lines := self._last_lines(rank))]

    def _last_lines(self, rank: int) -> list[str]:
        """The end of what a rank wrote to stdout, then to stderr, without control characters."""
        found: list[str] = []
        for attempt in self.run.story.attempts[-1:]:
            for entry in attempt["ranks"]:
                if entry["rank"] == rank:
                    rank_dir = Portrait(self.run).dir.rank(attempt["attempt"], entry["local_rank"])
                    for path in (rank_dir.stdout, rank_dir.stderr):
                        found += _tail(path)[-_LINES:]
        return found


def _tail(path: Any) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            data = file.read()
    except OSError:
        return []
    lines = data.decode(errors="replace").rstrip("\n").split("\n")
    return [_clean(line.rstrip("\r").rpartition("\r")[2]) for line in lines] if data.strip() else []


def _clean(line: str) -> str:
    line = _CONTROL.sub("", line.replace("\n", " "))
    return line if len(line) <= _LINE else line[: _LINE - 1] + "…"


def _escape(text: str) -> str:
    return markup.escape(text)


def _block(text: str) -> str:
    return f'<pre style="margin: 4px 0; white-space: pre-wrap; font-family: var(--jp-code-font-family, monospace)">{_escape(text)}</pre>'
