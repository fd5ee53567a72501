"""The static summary of a run, for where no panel is mounted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from icelaunch_nb import LaunchConfig, Run
from icelaunch_nb.client.runs import Runs
from icelaunch_nb.notebook.panel import summary
from icelaunch_nb.notebook.panel.view_model import ViewModel
from icelaunch_nb.rundir.journal_events import Ended, TimelineEvent, parse_event
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.run_state import RunState, State

LIMIT = 100_000  # bytes that a run may add to a saved notebook


_UNFIT = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"  # for a terminal, a page, or UTF-8


class _Markup(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def _failure(rank, **fields):
    return {
        "rank": rank,
        "local_rank": rank,
        "attempt": 1,
        "time": 1010.0,
        "pid": 10 + rank,
        "kind": "raised",
        "exitcode": 1,
        "type_name": "ValueError",
        "message": "the <cause>",
        "traceback": "Cell In[1], line 2\nValueError: the <cause>",
        **fields,
    }


@pytest.fixture
def record(tmp_path):
    """A function that writes a run directory and returns the run."""

    def lay(*events, name="train", ranks=2, logs=None, max_restarts=1):
        run_dir = RunDir(tmp_path)
        config = LaunchConfig(1, 1, ranks, run_id="r1", max_restarts=max_restarts)
        spec = {
            "run_id": "r1",
            "name": name,
            "time": 1000.0,
            "config": config.to_json(),
            "program": [],
            "devices": ["cpu"] * ranks,
        }
        run_dir.spec.write_text(json.dumps(spec))
        run_dir.journal.write_text("".join(json.dumps(event) + "\n" for event in events))
        for (attempt, rank, stream), data in (logs or {}).items():
            folder = run_dir.rank(attempt, rank)
            folder.path.mkdir(parents=True, exist_ok=True)
            getattr(folder, stream).write_bytes(data)
        return Run(tmp_path)

    return lay


def _attempt(number=0, ranks=2):
    entries = [
        {"rank": rank, "local_rank": rank, "pid": 10 + rank, "started": 1.0, "device": "cpu"}
        for rank in range(ranks)
    ]
    return {
        "t": 1001.0 + number,
        "event": "attempt",
        "attempt": number,
        "restart_count": number,
        "world_size": ranks,
        "ranks": entries,
    }


SUCCESS = {"t": 1012.5, "event": "end", "state": "SUCCEEDED"}
FAILED = (
    _attempt(0),
    {
        "t": 1005.0,
        "event": "restart",
        "attempt": 1,
        "rank": 1,
        "cause": "RuntimeError: once",
        "failed_at": 1004.0,
    },
    _attempt(1),
    {"t": 1010.0, "event": "failure", "attempt": 1, "failures": [_failure(1)]},
    {"t": 1012.5, "event": "end", "state": "FAILED"},
)


def test_a_run_that_succeeded(record):
    run = record(
        _attempt(), SUCCESS, logs={(0, 0, "stdout"): b"".join(b"line %d\n" % i for i in range(50))}
    )
    shown = _Markup(summary.html(run)).text
    assert (
        "SUCCEEDED" in shown
        and "train" in shown
        and "2 ranks" in shown
        and "12.5 s" in shown
        and run.log_dir in shown
    )
    assert [f"line {i}" in shown.split("\n") or f"line {i}" in shown for i in (29, 30, 49)] == [
        False,
        True,
        True,
    ]
    plain = summary.text(run).split("\n")
    assert plain == [repr(run), "rank 0, last lines:", *(f"    line {i}" for i in range(30, 50))]


def test_a_failed_run_shows_its_error_and_the_failed_ranks_last_lines(record):
    run = record(
        *FAILED,
        logs={(1, 0, "stdout"): b"zero\n", (1, 1, "stdout"): b"one\n", (1, 1, "stderr"): b"oops\n"},
    )
    for shown in (_Markup(summary.html(run)).text, summary.text(run)):
        assert "FAILED" in shown
        assert "restart 1 of 1: rank 1, RuntimeError: once" in shown
        assert "ValueError: the <cause>" in shown
        assert "one" in shown and "oops" in shown
    assert _Markup(summary.html(run)).text.index("rank 1, last lines") < _Markup(
        summary.html(run)
    ).text.index("rank 0, last lines")


def test_the_summary_of_a_running_run_has_its_time(record, monkeypatch):
    run = record(_attempt(), logs={(0, 0, "stdout"): b"so far\n", (0, 1, "stdout"): b"elsewhere\n"})
    monkeypatch.setattr(
        Run, "_run_state", RunState(state=State.RUNNING, attempts=(parse_event(_attempt()),))
    )
    for shown in (_Markup(summary.html(run)).text, summary.text(run)):
        assert "RUNNING" in shown and "so far" in shown and "elsewhere" not in shown
        assert re.search(
            r"^as of \d\d:\d\d:\d\d; ice.attach\('r1'\) shows more$", shown, re.MULTILINE
        )
    assert "\n" not in repr(run), "a plain prompt shows a line"


def test_printed_markup_and_control_sequences_are_text_in_a_summary(record):
    hostile = (
        b"<script>alert(1)</script><img src=x onerror=alert(1)> "
        b"\x1b]0;title\x07\x1b[31mred\x1b[0m \x1b]52;c;AAAA\x1b\\ \xff\x9d0;x\n"
    )
    run = record(_attempt(), SUCCESS, name="<lambda>", logs={(0, 0, "stdout"): hostile})
    markup = _Markup(summary.html(run))
    assert {"script", "img"} & set(markup.tags) == set()
    assert (
        "<script>alert(1)</script>" in markup.text
        and "red" in markup.text
        and "<lambda>" in markup.text
    )
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", markup.text) is None


def test_a_summary_stays_small_whatever_was_printed(record):
    logs = {
        (1, rank, stream): b"x" * 300_000 + b"\n" + b"<&\n" * 200_000 + b"&" * 5000
        for rank in range(8)
        for stream in ("stdout", "stderr")
    }
    failures = [
        _failure(rank, message="m" * 100_000, traceback="t&" * 500_000, hint="h" * 1000)
        for rank in range(8)
    ]
    run = record(
        _attempt(0, 8),
        _attempt(1, 8),
        {"t": 1010.0, "event": "failure", "attempt": 1, "failures": failures},
        {"t": 1012.5, "event": "end", "state": "FAILED"},
        ranks=8,
        logs=logs,
    )
    assert (
        len(json.dumps({"text/html": summary.html(run), "text/plain": summary.text(run)})) < LIMIT
    )


def test_a_progress_bars_last_state_is_its_line(record):
    run = record(_attempt(), SUCCESS, logs={(0, 0, "stderr"): b"\r 10%\r 50%\r100%\n"})
    shown = _Markup(summary.html(run)).text
    assert "100%" in shown and "50%" not in shown


def test_a_summary_before_the_first_event_and_without_logs(record):
    for events in ((), (_attempt(),)):  # its agent vanished and wrote no end
        assert "LOST" in summary.html(record(*events))
    assert "the host ended" in summary.html(
        record(
            _attempt(), {"t": 1002.0, "event": "end", "state": "LOST", "note": "the host\nended"}
        )
    )


def test_a_foreign_run_directorys_content_is_text_wherever_it_shows(record, monkeypatch):
    """Even where its values have the wrong types and passed the checks."""
    evil = '<img src=x onerror="alert(1)">\x1b]0;owned\x07\ud800'
    run = record(*FAILED, name=evil)
    monkeypatch.setattr(Run, "run_id", evil)
    run._spec = replace(run._spec, run_id=evil, name=evil, config=replace(run._spec.config))
    vars(run._spec.config).update(nproc_per_node=evil, max_restarts=evil, role=evil)
    run_state = run._run_state
    restart = replace(run_state.restarts[0], rank=evil, cause=evil, attempt=evil)
    failure = replace(
        run_state.failures[0], rank=evil, attempt=evil, type_name=evil, traceback=evil, hint=evil
    )
    attempt = replace(
        run_state.attempts[-1], ranks=[replace(run_state.ranks[0], rank=evil, local_rank=0)]
    )
    folder = RunDir(Path(run.log_dir)).rank(1, 0)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.stdout.write_bytes(b"last words\n")
    for state in (State.RUNNING, State.FAILED, State.LOST):
        hostile = replace(
            run_state,
            state=state,
            restarts=(restart,),
            failures=(failure,),
            attempts=(attempt,),
            end=Ended(t=1.0, state=str(state), note=evil),
            silent={0: evil},
            debugged={
                1: TimelineEvent(kind="debugger_start", text=evil, where=evil, who=evil, why=evil)
            },
        )
        monkeypatch.setattr(Run, "_run_state", hostile)
        markup = _Markup(summary.html(run))
        assert (
            "img" not in markup.tags and "<img" in markup.text and f"rank {evil[:4]}" in markup.text
        )
        for text in (markup.text, summary.text(run), repr(run)):
            assert "<img" in text and re.search(_UNFIT, text) is None
        json.dumps(ViewModel(run).run_state(), ensure_ascii=False).encode()
    vars(run._spec.config).update(nproc_per_node=2, max_restarts=1, role="default_role")
    table = _Markup(Runs([run])._repr_html_())
    assert "img" not in table.tags
    for text in (table.text, repr(Runs([run]))):
        assert "<img" in text and re.search(_UNFIT, text) is None


def test_the_list_of_runs_has_its_time_while_a_run_goes_on(record, monkeypatch):
    over = record(_attempt(), SUCCESS)
    assert "as of" not in repr(Runs([over])) and "as of" not in Runs([over])._repr_html_()
    monkeypatch.setattr(
        Run, "_run_state", RunState(state=State.RUNNING, attempts=(parse_event(_attempt()),))
    )
    for shown in (repr(Runs([over])), Runs([over])._repr_html_()):
        assert re.search(r"as of \d\d:\d\d:\d\d", shown)


def test_a_key_on_an_unfolded_part_is_no_shortcut_of_the_notebook(record):
    shown = summary.html(record(*FAILED, logs={(1, 1, "stdout"): b"one\n"}))
    assert shown.count("<summary") == shown.count('<summary data-lm-suppress-shortcuts="true"') == 1
