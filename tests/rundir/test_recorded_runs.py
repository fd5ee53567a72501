"""Runs that older versions recorded can be attached and shown.

`recorded` has one run of each kind of format 0.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

import icelaunch_nb as ice
from icelaunch_nb.notebook.panel import summary
from icelaunch_nb.rundir import retention
from icelaunch_nb.rundir.paths import RunDir
from icelaunch_nb.rundir.spec import FORMAT, read_spec

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture
def attached(tmp_path):
    def attach(name: str) -> ice.Run:
        shutil.copytree(RECORDED / "format_0" / name, tmp_path / name)
        for fifo in ("control", "leash"):  # as format 0 named them
            os.mkfifo(tmp_path / name / fifo)
        return ice.attach(tmp_path / name)

    return attach


def test_a_recorded_run_has_its_restart_pause_and_checkpoint(attached):
    run = attached("train")
    assert (run.run_id, run.name, run.state, run.restarts, run.attempt) == (
        "recorded-train",
        "train",
        "SUCCEEDED",
        1,
        1,
    )
    assert (run.config.max_restarts, run.devices, run.last_checkpoint) == (
        2,
        {0: "cpu", 1: "cpu"},
        "/data/checkpoint_22.pt",
    )
    assert [(event.kind, event.text) for event in run._run_state.timeline] == [
        ("pause", "asked to pause"),
        ("paused", "paused"),
        ("resume", "resumed"),
        ("saved", "checkpoint saved: /data/checkpoint_22.pt, step 22"),
    ]
    (restart,) = run._run_state.restarts
    assert (restart.rank, restart.cause) == (1, "ValueError: the first attempt fails")
    assert [failure.title.split(":")[0] for failure in run.failures] == [
        "ValueError",
        "RuntimeError",
    ]
    assert (
        run.logs(1) == "attempt 1, rank 1 of 2\n"
        and run.logs(0, "stderr", attempt=0) == "a warning\n"
    )
    assert len(run.metrics()) == 120
    assert not retention.is_living(Path(run.log_dir))
    for text in (summary.text(run), summary.html(run)):
        assert "SUCCEEDED" in text and "restart 1 of 2" in text and "attempt 1, rank 0 of 2" in text


def test_results_can_be_loaded_though_modules_were_moved_since(attached):
    found = attached("train").result()
    assert [found[rank]["rank"] for rank in (0, 1)] == [0, 1]
    assert torch.equal(found[1]["weights"], torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_a_recorded_failure_is_raised_with_its_cause(attached):
    run = attached("failure")
    assert run.state == "FAILED"
    with pytest.raises(ice.RunFailed, match="(?s)rank 0 of 1 failed.*out of luck") as caught:
        run.result()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_spec_without_a_format_has_format_0(attached):
    spec = read_spec(RunDir.at(attached("train").log_dir))
    assert spec.format == 0 < FORMAT
    assert (spec.threads, spec.loopback, spec.saved_output, spec.python) == (
        1,
        "lo",
        65536,
        "3.11.7",
    )
