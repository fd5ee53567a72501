"""The option line: any line parses, or raises an error that names the option."""

from __future__ import annotations

import shlex
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icelaunch_nb import ConfigError, LaunchConfig
from icelaunch_nb.notebook.magic import options as opt
from icelaunch_nb.notebook.magic.interpolation import interpolate

# The first text that hypothesis ever draws takes seconds.
steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FIELDS = [one.name for one in fields(LaunchConfig)]


@pytest.mark.parametrize(
    ("line", "launch"),
    [
        ("", {}),
        ("   ", {}),
        ("-n 2", {"nproc_per_node": 2}),
        ("-n2", {"nproc_per_node": 2}),
        ("-n=2", {"nproc_per_node": 2}),
        ("-n auto", {"nproc_per_node": "auto"}),
        ("--nproc-per-node 4 --max-restarts 1", {"nproc_per_node": 4, "max_restarts": 1}),
        ("--nproc_per_node=4", {"nproc_per_node": 4}),
        ("--max_restarts=1 --max-restarts 2", {"max_restarts": 2}),
        ("--nnodes 2", {"min_nodes": 2, "max_nodes": 2}),
        ("--nnodes 1:4", {"min_nodes": 1, "max_nodes": 4}),
        ("--min-nodes 1 --max-nodes 4", {"min_nodes": 1, "max_nodes": 4}),
        ("--rdzv-id job-7", {"run_id": "job-7"}),
        ("--run-id job-7", {"run_id": "job-7"}),
        (
            "--rdzv_backend c10d --rdzv-endpoint host:29400",
            {"rdzv_backend": "c10d", "rdzv_endpoint": "host:29400"},
        ),
        (
            "--rdzv-conf timeout=60,join_timeout=1.5,is_host=true,x=y",
            {"rdzv_configs": {"timeout": 60, "join_timeout": 1.5, "is_host": True, "x": "y"}},
        ),
        ("--rdzv-timeout -1", {"rdzv_timeout": -1}),
        ("--metrics-cfg handler=console", {"metrics_cfg": {"handler": "console"}}),
        (
            "--monitor-interval 0.5 --start-method spawn",
            {"monitor_interval": 0.5, "start_method": "spawn"},
        ),
        ("--log-dir '/a b'", {"log_dir": "/a b"}),
        ("--role ''", {"role": ""}),
        ("-r 3 -t 0:1,1:2", {"redirects": "3", "tee": "0:1,1:2"}),
        ("--devices cuda:0-2,7 --detach", {"devices": "cuda:0-2,7", "detach": True}),
        ("-n 2  # NBVAL_IGNORE_OUTPUT", {"nproc_per_node": 2}),
        ("--role '#1'", {"role": "#1"}),
    ],
)
def test_the_keywords_that_launch_receives(line, launch):
    assert opt.parse_options(line).launch == launch


def test_the_options_of_the_magic_alone():
    options = opt.parse_options("--out results --no-wait --env A=1 --env 'B=x y=z' --env C=")
    assert (options.out, options.wait, options.env, options.launch) == (
        "results",
        False,
        {"A": "1", "B": "x y=z", "C": ""},
        {},
    )
    assert opt.parse_options("--help").help and opt.parse_options("-h").help
    assert opt.parse_options("").wait and not opt.parse_options("").help


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--nproc-pre-node 4", "did you mean '--nproc-per-node'?"),
        ("--no-wiat", "did you mean '--no-wait'?"),
        ("--max-restart=1", "did you mean '--max-restarts'?"),
        ("--rdzv-backed c10d", "did you mean '--rdzv-backend'?"),
        ("-x 3", "'-x'"),
        ("4", "'4': is neither an option nor the value of one"),
        ("-n", "'-n': needs a value"),
        ("--wiat", "did you mean '--wait'?"),
        ("--wait=1", "--wait='1': is a flag"),
        ("-n --no-wait", "'-n': needs a value"),
        ("-n two", "--nproc-per-node='two': must be an int, or \"auto\""),
        ("--max-restarts 1.5", "--max-restarts='1.5': must be an int"),
        ("--monitor-interval soon", "--monitor-interval='soon': must be a number"),
        ("--rdzv-conf timeout", "--rdzv-conf='timeout': must be NAME=VALUE"),
        ("--nnodes 1-2", "--nnodes='1-2': must be NODES or MIN:MAX"),
        ("--env HOME", "--env='HOME': must be NAME=VALUE"),
        ("--env =x", "--env='=x': must be NAME=VALUE"),
        ("--out a.b", "--out='a.b': must be a name"),
        ("--out class", "--out='class': must be a name"),
        ("--no-wait=1", "--no-wait='1': is a flag"),
        ("--role 'x", "no closing quotation"),
    ],
)
def test_an_error_names_the_option(line, expected):
    with pytest.raises(ConfigError) as caught:
        opt.parse_options(line)
    assert expected in str(caught.value)


