"""Whatever is written into the control FIFO, the run can still be read and stopped.

Lines that can't be read are noted in agent.log.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

import icelaunch_nb as ice

DEEP = b"[" * 2000 + b"]" * 2000
EVENT = b'{"request": "write_event", "event": {"kind": %s}}'
BAD = [
    DEEP,
    b'{"request": ' + DEEP[-2000:] + b"}",
    b"5",
    b"null",
    b"[]",
    b"{}",
    b'{"request": 1}',
    b'{"request": ["stop"]}',
    b'{"request": "write_event", "event": 5}',
    b'{"request": "write_event", "event": {}}',
    EVENT % b'1, "text": "x"',
    EVENT % b'"x", "text": ["x"]',
    EVENT % b'"x", "text": "x", "rank": "<img>"',
    EVENT % b'"debugger_start", "text": "x"',
    EVENT % b'"debugger_start", "text": "x", "rank": 0, "where": {}',
    EVENT % b'"debugger_end", "text": "x", "rank": []',
    EVENT % b'"silent", "text": "x", "ranks": 7, "where": "x"',
    EVENT % b'"recovered", "text": "x", "ranks": [{}]',
    b"\xff\xfe\x00\xff",
    b"stop",
    b'{"request": "stop", "grace": "soon"}',
    b'{"request": "stop", "grace": NaN}',
    b'{"request": "stop", "grace": -1}',
    b'{"request": "stop", "grace": 1e400}',
    b'{"request": "KILL"}',
    b'{"request": "kill"',
    b'{"request": "kill", "number": -1}',
    b'{"request": "set_flag", "flag": "wings", "value": true}',
    b'{"request": "set_flag", "flag": "pause", "value": 1}',
    b"\x00" * 100,
    b" ",
    b"x" * 4000,
]
GOOD = EVENT % b'"pause", "text": "an event of a newer version", "wings": {"left": [[1]]}'


@pytest.fixture
def run(runs: Path) -> ice.Run:
    run = ice.launch(time.sleep, (600,), nproc_per_node=2, devices="cpu")
    while run.state != "RUNNING":
        time.sleep(0.005)
    return run


def write(run: ice.Run, *lines: bytes) -> None:
    """Writes into the FIFO, as any process of the user can. It blocks while the FIFO is full."""
    fd = os.open(Path(run.log_dir, "control"), os.O_WRONLY)
    try:
        for line in lines:
            while line:
                line = line[os.write(fd, line) :]
    finally:
        os.close(fd)


def texts(run: ice.Run) -> list[str]:
    return [event.text for event in run._run_state.timeline]


def test_lines_that_cant_be_read_are_noted_and_passed_over(run: ice.Run) -> None:
    write(
        run, *(line + b"\n" for line in BAD), b"A" * 300_000 + b"\n", GOOD + b"\n", b"half a line"
    )
    while not texts(run):
        assert run.state == "RUNNING"
        time.sleep(0.005)
    assert texts(run) == ["an event of a newer version"]
    for handle in (run, ice.attach(run.log_dir)):
        assert handle.state == "RUNNING" and not handle.in_debugger and not handle.silent
    log = Path(run.log_dir, "agent.log").read_text()
    assert log.count("is passed over") == len(BAD) + 1
    assert (
        "is passed over: InvalidValueError: grace='soon': must be a number from 0 to 1e+06" in log
    )
    assert "a line of more than 4096 bytes" in log
    assert len(log) < 30_000
    run.stop(grace=5)
    with pytest.raises(ice.RunStopped):
        run.result(60)


def test_a_line_without_end_does_not_keep_a_kill_from_working(run: ice.Run) -> None:
    write(run, b'{"request": "stop", "grace": 1e400}\n' * 3, b"B" * 200_000)
    run.kill()
    with pytest.raises(ice.RunStopped):
        run.result(60)


def test_a_flood_of_bad_lines_doesnt_fill_the_log(run: ice.Run) -> None:
    write(run, b"nonsense\n" * 20_000, GOOD + b"\n")
    while not texts(run):
        time.sleep(0.005)
    assert Path(run.log_dir, "agent.log").read_text().count("nonsense") == 50
    with contextlib.suppress(BrokenPipeError):  # the first one is enough
        write(run, b'{"request": "kill"}\n' * 20_000)
    with pytest.raises(ice.RunStopped):
        run.result(60)
