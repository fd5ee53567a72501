"""The documents agree with the code: tables, examples, and the files and tests that they name."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest

from icelaunch_nb.launching import launch_messages
from icelaunch_nb.rundir import agent_requests, debug_socket, journal_events
from icelaunch_nb.rundir.records import Record, parse_line
from icelaunch_nb.rundir.spec import FORMAT, parse_spec

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "architecture.py"))
# By family: its parser, its writer and its base class. A run has one spec, so that has no base.
FAMILIES = {
    "spec": (
        lambda line: parse_spec(parse_line(line)),
        lambda spec: json.dumps({**spec.to_json(), "format": FORMAT}),
        None,
    ),
    "events": (
        lambda line: journal_events.parse_event(parse_line(line)),
        lambda event: json.dumps(event.to_line()),
        journal_events.Event,
    ),
    "requests": (
        agent_requests.parse_request,
        lambda request: json.dumps({"request": request.name, **request.to_json()}),
        agent_requests.Request,
    ),
    "messages": (
        launch_messages.parse_message,
        lambda message: message.to_line().decode().rstrip(),
        launch_messages.Message,
    ),
    "debugger": (
        debug_socket.parse_message,
        lambda message: json.dumps({"message": message.name, **message.to_json()}),
        debug_socket.DebugMessage,
    ),
}


def examples(family: str) -> list[str]:
    (block,) = re.findall(
        rf"<!-- examples: {family} -->\n```json\n(.*?)```", ARCHITECTURE, re.DOTALL
    )
    return block.splitlines()


def unknown(value) -> list[str]:
    """Returns the names of unknown fields in a record and in the records within it."""
    if isinstance(value, list):
        return [name for one in value for name in unknown(one)]
    if isinstance(value, Record):
        return [
            *value.unknown,
            *(name for one in fields(value) for name in unknown(getattr(value, one.name))),
        ]
    return []


def test_the_tables_agree_with_the_code():
    assert set(re.findall(r"<!-- table: (\w+) -->", ARCHITECTURE)) == set(SCRIPT["tables"]())
    assert SCRIPT["filled_in"](ARCHITECTURE) == ARCHITECTURE, (
        "python scripts/architecture.py --write"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_examples_are_lines_that_the_code_writes(family):
    parse, write, base = FAMILIES[family]
    found = [(line, parse(line.encode())) for line in examples(family)]
    for line, record in found:
        assert record is not None, line
        assert unknown(record) == [], line
        assert write(record) == line
    if base is not None:
        assert sorted(record.name for _, record in found) == sorted(
            kind.name for kind in SCRIPT["_named"](base)
        ), "one example of each"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_and_test_that_a_document_names_exists(document):
    text = (ROOT / document).read_text()
    tests = re.findall(r"\b(tests/[\w/]+\.py)::(\w+)", text)
    assert [
        f"{path}::{name}"
        for path, name in tests
        if not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ] == []
    names = {
        *re.findall(
            r"(?<![\w./-])((?:tests|scripts|notebooks|benchmarks|icelaunch_nb|docs)/[\w./-]*\w)",
            text,
        )
    }
    # Below the package, documents name files from its own folder on.
    names |= {
        f"icelaunch_nb/{name}"
        for name in re.findall(rf"`((?:{'|'.join(rooms())})/[\w/]+\.\w+)`", text)
    }
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert sorted(name for name in names | links if not (ROOT / name).exists()) == []


def rooms() -> list[str]:
    return [path.parent.name for path in (ROOT / "icelaunch_nb").glob("*/__init__.py")]
