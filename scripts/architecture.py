"""Writes the tables of ARCHITECTURE.md from the code, so that they can't say anything else.

    python scripts/architecture.py            prints them
    python scripts/architecture.py --write    puts them between their markers in ARCHITECTURE.md

A table's rows are the code's own: the fields, types and docstrings of the records in
`icelaunch_nb.rundir` and `icelaunch_nb.launching`, the paths of `RunDir` and `RankDir`, and the
rooms of tests/test_rooms.py. Only `FILES` here says who writes a file and when it is removed.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import runpy
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from icelaunch_nb.config import LaunchConfig
from icelaunch_nb.launching import launch_messages
from icelaunch_nb.launching.launch_environment import LaunchEnvironment
from icelaunch_nb.rundir import agent_requests, debug_socket, events_board, journal_events, records
from icelaunch_nb.rundir.checkpoint import Checkpoint
from icelaunch_nb.rundir.error_file import RankError
from icelaunch_nb.rundir.paths import RankDir, RunDir
from icelaunch_nb.rundir.source_locations import CellSource
from icelaunch_nb.rundir.spec import RunSpec

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "ARCHITECTURE.md"
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_RUN, _RANK = "RUN", "RANK"

STAYS = "stays"
WITH_THE_RUN = "goes at the run's end"
WITH_THE_RANK = "goes at the rank's end"
WITH_THE_PROMPT = "goes as the rank goes on"
WITH_THE_WATCHER = "goes with the handle"


class File(NamedTuple):
    """A file of a run.

    Attributes:
        writer: Which process writes to it.
        content: What it holds.
        end: When it is removed.
    """

    writer: str
    content: str
    end: str = STAYS


# The key is the name of the property or the method that returns the path.
FILES = {
    "spec": File("kernel", "What was asked: a `RunSpec`."),
    "call": File(
        "kernel",
        "The function and its arguments, pickled. A run of a program has none.",
        WITH_THE_RUN,
    ),
    "sources": File(
        "kernel", "The cells that the function comes from: a `CellSource` by code filename."
    ),
    "journal": File(
        "agent",
        "What happened, an event a line. The host adds an end that its agent couldn't write, "
        "the kernel one that its host couldn't.",
    ),
    "agent_log": File("agent", "What torch elastic logs, and the agent's own stdout and stderr."),
    "board": File("all", "Flags, counters and progress bars, memory-mapped. The kernel makes it."),
    "disk_reserve": File(
        "agent",
        "128 kB for the last words on a full disk. Whoever finds the disk full removes it.",
        WITH_THE_RUN,
    ),
    "checkpoint": File("rank", "The newest checkpoint that a rank reported: a `Checkpoint`."),
    "control": File(
        "kernels, host, ranks", "A FIFO: requests to the agent, one a line. The kernel makes it."
    ),
    "agent_alive": File(
        "nobody",
        "A FIFO whose only writer is the agent. When it closes, Linux ends the ranks. "
        "The kernel makes it.",
    ),
    "watchers": File(
        "kernels",
        "A mark for each handle on the run. That of a process that is gone counts for nothing.",
        WITH_THE_WATCHER,
    ),
    "steps": File(
        "rank",
        "How the ranks of the attempt agree on a step. The first rank that needs it makes it.",
    ),
    "stdout": File(
        "rank", "What the rank writes to stdout, as torch elastic lays it. The agent makes it."
    ),
    "stderr": File("rank", "The same of stderr."),
    "error": File(
        "rank",
        "Why the rank failed, in torch elastic's layout, with a `RankError` under `icelaunch`.",
    ),
    "exception": File("rank", "The exception itself, pickled, for `__cause__`."),
    "result": File("rank", "What the function returned, pickled."),
    "metrics": File("rank", "What the rank reported, a row a line."),
    "stacks": File("rank", "Where faulthandler writes the stacks of all threads on request."),
    "error_reserve": File(
        "rank",
        "Stands in for an error file that can't be written. The agent reads it.",
        WITH_THE_RANK,
    ),
    "debugger": File(
        "rank",
        "The socket of the rank's debugger. A rank that is killed at its prompt leaves it.",
        WITH_THE_PROMPT,
    ),
    "debugger_lock": File("rank", "Held while a thread or child of the rank is in the debugger."),
    "child_main": File(
        "rank", "What children of the rank by spawn or forkserver run first, and what that loads."
    ),
}
# The properties that name no file of their own.
_FOLDERS = {
    "path",
    "identity",
    "node",
    "journal_of",
    "attempt",
    "rank",
    "ranks",
    "run_dir",
    "local_rank",
}


def tables() -> dict[str, str]:
    """Returns every table in Markdown, by name."""
    return {
        "rooms": _rooms(),
        "paths": _paths(),
        "types": _types(),
        "spec": _records("field of", [RunSpec]),
        "files": _records("record", [Checkpoint, CellSource, RankError]),
        "events": _records(
            "event",
            [*_named(journal_events.Event), journal_events.RankEntry, journal_events.FailedRank],
            leave_out=journal_events.Event,
        ),
        "requests": _records(
            "request", _named(agent_requests.Request), leave_out=agent_requests.Request
        ),
        "messages": _records("message", [*_named(launch_messages.Message), LaunchEnvironment]),
        "debugger": _records("message", _named(debug_socket.DebugMessage)),
        "flags": _flags(),
    }


def filled_in(document: str) -> str:
    """Returns a document with its tables filled in from the code.

    Raises:
        KeyError: The document has a marker of an unknown table.
    """
    found = tables()
    return _MARKED.sub(lambda match: f"{match[1]}{found[match[2]]}\n{match[3]}", document)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )


def _rooms() -> str:
    enforced = runpy.run_path(str(ROOT / "tests" / "test_rooms.py"))
    rows = []
    for name, may in enforced["ROOMS"].items():
        rows.append(
            [f"`{name}/`", _summary(importlib.import_module(f"icelaunch_nb.{name}")), _quoted(may)]
        )
    for name, may in enforced["AT_THE_ROOT"].items():
        module = importlib.import_module(
            "icelaunch_nb" if name == "__init__" else f"icelaunch_nb.{name}"
        )
        rows.append([f"`{name}.py`", _summary(module), _quoted(may)])
    return _table(["room", "what it is", "may import"], rows)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _summary(thing: Any) -> str:
    """Returns the first paragraph of a docstring, as one line."""
    text = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0]
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))


def _paths() -> str:
    run_dir = RunDir(Path(_RUN))
    found: dict[str, Path | tuple[Path, ...]] = {"steps": run_dir.steps(0)}
    for owner, there in ((RunDir, run_dir), (RankDir, run_dir.rank(0, 0))):
        for name, member in vars(owner).items():
            if isinstance(member, property) and name not in found and name not in _FOLDERS:
                found[name] = getattr(there, name)
    found["child_main"] = run_dir.rank(0, 0).child_main(0)
    if set(found) != set(FILES):
        raise KeyError(
            "FILES of scripts/architecture.py and the paths of RunDir and RankDir differ: "
            f"{sorted(set(found) ^ set(FILES))}"
        )
    rows = []
    for name, file in FILES.items():
        path = found[name]
        shown = " ".join(
            f"`{_shown(one)}`" for one in (path if isinstance(path, tuple) else (path,))
        )
        rows.append([shown, file.writer, file.content, file.end])
    return _table(["path", "written by", "what it holds", "when it goes"], rows)


def _shown(path: Path) -> str:
    text = str(path.relative_to(_RUN))
    text = (
        text.replace("attempt_0/0/", "attempt_<k>/<local_rank>/")
        .replace("attempt_0/", "attempt_<k>/")
        .replace("child_main_0", "child_main_<n>")
    )
    return f"{text}/<mark>" if text == "watchers" else text


def _aliases() -> list[tuple[str, Any]]:
    """Returns the field types of `records` that have a name."""
    return [
        (name, hint) for name, hint in vars(records).items() if typing.get_origin(hint) is Annotated
    ]


def _types() -> str:
    return _table(["type", "must be"], [[f"`{name}`", _must_be(hint)] for name, hint in _aliases()])


def _must_be(hint: Any) -> str:
    (check,) = hint.__metadata__
    item = typing.get_args(hint.__origin__)
    return f"{check.remedy}, each a {_type(item[0])}" if item else check.remedy


def _type(hint: Any) -> str:
    """Returns a field's type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for name, alias in _aliases():
            if alias == hint:
                return f"`{name}`"
        items = typing.get_args(hint.__origin__)
        return f"list of {_type(items[0])}" if items else hint.__metadata__[0].remedy
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _type(one) for one in arguments)
    if arguments:
        return f"`{hint}`".replace("typing.", "")
    return f"`{hint.__name__}`"


