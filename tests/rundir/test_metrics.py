"""Metrics: the rows of a file, as a rank writes them and as they are read."""

from __future__ import annotations

import json
import math
import os
from types import SimpleNamespace

import numpy
import pytest
import torch

from icelaunch_nb import get_context
from icelaunch_nb.callbacks import metric_filter
from icelaunch_nb.rundir.metrics import Metrics, read


def test_rows_are_lines_of_json_that_only_the_owner_can_read(tmp_path):
    writer = Metrics(tmp_path / "m")
    writer.add(3, 7, {"loss": 0.5, "count": 2, "yes": True})
    rows = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert [(row["rank"], row["step"], row["loss"], row["count"], row["yes"]) for row in rows] == [
        (3, 7, 0.5, 2, 1.0)
    ]
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600


def test_each_row_is_written_as_it_comes(tmp_path):
    writer = Metrics(tmp_path / "m")
    for step in range(100):
        writer.add(0, step, {"x": 1})
        assert len((tmp_path / "m").read_text().splitlines()) == step + 1
    assert [row["step"] for row in read([(0, tmp_path / "m")])] == list(range(100))


def test_nan_and_infinities_are_read_back(tmp_path):
    Metrics(tmp_path / "m").add(0, 0, {"nan": math.nan, "great": math.inf, "small": -math.inf})
    assert "NaN" not in (tmp_path / "m").read_text()
    (row,) = read([(0, tmp_path / "m")])
    assert math.isnan(row["nan"]) and row["great"] == math.inf and row["small"] == -math.inf


def test_a_loss_with_its_gradient_is_a_number(tmp_path):
    # float() of such a tensor may warn, and a warning is an error here.
    loss = (torch.ones(1, requires_grad=True) * 2).sum()
    Metrics(tmp_path / "m").add(
        0, 0, {"loss": loss, "half": torch.tensor([0.5], dtype=torch.bfloat16)}
    )
    (row,) = read([(0, tmp_path / "m")])
    assert (row["loss"], row["half"]) == (2.0, 0.5)


def test_a_value_that_is_no_number_is_refused_with_the_metrics_name(tmp_path):
    with pytest.raises(TypeError, match=r"report\(loss=…\): a list is no number"):
        Metrics(tmp_path / "m").add(0, 0, {"loss": [1]})
    with pytest.raises(TypeError, match=r"report\(loss=…\): a ndarray is no number"):
        Metrics(tmp_path / "m").add(0, 0, {"loss": numpy.ones(2)})


def test_arrays_with_one_element_are_numbers(tmp_path):
    Metrics(tmp_path / "m").add(
        0,
        0,
        {"array": numpy.array([0.5]), "deep": numpy.array([[2]]), "scalar": numpy.float32(0.25)},
    )
    (row,) = read([(0, tmp_path / "m")])
    assert (row["array"], row["deep"], row["scalar"]) == (0.5, 2.0, 0.25)


@pytest.mark.parametrize(
    "step",
    [
        3,
        numpy.int64(3),
        torch.tensor(3),
        torch.tensor([3]),
        3.0,
        numpy.array([3.0]),
        torch.tensor(3.0),
    ],
)
def test_a_step_may_be_any_type_of_whole_number(tmp_path, step):
    Metrics(tmp_path / "m").add(0, step, {"x": 1})
    assert json.loads((tmp_path / "m").read_text())["step"] == 3


@pytest.mark.parametrize("step", [0.5, "a", math.nan, math.inf, [3]])
def test_a_step_that_is_no_whole_number_is_refused(tmp_path, step):
    with pytest.raises(TypeError, match=r"report\(step="):
        Metrics(tmp_path / "m").add(0, step, {"x": 1})


@pytest.mark.parametrize("name", ["attempt", "rank", "step", "time"])
def test_a_metric_with_the_name_of_a_column_is_refused(tmp_path, name):
    with pytest.raises(
        ValueError,
        match=rf"report\({name}=…\): every row has a {name} of its own already; "
        "give the metric another name",
    ):
        Metrics(tmp_path / "m").add(0, 0, {name: 0.3})


def test_a_metric_may_be_called_self(tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    get_context().report(self=1)


def test_a_trainer_may_log_any_value(tmp_path):
    written = Metrics(tmp_path / "m")
    context = SimpleNamespace(
        report=lambda step, **metrics: written.add(0, 7 if step is None else step, metrics)
    )
    metric_filter.report(
        context,
        {
            "step": torch.tensor(2.0),
            "time": 3,
            "rank": 4,
            "attempt": 5,
            "loss": 0.5,
            "words": [1, 2],
            "many": torch.ones(3),
        },
    )
    (row,) = read([(0, tmp_path / "m")])
    del row["time"]
    assert row == {
        "attempt": 0,
        "rank": 0,
        "step": 7,
        "logged_step": 2.0,
        "logged_time": 3.0,
        "logged_rank": 4.0,
        "logged_attempt": 5.0,
        "loss": 0.5,
    }


def test_torn_lines_and_missing_files_are_skipped_and_rows_are_in_order_of_time(tmp_path):
    (tmp_path / "a").write_text('{"rank": 0, "step": 1, "time": 2.0}\n{"rank": 0, "st')
    (tmp_path / "b").write_text('{"rank": 1, "step": 1, "time": 1.0}\n')
    rows = read([(0, tmp_path / "a"), (1, tmp_path / "b"), (2, tmp_path / "none")])
    assert [(row["attempt"], row["rank"]) for row in rows] == [(1, 1), (0, 0)]


def test_a_forked_child_may_add_rows_and_damages_none(tmp_path):
    writer = Metrics(tmp_path / "m")
    writer.add(0, 0, {"x": 1})
    writer.add(0, 1, {"x": 1})
    pid = os.fork()
    if not pid:
        writer.add(0, 2, {"x": 1})
        os._exit(0)
    os.waitpid(pid, 0)
    writer.add(0, 3, {"x": 1})
    assert [row["step"] for row in read([(0, tmp_path / "m")])] == [0, 1, 2, 3]


def test_a_file_that_cant_be_written_is_no_error(tmp_path):
    Metrics(tmp_path / "no folder" / "m").add(0, 0, {"x": 1})


def test_a_torn_row_damages_no_other_row(tmp_path, monkeypatch):
    writer, write = Metrics(tmp_path / "m"), os.write
    monkeypatch.setattr(os, "write", lambda fd, line: write(fd, line[:10]))
    writer.add(0, 0, {"x": 1})
    monkeypatch.undo()
    for step in (1, 2):
        writer.add(0, step, {"x": 1})
    assert [row["step"] for row in read([(0, tmp_path / "m")])] == [1, 2]
