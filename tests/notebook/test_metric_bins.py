"""The metrics' bins: they hold what the ranks reported, in bounded memory, for any file."""

from __future__ import annotations

import json
import math
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelaunch_nb.notebook.panel import metric_bins as module
from icelaunch_nb.notebook.panel.metric_bins import BINS, METRICS, MetricBins
from icelaunch_nb.rundir.journal_events import AttemptStarted, RankEntry
from icelaunch_nb.rundir.paths import RunDir


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path)


def _metric_bins(run_dir, ranks=1):
    for rank in range(ranks):
        run_dir.rank(0, rank).path.mkdir(parents=True, exist_ok=True)
    entries = [RankEntry(rank=rank, local_rank=rank, pid=1, started=1.0) for rank in range(ranks)]
    return MetricBins(run_dir, AttemptStarted(attempt=0, world_size=ranks, ranks=entries))


def _report(run_dir, rank, *rows):
    with open(run_dir.rank(0, rank).metrics, "a") as file:
        file.write("".join(json.dumps({"rank": rank, "time": 1.0, **row}) + "\n" for row in rows))


class _Page:
    """Receives the messages as a page does."""

    def __init__(self):
        self.metrics = {}

    def receive(self, metrics, length=1 << 30):
        for about, data in metrics.pop_changes(length):
            bins = {} if about["whole"] else self.metrics[about["name"]][1]
            steps = array("d", data[: 8 * about["bins"]])
            means = array("f", data[8 * about["bins"] :])
            for number, step in enumerate(steps):
                bins[step] = list(means[number * about["ranks"] : (number + 1) * about["ranks"]])
            self.metrics[about["name"]] = about, bins


def test_a_bin_is_a_step_while_there_are_few_and_each_rank_has_its_own_value(run_dir):
    metrics, page = _metric_bins(run_dir, 2), _Page()
    _report(run_dir, 0, {"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0})
    _report(run_dir, 1, {"step": 0, "loss": 4.0, "lr": 0.5})
    metrics.poll()
    page.receive(metrics)
    assert page.metrics["loss"][1] == {
        0.0: [2.0, 4.0],
        1.0: [1.0, pytest.approx(math.nan, nan_ok=True)],
    }
    assert page.metrics["loss"][0]["last"] == 2.5
    assert page.metrics["lr"][1][0.0][1] == 0.5
    assert metrics.steps == {0: 1, 1: 0}
    assert not metrics.changed


def test_only_what_changed_is_sent_again(run_dir):
    metrics, page = _metric_bins(run_dir), _Page()
    _report(run_dir, 0, *({"step": step, "loss": 1.0, "lr": 1.0} for step in range(100)))
    metrics.poll()
    page.receive(metrics)
    _report(run_dir, 0, {"step": 100, "loss": 7.0})
    metrics.poll()
    ((about, data),) = metrics.pop_changes(1 << 20)
    assert (about["name"], about["bins"], about["whole"], len(data)) == ("loss", 1, False, 12)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 100_000), st.floats(-1e6, 1e6)), max_size=60
    ),
    st.integers(1, 5),
)
@settings(deadline=None, max_examples=60)
def test_the_page_has_the_means_for_any_order_of_writes_and_polls(
    tmp_path_factory, reports, between
):
    run_dir = RunDir(tmp_path_factory.mktemp("run"))
    metrics, page, truth = _metric_bins(run_dir, 3), _Page(), {}
    for number, (rank, step, value) in enumerate(reports):
        _report(run_dir, rank, {"step": step, "loss": value})
        truth.setdefault(step, {}).setdefault(rank, []).append(value)
        if number % between == 0:
            metrics.poll()
            page.receive(metrics, 1)
    metrics.poll()
    page.receive(metrics)
    if reports:
        bins = page.metrics["loss"][1]
        assert set(bins) == set(truth)
        for step, ranks in truth.items():
            for rank, values in ranks.items():
                assert bins[step][rank] == pytest.approx(
                    sum(values) / len(values), rel=1e-5, abs=0.1
                )


def test_a_long_runs_bins_widen_and_keep_its_shape(run_dir):
    metrics, page = _metric_bins(run_dir, 2), _Page()
    for rank in range(2):
        _report(run_dir, rank, *({"step": step, "loss": step + rank} for step in range(10_000)))
    while True:
        metrics.poll()
        page.receive(metrics)
        if not metrics.backlog:
            break
    about, bins = page.metrics["loss"]
    assert BINS / 2 <= len(bins) <= BINS
    assert about["width"] == 32
    for step, (first, second) in bins.items():
        middle = min(step + 15.5, (step + 9999) / 2)
        assert (first, second) == (pytest.approx(middle), pytest.approx(middle + 1))


def test_a_large_backlog_is_skimmed(run_dir, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BACKLOG", 1 << 18)
    metrics, page = _metric_bins(run_dir), _Page()
    _report(run_dir, 0, *({"step": step, "loss": 3.0} for step in range(30_000)))
    metrics.poll()
    page.receive(metrics)
    assert metrics.steps == {0: 29_999}
    assert not metrics.backlog
    bins = page.metrics["loss"][1]
    assert min(bins) < 1000
    assert {value for values in bins.values() for value in values} == {3.0}


def test_nan_and_infinity_show_but_are_not_drawn(run_dir):
    metrics, page = _metric_bins(run_dir), _Page()
    _report(
        run_dir,
        0,
        {"step": 0, "loss": 1.0},
        {"step": 1, "loss": None},
        {"step": 2, "loss": "inf"},
        {"step": 3, "loss": "words"},
    )
    metrics.poll()
    page.receive(metrics)
    assert page.metrics["loss"][1] == {0.0: [1.0]}
    assert page.metrics["loss"][0]["last"] is None


def test_malformed_rows_are_skipped(run_dir):
    metrics, page = _metric_bins(run_dir), _Page()
    with open(run_dir.rank(0, 0).metrics, "wb") as file:
        file.write(
            b"\xff\n"
            b"[]\n"
            b'{"step": -1, "loss": 1}\n'
            b'{"loss": 1}\n'
            b'{"step": "x", "loss": 1}\n'
            b'{"step": 1e300, "loss": 1}\n'
            b'{"step": 5, "loss": 1}\n'
            b'{"st'
        )
    metrics.poll()
    page.receive(metrics)
    assert page.metrics["loss"][1] == {5.0: [1.0]}


def test_metrics_beyond_the_limit_are_counted(run_dir):
    metrics, page = _metric_bins(run_dir), _Page()
    _report(run_dir, 0, {"step": 0, **{f"m{number}": 1.0 for number in range(METRICS + 5)}})
    metrics.poll()
    page.receive(metrics)
    assert len(page.metrics) == METRICS
    assert page.metrics["m0"][0]["left_out"] == 5


def test_a_metric_of_64_ranks_fits_into_one_burst(run_dir):
    metrics = _metric_bins(run_dir, 64)
    for rank in range(64):
        _report(run_dir, rank, *({"step": step, "loss": 1.0} for step in range(700)))
    metrics.poll()
    ((_, data),) = metrics.pop_changes(1 << 20)
    assert len(data) < 70_000
    metrics.resend()
    assert metrics.changed