def _named(base: type[records.Record]) -> Iterator[type[records.Record]]:
    """Yields the records that name themselves in their line, in the order of their definition."""
    for kind in base.__subclasses__():
        if getattr(kind, "name", ""):
            yield kind
        yield from _named(kind)


def _records(
    what: str,
    kinds: Iterable[type[records.Record]],
    *,
    leave_out: type[records.Record] | None = None,
) -> str:
    """Returns a table of records and their fields.

    Args:
        what: The head of the first column.
        kinds: The records.
        leave_out: A base class whose fields the table leaves out. All its subclasses have them, and
            the text around the table names them.
    """
    common = {one.name for one in fields(leave_out)} if leave_out else set()
    rows = []
    for kind in kinds:
        on_the_line = getattr(kind, "name", "")
        meaning = _summary(kind)
        if issubclass(kind, launch_messages.Message):
            meaning = f"{_summary(kind.__mro__[1])} {meaning}"  # who sends it to whom
        rows.append(
            [
                f"**`{on_the_line or kind.__name__}`**",
                f"`{kind.__name__}`" if on_the_line else "",
                "",
                meaning,
            ]
        )
        hints, meanings = typing.get_type_hints(kind, include_extras=True), _attributes(kind)
        left_out = common if leave_out and issubclass(kind, leave_out) else set()
        for one in fields(kind):
            if one.name not in left_out:
                rows.append(
                    [
                        f"`{one.name}`",
                        _type(hints[one.name]),
                        _default(one),
                        meanings.get(one.name, ""),
                    ]
                )
    return _table([what, "type", "default", "meaning"], rows)


