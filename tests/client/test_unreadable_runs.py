"""A run that can't be read is listed as such, and the others are listed, attached and cleaned."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import icelaunch_nb as ice
from icelaunch_nb.client.runs import add_to_index
from icelaunch_nb.errors import IcelaunchError, UnreadableRunError
from icelaunch_nb.notebook.panel import summary
from icelaunch_nb.notebook.panel.view_model import ViewModel
from icelaunch_nb.rundir import agent_requests
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.journal_events import (
    AgentStarted,
    AttemptStarted,
    Ended,
    FailedRank,
    RankEntry,
    parse_event,
)
from icelaunch_nb.rundir.paths import RunDir, make_run_dir
from icelaunch_nb.rundir.run_state import RunState
from icelaunch_nb.rundir.spec import FORMAT, read_spec

DEEP = "[" * 5000 + "]" * 5000
IMG = "<img src=x onerror=alert(1)>"


def spec_of(run_id: str, **more: object) -> dict:
    config = ice.LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).to_json()
    return {
        "run_id": run_id,
        "name": "work",
        "time": time.time(),
        "config": config,
        "program": [],
        "devices": ["cpu"],
        **more,
    }


def make_run(base: Path, run_id: str, **more: object) -> RunDir:
    run_dir = make_run_dir(str(base), run_id)
    Board().move_to(run_dir.board)
    run_dir.write_json(run_dir.spec, spec_of(run_id, **more))
    with JournalWriter(run_dir.journal) as journal:
        journal.write(AgentStarted(pid=1, started=0.5))
        journal.write(
            AttemptStarted(
                attempt=0,
                world_size=1,
                ranks=[RankEntry(rank=0, local_rank=0, pid=1, started=0.5, device="cpu")],
            )
        )
        journal.write(Ended(state="SUCCEEDED"))
    add_to_index(run_dir.path)
    return run_dir


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "base"


def spec_with(**more: object) -> str:
    return json.dumps({**spec_of("bad"), **more})


def config_with(**more: object) -> str:
    return spec_with(config={**spec_of("bad")["config"], **more})


SPECS = {
    "empty object": "{}",
    "list": "[]",
    "null": "null",
    "nothing": "",
    "half": '{"run_id": "bad", ',
    "deep": DEEP,
    "deep inside": f'{{"run_id": {DEEP}}}',
    "no utf-8": "\udcff",
    "long number": '{"run_id": "bad", "name": "f", "time": ' + "9" * 5000 + "}",
    "name": spec_with(name=["f"]),
    "time": spec_with(time="yesterday"),
    "endless time": spec_with(time=float("inf")),
    "no time": spec_with(time=float("nan")),
    "year 10^300": spec_with(time=1e300),
    "run_id": spec_with(run_id=7),
    "devices": spec_with(devices="cpu"),
    "two devices": spec_with(devices=["cpu"] * 2),
    "program": spec_with(program=[1]),
    "config": spec_with(config=[]),
    "no ranks": spec_with(config={}),
    "nproc": config_with(nproc_per_node=IMG),
    "nproc 1e9": config_with(nproc_per_node=10**9),
    "role": config_with(role={}),
    "tee": config_with(tee="99"),
    "hang": spec_with(hang_after=-1),
    "output": spec_with(saved_output="1 MB"),
    "format of a newer version": spec_with(format=FORMAT + 1),
    "less than no output": spec_with(saved_output=-1),
}


@pytest.mark.parametrize("name", SPECS)
def test_an_unreadable_spec_is_reported_and_harms_no_other_run(name, base):
    make_run(base, "first")
    bad = make_run(base, "bad")
    bad.spec.write_bytes(SPECS[name].encode(errors="surrogateescape"))
    make_run(base, "last")
    found = ice.runs()
    assert [run.run_id for run in found] == ["last", "bad", "first"]
    assert [str(run.state) for run in found] == ["SUCCEEDED", "UNREADABLE", "SUCCEEDED"]
    assert "UNREADABLE" in repr(found) and "UNREADABLE" in found._repr_html_()
    assert IMG not in found._repr_html_()
    assert "spec.json" in repr(found[1])
    assert ice.attach("first").run_id == "first"
    for way in ("bad", bad.path):
        with pytest.raises(UnreadableRunError, match=r"spec\.json"):
            ice.attach(way)
    with pytest.raises(IcelaunchError):
        found[1].result(0)
    assert len(ice.runs().clean(keep=0)) == 3, "an unreadable run is removed like any that is over"
    assert os.listdir(base) == []


@pytest.mark.parametrize(
    "end",
    [
        {"state": "HIBERNATED"},
        {"state": 5},
        {},
        {"state": "FAILED", "note": []},
        {"state": "RUNNING"},
        {"state": "FAILED", "t": "x"},
        {"state": IMG},
    ],
    ids=str,
)
def test_a_run_whose_end_cant_be_parsed_is_unreadable(end, base):
    make_run(base, "first")
    bad = make_run(base, "bad")
    lines = bad.journal.read_text().splitlines()[:-1]
    bad.journal.write_text(
        "\n".join([*lines, json.dumps({"t": 5.0, "event": "end", **end})]) + "\n"
    )
    found = ice.runs()
    assert [str(run.state) for run in found] == ["UNREADABLE", "SUCCEEDED"]
    assert "UNREADABLE" in repr(found)
    assert IMG not in found._repr_html_()
    assert ice.attach("first").state == "SUCCEEDED"
    with pytest.raises(UnreadableRunError, match="how it ended can't be read"):
        ice.attach("bad").result()
    assert len(found.clean(keep=0)) == 2


def test_a_journal_that_is_no_file_is_unreadable(base):
    make_run(base, "first")
    bad = make_run(base, "bad")
    bad.journal.unlink()
    bad.journal.symlink_to("/etc/hostname")
    assert [str(run.state) for run in ice.runs()] == ["UNREADABLE", "SUCCEEDED"]


def test_a_run_of_a_newer_version_is_read_as_far_as_it_is_known(base):
    run_dir = make_run(base, "new", wings=2)
    spec = json.loads(run_dir.spec.read_text())
    run_dir.write_json(run_dir.spec, {**spec, "config": {**spec["config"], "feathers": [1]}})
    lines = run_dir.journal.read_text().splitlines()
    lines[1:1] = [
        '{"t": 1.0, "event": "flight", "height": {"m": 3}}',
        '{"t": 1.0, "event": "moment", "kind": "land", "text": "landed", "gear": 5}',
    ]
    run_dir.journal.write_text("\n".join(lines) + "\n")
    run = ice.attach("new")
    assert (run.state, run.config.nproc_per_node, len(run._run_state.timeline)) == (
        "SUCCEEDED",
        1,
        1,
    )
    assert read_spec(run_dir).unknown == {"wings": 2}


def test_a_run_of_an_older_version_has_defaults_for_what_it_lacks(base):
    run_dir = make_run(base, "old")
    run_dir.write_json(run_dir.spec, {"run_id": "old", "name": "f", "time": 5.0})
    run = ice.attach("old")
    assert (run.config.nproc_per_node, run.devices, run.state) == (1, {0: "cpu"}, "SUCCEEDED")
    assert "old" in summary.html(run)


def test_a_run_from_a_machine_with_other_directories_is_read(base):
    make_run(base, "moved", config={**spec_of("moved")["config"], "log_dir": "/proc/1/nowhere"})
    assert ice.attach("moved").config.log_dir == "/proc/1/nowhere"


def test_attach_reads_a_name_as_a_run_id_before_a_path(base, tmp_path, monkeypatch):
    run_dir, other = make_run(base, "name"), make_run(base, "other")
    monkeypatch.chdir(tmp_path)
    other.path.rename(tmp_path / "name")
    assert ice.attach("name").log_dir == str(run_dir.path)
    assert ice.attach("./name").run_id == ice.attach(Path("name")).run_id == "other"
    run_dir.path.rename(tmp_path / "away")
    assert ice.attach("name").run_id == "other", "the name is a directory where no run has that id"


@pytest.mark.parametrize(
    "content", [b"", b"half a boa", b"x" * 4096, None], ids=["empty", "short", "another", "missing"]
)
def test_a_damaged_events_board_is_reported_and_the_run_can_be_read(content, base):
    run_dir = make_run(base, "damaged")
    run_dir.board.unlink(missing_ok=True)
    if content is not None:
        run_dir.board.write_bytes(content)
        run_dir.board.chmod(0o600)
    run = ice.attach("damaged")
    assert run.state == "SUCCEEDED" and "damaged" in summary.html(run)
    with pytest.raises(
        UnreadableRunError, match=r"run damaged has no events that can be read: .*events\.board"
    ):
        run.events  # noqa: B018


# Values.


BAD_EVENTS = [
    {"event": "agent", "pid": -1, "started": 1.0},
    {"event": "agent", "pid": 0, "started": 1.0},
    {"event": "agent", "pid": True, "started": 1.0},
    {"event": "agent", "pid": "1", "started": 1.0},
    {"event": "agent", "pid": 1},
    {"event": "agent", "pid": 1, "started": float("nan")},
    {"event": "attempt", "attempt": 0, "world_size": 1, "ranks": []},
    {"event": "attempt", "attempt": "0", "world_size": 1, "ranks": [{}]},
    *(
        {
            "event": "attempt",
            "attempt": 0,
            "world_size": 1,
            "ranks": [{"rank": 0, "local_rank": 0, "pid": 1, "started": 1.0, **more}],
        }
        for more in (
            {"rank": IMG},
            {"rank": -1},
            {"local_rank": "../../.."},
            {"local_rank": 10**9},
            {"pid": None},
            {"started": []},
            {"device": 3},
        )
    ),
    {
        "event": "attempt",
        "attempt": 0,
        "world_size": 2,
        "ranks": [{"rank": 0, "local_rank": 0, "pid": 1, "started": 1.0}] * 2,
    },
    {"event": "failure", "failures": {}},
    {"event": "failure", "failures": [{"rank": 0}]},
    {"event": "failure", "failures": [5]},
    {"event": "restart", "attempt": 1, "cause": 3},
    {"event": "restart", "attempt": 1, "cause": "x", "rank": IMG},
    {"event": "moment", "kind": "debugger_start", "text": "waits"},
    {"event": "moment", "kind": "debugger_start", "text": "waits", "rank": 0, "where": 3},
    {"event": "moment", "kind": "debugger_end", "text": "goes on", "rank": None},
    {"event": "moment", "kind": [], "text": "x"},
    {"event": "moment", "kind": "silent", "text": "x", "ranks": 3, "where": ""},
    {"event": "moment", "kind": "silent", "text": "x", "ranks": [IMG], "where": ""},
    {"event": "moment", "kind": "heard", "text": "x"},
    {"event": "moment", "kind": "x", "text": "x", "rank": IMG},
    {"event": "stopping", "grace": "30"},
    {"event": "stopping", "grace": float("inf")},
    {"event": "unkillable", "pid": -1},
    {"event": "unkillable"},
]


@pytest.mark.parametrize("event", BAD_EVENTS, ids=lambda event: json.dumps(event)[:60])
def test_an_event_with_an_impossible_value_is_ignored(event, base):
    run_dir = make_run(base, "run")
    lines = run_dir.journal.read_text().splitlines()
    for line in (
        json.dumps({"t": 1.0, **event}),
        json.dumps({**event, "t": IMG}),
        DEEP,
        "\udcff",
        f'{{"event": {DEEP}}}',
    ):
        run_dir.journal.write_bytes(
            "\n".join([lines[0], line, *lines[1:]]).encode(errors="surrogateescape") + b"\n"
        )
        run = ice.attach("run")
        assert run.state == "SUCCEEDED" and [
            len(attempt.ranks) for attempt in run._run_state.attempts
        ] == [1]
        found = run._run_state
        assert found.timeline == () and found.failures == () and found.restarts == ()
        assert IMG not in summary.html(run) + run._dir.journal.name


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([IMG, "../..", "SUCCEEDED", 0, 1, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rank", "ranks", "pid", "text", "where", "t"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)
EVENTS = [
    {"event": "agent", "pid": 1, "started": 1.0},
    {
        "event": "attempt",
        "attempt": 0,
        "world_size": 1,
        "ranks": [{"rank": 0, "local_rank": 0, "pid": 1, "started": 1.0, "device": "cpu"}],
    },
    {"event": "restart", "attempt": 1, "cause": "x", "rank": 0, "failed_at": 1.0},
    {
        "event": "failure",
        "attempt": 0,
        "failures": [
            FailedRank.of(ice.Failure(0, 0, 0, 1.0, 1, "raised", 1, "ValueError", "x")).to_json()
        ],
    },
    *(
        {"event": "moment", "kind": kind, "text": "x", "rank": 0, "ranks": [0], "where": "there"}
        for kind in (
            "debugger_start",
            "debugger_step",
            "debugger_end",
            "silent",
            "heard",
            "pause",
        )
    ),
    {"event": "stopping", "grace": 3.0, "reason": "x"},
    {"event": "unkillable", "pid": 1},
    {"event": "end", "state": "FAILED", "note": "x"},
]


@st.composite
def spoilt(draw, value):
    """A value of which one part is replaced by any JSON."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(value)))
        return {
            key: draw(spoilt(item)) if key == name else item
            for key, item in value.items()
            if key != name or draw(st.integers(0, 5))
        }
    if isinstance(value, list) and value and draw(st.booleans()):
        return [draw(spoilt(item)) for item in value]
    return draw(json_values)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_run_with_any_content_can_be_listed_and_shown(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "spoilt"
    path.mkdir(exist_ok=True)
    run_dir = RunDir(path)
    if not run_dir.board.exists():
        Board().move_to(run_dir.board)
    spec = spec_of("x")
    run_dir.write_json(run_dir.spec, data.draw(spoilt(spec)) if data.draw(st.booleans()) else spec)
    events = data.draw(
        st.lists(
            st.sampled_from(EVENTS).flatmap(lambda event: st.just(event) | spoilt(event)),
            max_size=8,
        )
    )
    run_dir.journal.write_text(
        "".join(
            json.dumps({"t": 2.0, **event} if isinstance(event, dict) else event) + "\n"
            for event in events
        )
    )
    run_dir.write_json(
        run_dir.checkpoint, data.draw(spoilt({"path": "/c", "time": 1.0, "rank": 0, "step": 1}))
    )
    run_dir.write_json(
        run_dir.sources, data.draw(spoilt({"<a>": {"name": "Cell In[1]", "source": "x"}}))
    )
    try:
        run = ice.attach(path)
    except IcelaunchError:
        return
    shown = [
        repr(run),
        summary.text(run),
        summary.html(run),
        json.dumps(ViewModel(run).run_state()),
        json.dumps(ViewModel(run).live_state({}, {})),
    ]
    shown += [
        run.state,
        run.in_debugger,
        run.silent,
        run.last_checkpoint,
        run.pids,
        run.elapsed,
        run.devices,
        run.metrics(),
    ]
    for name in ("logs", "result"):
        if run.state.over or name == "logs":
            with contextlib.suppress(IcelaunchError, ValueError):
                getattr(run, name)()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EVENTS).flatmap(spoilt))
def test_every_event_that_can_be_parsed_fits_into_a_run_state(data):
    if not isinstance(data, dict):
        return
    event = parse_event({"t": 1.0, **data})
    if event is not None:
        RunState().after(event).hangs()
        assert parse_event(json.loads(json.dumps(event.to_line()))) == event or event.name == ""
    line = json.dumps({"request": "write_event", "event": data}).encode()
    with contextlib.suppress(ValueError):
        RunState().after(agent_requests.parse_request(line).event).hangs()


def test_a_rank_that_ended_before_the_agent_read_its_start_time_counts():
    """Its agent writes -1 as its start time. Without that entry, its result would be lost."""
    ranks = [{"rank": 0, "local_rank": 0, "pid": 7, "started": -1.0, "device": "cpu"}]
    assert (
        parse_event({"t": 1.0, "event": "attempt", "attempt": 0, "world_size": 1, "ranks": ranks})
        .ranks[0]
        .started
        == -1.0
    )
