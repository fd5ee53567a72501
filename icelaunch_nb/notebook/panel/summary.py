"""A run's static summary, for where no panel runs: a saved notebook, a code host, a terminal."""

from __future__ import annotations

import html as markup
import re
from pathlib import Path
from typing import Any

from icelaunch_nb.notebook.panel.view_model import ViewModel
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.system.plaintext import as_of, in_lines

# Lines of a log, and restarts, that a summary shows.
_MAX_LINES = 20
# Characters of a line.
_MAX_LINE_LENGTH = 400
# Bytes of a log that are read for its last lines.
_TAIL_SIZE = 32_768
# Failed ranks that are shown, so that a summary stays far below 100 kB.
_MAX_FAILED_RANKS = 4
_COLORS = {"SUCCEEDED": "#2e7d32", "FAILED": "#c62828", "LOST": "#c62828", "STOPPED": "#8d6e00"}
# OSC and CSI sequences, short escapes, and control characters other than tab and newline.
_CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def text(run: Any) -> str:
    """The run as plain text, with the same content as `html`.

    Args:
        run: A `Run`.
    """
    content = SummaryText(run)
    lines = [repr(run), *content.as_of(), *content.restarts()]
    error = content.first_error()
    if error:
        lines += ["", *error]
    for rank, last in content.last_lines():
        lines += [f"rank {rank}, last lines:", *(f"    {line}" for line in last)]
    return in_lines("\n".join(lines))


def html(run: Any) -> str:
    """The run as HTML without scripts: state, restarts, first error, last lines.

    Args:
        run: A `Run`.
    """
    content = SummaryText(run)
    run_state = content.run_state
    color = _COLORS.get(content.state, "#1565c0")
    lines = [*content.as_of(), *content.restarts(), *run.status_lines()]
    parts = [
        f'<div style="border-left: 3px solid {color}; padding: 2px 0 2px 10px; line-height: 1.5">',
        f'<div><b style="color: {color}">{_escape(content.state)}</b> '
        f"{_escape(run_state['name'])} · {_escape(content.figures())}</div>",
        *(f"<div>{_escape(line)}</div>" for line in lines),
    ]
    error = content.first_error()
    if error:
        parts.append(_block("\n".join(error)))
    for rank, last in content.last_lines():
        opened = " open" if run_state["failures"] else ""
        # Jupyter would otherwise match shortcuts while the <summary> element has the focus.
        title = _escape(f"rank {rank}, last lines")
        label = f'<summary data-lm-suppress-shortcuts="true">{title}</summary>'
        parts.append(f"<details{opened}>{label}{_block(chr(10).join(last))}</details>")
    parts.append(
        f'<div style="opacity: 0.65; font-size: 0.85em">{_escape(run_state["path"])}</div></div>'
    )
    return "\n".join(parts)


class SummaryText:
    """A run's state as lines of text.

    Args:
        run: A `Run`.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self.run_state = ViewModel(run).run_state()
        self.state = str(run.state)

    def as_of(self) -> list[str]:
        """The time of the summary, for a run that isn't over: the summary may never be updated."""
        if self.run_state["over"]:
            return []
        return [f"{as_of()}; ice.attach({self.run_state['run_id']!r}) shows more"]

    def figures(self) -> str:
        """The number of ranks and restarts, and the elapsed time."""
        ranks, restarts = self.run_state["nproc"], len(self.run_state["restarts"])
        return (
            f"{ranks} rank{'s' * (ranks != 1)} · {restarts} restart{'s' * (restarts != 1)} · "
            f"{self.run.elapsed:.1f} s"
        )

    def restarts(self) -> list[str]:
        """The last restarts, each with its cause."""
        allowed = self.run_state["max_restarts"]
        return [
            f"restart {number} of {allowed}: "
            + (f"rank {restart['rank']}, " if restart["rank"] is not None else "")
            + _clean(str(restart["cause"]))
            for number, restart in enumerate(self.run_state["restarts"], 1)
        ][-_MAX_LINES:]

    def first_error(self) -> list[str]:
        """The error of the first failed rank, or why the run failed without one."""
        if not self.run_state["failures"]:
            note = self.run_state["note"]
            return [_clean(note)] if note and self.run_state["state"] != "STOPPED" else []
        first = self.run_state["failures"][0]
        text = first["traceback"].rstrip().split("\n") if first["traceback"] else [first["title"]]
        lines = [_clean(line) for line in text]
        when = f" in attempt {first['attempt']}" if self.run_state["restarts"] else ""
        return [
            f"rank {first['rank']} failed{when}",
            *lines,
            *([_clean(first["hint"])] if first["hint"] else []),
        ]

    def last_lines(self) -> list[tuple[int, list[str]]]:
        """The last lines of the failed ranks and of rank 0, by rank, where they wrote any."""
        failed = [failure["rank"] for failure in self.run_state["failures"]]
        ranks = dict.fromkeys([*failed[:_MAX_FAILED_RANKS], 0])
        return [(rank, lines) for rank in ranks if (lines := self._last_lines(rank))]

    def _last_lines(self, rank: int) -> list[str]:
        """The last lines of a rank's stdout, then of its stderr, without control characters."""
        found: list[str] = []
        for attempt in self.run._run_state.attempts[-1:]:
            for entry in attempt.ranks:
                if entry.rank == rank:
                    run_dir = ViewModel(self.run).dir
                    rank_dir = run_dir.rank(attempt.attempt, entry.local_rank, entry.node)
                    for path in (rank_dir.stdout, rank_dir.stderr):
                        found += _last_lines_of(run_dir, path)[-_MAX_LINES:]
        return found


def _last_lines_of(run_dir: RunDir, path: Path) -> list[str]:
    try:
        with open(run_dir.open_log(path), "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_SIZE))
            data = file.read()
    except OSError:
        return []
    lines = data.decode(errors="replace").rstrip("\n").split("\n")
    return [_clean(line.rstrip("\r").rpartition("\r")[2]) for line in lines] if data.strip() else []


def _clean(line: str) -> str:
    line = _CONTROL.sub("", line.replace("\n", " "))
    return line if len(line) <= _MAX_LINE_LENGTH else line[: _MAX_LINE_LENGTH - 1] + "…"


def _escape(text: object) -> str:
    return markup.escape(in_lines(text))


def _block(text: str) -> str:
    style = (
        "margin: 4px 0; white-space: pre-wrap; font-family: var(--jp-code-font-family, monospace)"
    )
    return f'<pre style="{style}">{_escape(text)}</pre>'
