"""The exceptions: their messages, and that pickle keeps them whole."""

from __future__ import annotations

import inspect
import json
import pickle

import pytest

from icelaunch_nb import errors
from icelaunch_nb.errors import (
    ConfigError,
    Failure,
    HostError,
    IcelaunchError,
    PackingError,
    RunFailed,
    RunLost,
    RunStopped,
    group_failures,
)
from icelaunch_nb.rundir.journal_events import FailedRank
from icelaunch_nb.system.exit_codes import signal_name
from icelaunch_nb.system.suggestions import nearest


def failure(
    rank: int,
    *,
    time: float = 0.0,
    kind: str = "raised",
    exitcode: int | None = 1,
    type_name: str = "ValueError",
    message: str = "boom",
    traceback: str = "",
    hint: str = "",
) -> Failure:
    return Failure(
        rank, rank, 0, time, 1000 + rank, kind, exitcode, type_name, message, traceback, hint
    )


def test_every_exception_is_an_icelaunch_error():
    found = [
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, Exception) and cls.__module__ == errors.__name__
    ]
    found = [cls for cls in found if not issubclass(cls, Warning)]
    assert len(found) >= 7
    assert all(issubclass(cls, IcelaunchError) and cls.__doc__ for cls in found)


def test_each_exception_is_also_one_of_pythons():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(PackingError, TypeError)
    assert issubclass(HostError, RuntimeError)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("tee", "9", "must be 0 to 3"),
        PackingError("args[0].lock", "lock", "cannot pickle"),
        HostError("gone"),
        RunStopped("stopped", {0: 1}),
        RunLost("vanished"),
        RunFailed(
            [failure(1), failure(0, message="other")],
            {2: "two"},
            world_size=3,
            attempt=2,
            log_dir="/logs",
            note="a note",
        ),
        RunFailed([], note="nothing started"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_survive_pickle(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_config_error_says_field_value_and_remedy():
    assert (
        str(ConfigError("min_nodes", 0, "must be at least 1")) == "min_nodes=0: must be at least 1"
    )


def test_a_long_value_is_cut():
    assert len(str(ConfigError("run_id", "x" * 10_000, "no"))) < 250


@pytest.mark.parametrize(
    "value",
    [10**5000, type("Mute", (), {"__repr__": lambda self: 1 / 0})()],
    ids=["5000 digits", "broken repr"],
)
def test_a_value_without_a_repr_does_not_hide_the_error(value):
    assert str(ConfigError("nproc_per_node", value, "must be at most 100000")).endswith(
        "must be at most 100000"
    )


def test_a_packing_error_says_path_type_and_reason():
    assert (
        str(PackingError("args[1].lock", "lock", "no way"))
        == "args[1].lock (a lock) can't be pickled: no way"
    )


# Failure.


def test_a_failure_survives_json_and_ignores_unknown_fields():
    original = failure(3, traceback="File x\n", hint="a hint")
    data = json.loads(json.dumps(FailedRank.of(original).to_json()))
    assert FailedRank.parse(data).failure() == original
    assert FailedRank.parse({**data, "of_tomorrow": 1}).failure() == original


@pytest.mark.parametrize(
    ("exitcode", "name"),
    [(-9, "SIGKILL"), (-11, "SIGSEGV"), (-63, "signal 63"), (1, None), (0, None), (None, None)],
)
def test_a_failure_names_its_signal(exitcode, name):
    assert failure(0, exitcode=exitcode).signal == name


def test_a_failures_title_is_one_clause():
    assert failure(0).title == "ValueError: boom"
    assert failure(0, type_name="killed by SIGKILL", message="").title == "killed by SIGKILL"


def test_signal_names():
    assert (signal_name(9), signal_name(15), signal_name(200)) == (
        "SIGKILL",
        "SIGTERM",
        "signal 200",
    )


def test_nearest_suggests_a_close_name_or_lists_all():
    assert nearest("forksever", ("spawn", "fork", "forkserver")) == "did you mean 'forkserver'?"
    assert (
        nearest("--nproc", ("--role", "--nproc-per-node", "--no-wait"))
        == "did you mean '--nproc-per-node'?"
    ), "the start of one name"
    assert nearest("--no", ("--no-wait", "--no-panel", "--nodes")) == "did you mean '--nodes'?", (
        "the start of several names suggests none of them"
    )
    assert nearest("zzz", ("spawn", "fork")) == "known: spawn, fork"


# RunFailed.


def test_equal_failures_are_folded_in_order_of_time():
    groups = group_failures(
        [failure(2), failure(0, message="late"), failure(1), failure(3, exitcode=2)]
    )
    assert [[f.rank for f in group] for group in groups] == [[2, 1], [0], [3]]


def test_failures_with_other_tracebacks_are_not_folded():
    assert len(group_failures([failure(0, traceback="a"), failure(1, traceback="b")])) == 2


def test_run_failed_ends_with_the_root_ranks_own_traceback():
    text = "Cell In[2], line 3, in train\n----> 3 raise ValueError('boom')\n\nValueError: boom"
    error = RunFailed(
        [failure(1, traceback=text), failure(0, message="peer left")],
        world_size=2,
        attempt=1,
        log_dir="/logs",
    )
    lines = str(error).splitlines()
    assert lines[0] == "rank 1 of 2 failed in attempt 1"
    assert "then rank 0: ValueError: peer left" in lines
    assert "logs: /logs" in lines
    assert str(error).endswith(text)
    assert error.rank == 1


def test_run_failed_folds_equal_ranks_into_its_first_line():
    error = RunFailed([failure(rank) for rank in (2, 0, 1)], world_size=4)
    assert str(error).splitlines()[0] == "rank 2 of 4 failed, ranks 0, 1 the same way"
    assert str(error).count("boom") == 1


def test_run_failed_shows_only_the_first_line_of_the_others():
    error = RunFailed([failure(0), failure(1, message="first\nsecond")])
    assert "then rank 1: ValueError: first\n" in str(error) and "second" not in str(error)


def test_run_failed_without_a_traceback_ends_with_the_title_and_gives_the_hint():
    error = RunFailed(
        [
            failure(
                0,
                type_name="killed by SIGKILL",
                message="",
                exitcode=-9,
                hint="likely cause: memory",
            )
        ],
        log_dir="/l",
    )
    assert str(error).splitlines()[-1] == "killed by SIGKILL"
    assert "likely cause: memory" in str(error)


def test_run_failed_without_failures_shows_the_note():
    assert (
        str(RunFailed([], note="the rendezvous timed out", log_dir="/l"))
        == "the rendezvous timed out\nlogs: /l"
    )
    assert RunFailed([]).rank is None


def test_ipython_shows_the_whole_message_with_the_error_last():
    import re

    error = RunFailed(
        [failure(0, traceback="File x:1\n\nValueError: boom")], world_size=2, log_dir="/l"
    )
    shown = [re.sub(r"\x1b\[\d+m", "", line) for line in error._render_traceback_()]
    assert shown == ("RunFailed: " + str(error)).split("\n")


def test_the_error_keeps_the_results_of_the_other_ranks():
    assert RunFailed([failure(0)], {1: "one"}).results == {1: "one"}
    assert RunStopped("stopped", {1: "one"}).results == {1: "one"}
    assert RunStopped("stopped").results == {}