def _default(one: Any) -> str:
    """Returns a field's default as JSON, or an empty string if every line must have the field."""
    if one.default is MISSING and one.default_factory is MISSING:
        return ""
    value = one.default if one.default_factory is MISSING else one.default_factory()
    return (
        f"a `{type(value).__name__}`"
        if isinstance(value, records.Record | LaunchConfig)
        else f"`{json.dumps(value)}`"
    )


def _attributes(kind: type) -> dict[str, str]:
    """Returns what a class's docstring says of each attribute."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {
        name: re.sub(r"``(.+?)``", r"`\1`", " ".join(sentence.split())) for name, sentence in found
    }


def _flags() -> str:
    return _table(
        ["flag", "set by"],
        [
            [f"`{flag}`", "the agent, by a request" if flag in events_board.REQUESTS else "ranks"]
            for flag in events_board.FLAGS
        ],
    )


def main() -> int:
    """Prints the tables, or writes them into ARCHITECTURE.md."""
    parser = argparse.ArgumentParser(
        prog="python scripts/architecture.py",
        description="The tables of ARCHITECTURE.md, from the code.",
    )
    parser.add_argument("--write", action="store_true", help="put them into ARCHITECTURE.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(filled_in(DOCUMENT.read_text()))
    else:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in tables().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