WORDS = st.one_of(
    st.sampled_from([name for option in opt.OPTIONS for name in (option.name, *option.others)]),
    st.sampled_from(
        [
            "2",
            "auto",
            "-1",
            "a=b",
            "1:2",
            "=",
            "--",
            "-",
            "#",
            "''",
            "nan",
            "1e999",
            "9" * 30,
            "--out=x",
            "-n3",
            "{x}",
            "$x",
        ]
    ),
    st.text(max_size=8),
)
TRICKY = st.text("${}'\" a.", max_size=8)


@steady
@given(st.lists(WORDS, max_size=6), st.booleans())
def test_any_line_parses_or_raises_an_error_that_names_the_option(words, quoted):
    line = shlex.join(words) if quoted else " ".join(words)
    try:
        options = opt.parse_options(line)
    except ConfigError as error:
        if error.field == "option":
            assert error.value in opt.split_words(line), "it says which word it means"
        else:
            assert error.field == "options" or error.field in {
                option.name for option in opt.OPTIONS
            }
    else:
        assert set(options.launch) <= {*FIELDS, *opt.LAUNCH_KEYS}


@steady
@given(st.text(max_size=40))
def test_completion_works_for_any_prefix(before):
    assert all(
        isinstance(text, str)
        for text in [*opt.complete(before), *opt.complete_words(before, opt.LOGS_OPTIONS)]
    )


@steady
@given(
    st.dictionaries(
        st.sampled_from(["run_id", "role", "log_dir", "devices"]),
        st.one_of(st.text(max_size=8), st.just("--role"), TRICKY),
    ),
    st.dictionaries(
        st.from_regex(r"[A-Z_]+", fullmatch=True),
        st.one_of(st.text(max_size=8), TRICKY).filter(lambda t: "\0" not in t),
        max_size=3,
    ),
)
def test_a_formatted_line_parses_to_the_same_settings(settings, env):
    settings = {
        **settings,
        "max_restarts": 3,
        "no_wait": True,
        "detach": False,
        **({"env": env} if env else {}),
    }
    assert (
        opt.parse_settings(interpolate(opt.format_options(settings), {"a": "wrong"})) == settings
    ), "as a line that was typed is parsed"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-n {n} --out $name", ["-n", "2", "--out", "results"]),
        ("--log-dir {path}", ["--log-dir", "/tmp/a b's"]),
        ("--log-dir={path}", ["--log-dir=/tmp/a b's"]),
        ("--log-dir $path -n 1", ["--log-dir", "/tmp/a b's", "-n", "1"]),
        ("--log-dir '{path}/c d'", ["--log-dir", "/tmp/a b's/c d"]),
        ("--env A={quoted}", ["--env", 'A="x']),
        ("{usual}", ["-n", "2", "--role", "a b"]),
        ("--out x {usual} --detach", ["--out", "x", "-n", "2", "--role", "a b", "--detach"]),
        ("--role {usual}", ["--role", "-n 2 --role 'a b'"]),
        ("--rdzv_conf {usual}", ["--rdzv_conf", "-n 2 --role 'a b'"]),
        ("--env A=$$n{{}}", ["--env", "A=$n{}"]),
        ("stop {path}", ["stop", "/tmp/a b's"]),
        ("{d['k']}{n}", ["v2"]),
        ("-n 2 # {n}", ["-n", "2", "#", "2"]),
    ],
)
def test_an_interpolated_value_stays_one_word(line, words):
    namespace = {
        "n": 2,
        "name": "results",
        "path": "/tmp/a b's",
        "quoted": '"x',
        "usual": "-n 2 --role 'a b'",
        "d": {"k": "v"},
    }
    assert opt.split_words(interpolate(line, namespace)) == words


