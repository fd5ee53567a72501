"""Metrics: rows in a file."""

from __future__ import annotations

import json
import math
import os

import pytest

from icelaunch_nb.metrics import Metrics, read


def test_rows_are_lines_of_json_that_its_owner_alone_can_read(tmp_path):
    writer = Metrics(tmp_path / "m")
    writer.add(3, 7, {"loss": 0.5, "count": 2, "yes": True})
    rows = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert [(row["rank"], row["step"], row["loss"], row["count"], row["yes"]) for row in rows] == [(3, 7, 0.5, 2, 1.0)]
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600


def test_the_first_row_is_written_at_once_and_those_soon_after_it_together(tmp_path):
    writer = Metrics(tmp_path / "m")
    for step in range(100):
        writer.add(0, step, {"x": 1})
    assert len((tmp_path / "m").read_text().splitlines()) < 100
    assert [row["step"] for row in read([(0, tmp_path / "m")])] == list(range(100))


def test_what_json_has_no_word_for_comes_back(tmp_path):
    Metrics(tmp_path / "m").add(0, 0, {"nan": math.nan, "great": math.inf, "small": -math.inf})
    assert "NaN" not in (tmp_path / "m").read_text()
    (row,) = read([(0, tmp_path / "m")])
    assert math.isnan(row["nan"]) and row["great"] == math.inf and row["small"] == -math.inf


def test_a_loss_with_its_gradient_is_a_number(tmp_path):
    import torch

    loss = (torch.ones(1, requires_grad=True) * 2).sum()
    Metrics(tmp_path / "m").add(0, 0, {"loss": loss, "half": torch.tensor([0.5], dtype=torch.bfloat16)})  # warnings are errors here
    (row,) = read([(0, tmp_path / "m")])
    assert (row["loss"], row["half"]) == (2.0, 0.5)


def test_what_is_no_number_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"report\(loss=…\): a list is no number"):
        Metrics(tmp_path / "m").add(0, 0, {"loss": [1]})


def test_torn_lines_and_missing_files_are_passed_over_and_rows_come_in_order(tmp_path):
    (tmp_path / "a").write_text('{"rank": 0, "step": 1, "time": 2.0}\n{"rank": 0, "st')
    (tmp_path / "b").write_text('{"rank": 1, "step": 1, "time": 1.0}\n')
    rows = read([(0, tmp_path / "a"), (1, tmp_path / "b"), (2, tmp_path / "none")])
    assert [(row["attempt"], row["rank"]) for row in rows] == [(1, 1), (0, 0)]


def test_a_forked_child_leaves_the_rows_to_its_rank(tmp_path):
    writer = Metrics(tmp_path / "m")
    writer.add(0, 0, {"x": 1})
    writer.add(0, 1, {"x": 1})
    pid = os.fork()
    if not pid:
        writer.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    writer.flush()
    assert len((tmp_path / "m").read_text().splitlines()) == 2


def test_a_full_disk_costs_the_metrics_alone(tmp_path):
    Metrics(tmp_path / "no folder" / "m").add(0, 0, {"x": 1})