def test_a_line_that_cant_be_split_is_shown_as_it_was_typed():
    with pytest.raises(ConfigError, match=r"options=\"--role '\{n\}\": no closing quotation"):
        interpolate("--role '{n}", {"n": 1})


@pytest.mark.parametrize("flag", ["no_wait", "no_panel", "detach", "post_mortem"])
def test_a_flag_that_is_a_default_can_be_undone(flag):
    [option] = [option for option in opt.OPTIONS if option.key == flag]
    before, after = (opt.parse_options(line, {flag: True}) for line in ("", option.undo))
    assert before != after
    plain = opt.parse_options("")
    assert (after.wait, after.panel) == (plain.wait, plain.panel) and not any(after.launch.values())
    assert opt.parse_settings(opt.format_options({flag: False})) == {flag: False}
    assert option.undo in opt.complete(option.undo[:4]) and option.undo in opt.help_text()


def test_every_field_of_launch_config_is_an_option_with_its_own_sentence():
    by_key = {option.key: option for option in opt.OPTIONS}
    for name in FIELDS:
        assert by_key[name].description, name
        assert "--" + name.replace("_", "-") in (by_key[name].name, *by_key[name].others)
    assert "How often the ranks may be restarted after a failure." in opt.help_text()
    assert len({option.description for option in opt.OPTIONS}) == len(opt.OPTIONS)


def test_the_help_lists_every_option():
    text = opt.help_text()
    assert [option.name for option in opt.OPTIONS if option.name not in text] == []
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize(
    ("before", "offered"),
    [
        ("--sta", "--start-method"),
        ("", "--nproc-per-node"),
        ("-n 2 --d", "--devices"),
        ("--start-method ", "forkserver"),
        ("--start-method fo", "fork"),
        ("-n 2 --start-method=sp", "spawn"),
        ("--rdzv-backend e", "etcd-v2"),
        ("--devices ", "cpu"),
        ("--no-wait ", "--detach"),
    ],
)
def test_completion(before, offered):
    assert offered in opt.complete(before)


def test_defaults_apply_where_the_line_is_silent_and_environments_are_merged():
    defaults = opt.parse_settings("-n 8 --max-restarts 2 --env A=1 --env B=2")
    options = opt.parse_options("--max-restarts 0 --env B=3", defaults)
    assert options.launch == {"nproc_per_node": 8, "max_restarts": 0}
    assert options.env == {"A": "1", "B": "3"}


def test_the_arguments_of_line_magics():
    assert opt.parse_words("abc --rank 1 --stream=stderr", opt.LOGS_OPTIONS, max_words=1) == (
        ["abc"],
        {"rank": 1, "stream": "stderr"},
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--rnak 1", "did you mean '--rank'"),
        ("--rank x", "--rank='x'"),
        ("--stream out", "stdout or stderr"),
        ("a b", "'b'"),
        ("--rank", "a value"),
    ],
)
def test_wrong_arguments_of_line_magics(line, expected):
    with pytest.raises(ConfigError, match=expected):
        opt.parse_words(line, opt.LOGS_OPTIONS, max_words=1)


def test_the_debugger_and_the_hang_watch_have_options():
    assert opt.parse_options("--post-mortem --hang-after 5").launch == {
        "post_mortem": True,
        "hang_after": 5.0,
    }
    assert opt.parse_options("--hang-after=none").launch == {"hang_after": None}
    with pytest.raises(ConfigError, match="hang-after='soon'"):
        opt.parse_options("--hang-after soon")
