"""LaunchConfig: torch's fields, and an error for every wrong input before any process starts."""

from __future__ import annotations

import inspect
import json
import math
import types
from dataclasses import fields, replace

import pytest

from icelaunch_nb import ConfigError, LaunchConfig, Std
from icelaunch_nb.config import DEFAULT_RDZV_TIMEOUT

ONE = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2}


def make(**fields) -> LaunchConfig:
    return LaunchConfig(**{**ONE, **fields})


class WithoutRepr:
    """A value whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


# The fields, which are the seed's: torch's, in torch's order.

SEED = [
    ("min_nodes", None),
    ("max_nodes", None),
    ("nproc_per_node", None),
    ("run_id", ""),
    ("role", "default_role"),
    ("rdzv_endpoint", ""),
    ("rdzv_backend", "etcd"),
    # The default is an empty dict. Like torch, LaunchConfig adds the legacy timeout to it.
    ("rdzv_configs", {"timeout": 900}),
    ("rdzv_timeout", -1),
    ("max_restarts", 3),
    ("monitor_interval", 30),
    ("start_method", "spawn"),
    ("log_dir", None),
    ("redirects", Std.NONE),
    ("tee", Std.NONE),
    ("metrics_cfg", {}),
]


def test_fields_and_their_order_are_the_seeds():
    assert [f.name for f in fields(LaunchConfig)] == [name for name, _ in SEED]
    assert list(inspect.signature(LaunchConfig).parameters) == [name for name, _ in SEED]


@pytest.mark.parametrize(("name", "default"), SEED[3:])
def test_defaults_are_the_seeds(name, default):
    value = getattr(LaunchConfig(1, 1, 2), name)
    assert value == default
    assert type(value) is type(default)


def test_the_three_fields_without_default_are_required():
    for missing in ("min_nodes", "max_nodes", "nproc_per_node"):
        with pytest.raises(TypeError, match=missing):
            LaunchConfig(**{name: value for name, value in ONE.items() if name != missing})


def test_all_fields_can_be_given_by_position():
    config = LaunchConfig(
        1,
        2,
        3,
        "id",
        "role",
        "h:1",
        "c10d",
        {"timeout": 5},
        -1,
        0,
        0.5,
        "fork",
        None,
        Std.OUT,
        {0: Std.ERR},
        {"handler": "null"},
    )
    assert (config.max_nodes, config.rdzv_backend, config.tee, config.metrics_cfg) == (
        2,
        "c10d",
        {0: Std.ERR},
        {"handler": "null"},
    )


def test_two_configs_share_no_default():
    first, second = make(), make()
    first.rdzv_configs["x"] = 1
    first.metrics_cfg["x"] = "1"
    assert "x" not in second.rdzv_configs and "x" not in second.metrics_cfg


def test_a_callers_dict_is_left_as_it_was():
    mine = {"join_timeout": 3}
    make(rdzv_configs=mine)
    assert mine == {"join_timeout": 3}


# Wrong input. Each row has the fields, the field that the error must name, and words of its remedy.

HUGE = 10**5000  # more digits than Python turns into text
WRONG = [
    # counts
    ({"min_nodes": 0}, "min_nodes", "at least 1"),
    ({"min_nodes": -1}, "min_nodes", "at least 1"),
    ({"min_nodes": True}, "min_nodes", "must be an int"),
    ({"min_nodes": "1"}, "min_nodes", "must be an int"),
    ({"min_nodes": 1.0}, "min_nodes", "must be an int"),
    ({"min_nodes": None}, "min_nodes", "must be an int"),
    ({"min_nodes": 2}, "min_nodes", "max_nodes=1"),
    ({"max_nodes": 0}, "max_nodes", "at least 1"),
    ({"max_nodes": False}, "max_nodes", "must be an int"),
    ({"max_nodes": math.nan}, "max_nodes", "must be an int"),
    ({"max_nodes": 10**9}, "max_nodes", "at most"),
    ({"nproc_per_node": 0}, "nproc_per_node", "at least 1"),
    ({"nproc_per_node": -(10**30)}, "nproc_per_node", "at least 1"),
    ({"nproc_per_node": 10**30}, "nproc_per_node", "at most"),
    ({"nproc_per_node": HUGE}, "nproc_per_node", "at most"),
    ({"nproc_per_node": "auto"}, "nproc_per_node", "must be an int"),
    ({"nproc_per_node": math.inf}, "nproc_per_node", "must be an int"),
    ({"nproc_per_node": [2]}, "nproc_per_node", "must be an int"),
    ({"nproc_per_node": WithoutRepr()}, "nproc_per_node", "must be an int"),
    ({"max_restarts": -1}, "max_restarts", "at least 0"),
    ({"max_restarts": True}, "max_restarts", "must be an int"),
    ({"max_restarts": 2.5}, "max_restarts", "must be an int"),
    # text
    ({"run_id": None}, "run_id", "must be a str"),
    ({"run_id": b"id"}, "run_id", "must be a str"),
    ({"run_id": 7}, "run_id", "must be a str"),
    ({"run_id": "a\0b"}, "run_id", "NUL"),
    ({"run_id": "a\ud800"}, "run_id", "UTF-8"),
    ({"role": ""}, "role", "empty"),
    ({"role": None}, "role", "must be a str"),
    ({"role": "a\0"}, "role", "NUL"),
    ({"role": "\udfff"}, "role", "UTF-8"),
    # choices
    ({"start_method": "forksever"}, "start_method", "'forkserver'"),
    ({"start_method": "Spawn"}, "start_method", "'spawn'"),
    ({"start_method": ""}, "start_method", "spawn, fork, forkserver"),
    ({"start_method": None}, "start_method", "must be a str"),
    ({"start_method": "x" * 100_000}, "start_method", "must be one of"),
    ({"rdzv_backend": "c10"}, "rdzv_backend", "'c10d'"),
    ({"rdzv_backend": "zeus"}, "rdzv_backend", "c10d, static, etcd, etcd-v2"),
    ({"rdzv_backend": "ETCD"}, "rdzv_backend", "must be one of"),
    ({"rdzv_backend": None}, "rdzv_backend", "must be a str"),
    # rendezvous
    ({"max_nodes": 2}, "rdzv_endpoint", "host:port"),
    ({"min_nodes": 3, "max_nodes": 3, "rdzv_backend": "c10d"}, "rdzv_endpoint", "max_nodes=3"),
    ({"rdzv_endpoint": None}, "rdzv_endpoint", "must be a str"),
    ({"rdzv_endpoint": ":29500"}, "rdzv_endpoint", "host:port"),
    ({"rdzv_endpoint": "host:"}, "rdzv_endpoint", "host:port"),
    ({"rdzv_endpoint": "host:port"}, "rdzv_endpoint", "host:port"),
    ({"rdzv_endpoint": "host:-1"}, "rdzv_endpoint", "host:port"),
    ({"rdzv_endpoint": "host:65536"}, "rdzv_endpoint", "65535"),
    ({"rdzv_endpoint": "host:" + "1" * 5000}, "rdzv_endpoint", "65535"),
    ({"rdzv_endpoint": "[::1]:99999"}, "rdzv_endpoint", "65535"),
    ({"rdzv_endpoint": "my host:1"}, "rdzv_endpoint", "host:port"),
    ({"rdzv_endpoint": "host\n:1"}, "rdzv_endpoint", "host:port"),
    ({"rdzv_endpoint": "host\x1b[2J:1"}, "rdzv_endpoint", "host:port"),
    ({"rdzv_endpoint": "h:1", "rdzv_backend": "static", "max_nodes": 2}, "rdzv_configs", '"rank"'),
    (
        {"rdzv_endpoint": "h:1", "rdzv_backend": "static", "rdzv_configs": {"rank": 1}},
        "rdzv_configs",
        "0 to 0",
    ),
    (
        {"rdzv_endpoint": "h:1", "rdzv_backend": "static", "rdzv_configs": {"rank": True}},
        "rdzv_configs",
        '"rank"',
    ),
    (
        {
            "rdzv_endpoint": "h:1",
            "rdzv_backend": "static",
            "max_nodes": 2,
            "rdzv_configs": {"rank": "0"},
        },
        "rdzv_configs",
        '"rank"',
    ),
    ({"rdzv_endpoint": "h", "rdzv_backend": "static"}, "rdzv_endpoint", "port"),
    ({"rdzv_configs": None}, "rdzv_configs", "dict"),
    ({"rdzv_configs": [("timeout", 3)]}, "rdzv_configs", "dict"),
    ({"rdzv_configs": {"lock": object()}}, "rdzv_configs", "numbers, strings and booleans"),
    ({"rdzv_configs": {"key": b"bytes"}}, "rdzv_configs", "numbers, strings and booleans"),
    ({"rdzv_configs": {"timeout": 0}}, 'rdzv_configs["timeout"]', "greater than 0"),
    ({"rdzv_configs": {"timeout": -5}}, 'rdzv_configs["timeout"]', "greater than 0"),
    ({"rdzv_configs": {"timeout": "60"}}, 'rdzv_configs["timeout"]', "seconds"),
    ({"rdzv_configs": {"timeout": math.inf}}, 'rdzv_configs["timeout"]', "seconds"),
    ({"rdzv_configs": {"timeout": math.nan}}, 'rdzv_configs["timeout"]', "seconds"),
    ({"rdzv_configs": {"timeout": True}}, 'rdzv_configs["timeout"]', "seconds"),
    ({"rdzv_timeout": 0}, "rdzv_timeout", "greater than 0"),
    ({"rdzv_timeout": -2}, "rdzv_timeout", "-1 for the default"),
    ({"rdzv_timeout": 1.5}, "rdzv_timeout", "seconds"),
    ({"rdzv_timeout": None}, "rdzv_timeout", "seconds"),
    ({"rdzv_timeout": True}, "rdzv_timeout", "seconds"),
    # seconds
    ({"monitor_interval": 0}, "monitor_interval", "greater than 0"),
    ({"monitor_interval": -0.1}, "monitor_interval", "greater than 0"),
    ({"monitor_interval": math.nan}, "monitor_interval", "seconds"),
    ({"monitor_interval": math.inf}, "monitor_interval", "seconds"),
    ({"monitor_interval": "30"}, "monitor_interval", "seconds"),
    ({"monitor_interval": None}, "monitor_interval", "seconds"),
    ({"monitor_interval": True}, "monitor_interval", "seconds"),
    ({"monitor_interval": 10**400}, "monitor_interval", "seconds"),
    # where to
    ({"log_dir": ""}, "log_dir", "path of a directory"),
    ({"log_dir": 3}, "log_dir", "path of a directory"),
    ({"log_dir": b"/tmp"}, "log_dir", "path of a directory"),
    ({"log_dir": ["/tmp"]}, "log_dir", "path of a directory"),
    ({"log_dir": "/tmp/a\0b"}, "log_dir", "path of a directory"),
    ({"log_dir": "~\0nobody/x"}, "log_dir", "path of a directory"),
    ({"log_dir": "/tmp/\ud800"}, "log_dir", ""),
    # streams
    ({"tee": 4}, "tee", "0 to 3"),
    ({"tee": -1}, "tee", "0 to 3"),
    ({"tee": "4"}, "tee", "0 to 3"),
    ({"tee": ""}, "tee", "0 to 3"),
    ({"tee": "out"}, "tee", "0 to 3"),
    ({"tee": "0:"}, "tee", "by local rank"),
    ({"tee": ":1"}, "tee", "by local rank"),
    ({"tee": "0:1,"}, "tee", "by local rank"),
    ({"tee": "0:1:2"}, "tee", "by local rank"),
    ({"tee": "0:1;1:2"}, "tee", "by local rank"),
    ({"tee": "-1:1"}, "tee", "by local rank"),
    ({"tee": "0:1,0:2"}, "tee", "by local rank"),
    ({"tee": "0:1,00:2"}, "tee", "by local rank"),
    ({"tee": {0: 1, "0": 2}}, "tee", "by local rank"),
    ({"tee": None}, "tee", "0 to 3"),
    ({"tee": True}, "tee", "0 to 3"),
    ({"tee": 1.0}, "tee", "0 to 3"),
    ({"tee": [1, 2]}, "tee", "0 to 3"),
    ({"tee": {0: "x"}}, "tee", "by local rank"),
    ({"tee": {"a": 1}}, "tee", "by local rank"),
    ({"tee": {True: 1}}, "tee", "by local rank"),
    ({"tee": {0: {0: 1}}}, "tee", "by local rank"),
    ({"tee": {2: 1}}, "tee", "nproc_per_node=2"),
    ({"tee": "9" * 5000 + ":1"}, "tee", ""),
    ({"redirects": 8}, "redirects", "0 to 3"),
    ({"redirects": b"3"}, "redirects", "0 to 3"),
    ({"redirects": "7:1"}, "redirects", "local rank 7"),
    ({"redirects": "0:\u0663"}, "redirects", "by local rank"),
    # metrics
    ({"metrics_cfg": None}, "metrics_cfg", "dict"),
    ({"metrics_cfg": {"handler": 1}}, "metrics_cfg", "str to str"),
    ({"metrics_cfg": {1: "console"}}, "metrics_cfg", "str to str"),
    ({"metrics_cfg": {"handler": "prometheus"}}, "metrics_cfg", '"console"'),
    # keywords
    ({"nproc_per_nod": 2}, "nproc_per_nod", "'nproc_per_node'"),
    ({"max_restart": 2}, "max_restart", "'max_restarts'"),
    ({"rdvz_backend": "c10d"}, "rdvz_backend", "'rdzv_backend'"),
    ({"logdir": "/tmp"}, "logdir", "'log_dir'"),
    ({"zzz": 1}, "zzz", "known: min_nodes"),
]


@pytest.mark.parametrize(
    ("wrong", "field", "remedy"), WRONG, ids=[f"{i}-{row[1]}" for i, row in enumerate(WRONG)]
)
def test_the_error_for_wrong_input_names_field_value_and_remedy(wrong, field, remedy):
    with pytest.raises(ConfigError) as caught:
        make(**wrong)
    error = caught.value
    assert error.field == field
    assert remedy in error.remedy
    message = str(error)
    assert message.startswith(f"{field}=") and message.endswith(error.remedy)
    assert len(message) < 1000
    message.encode()  # it can be printed anywhere
    if field in ("rdzv_configs", "tee", "redirects") and (
        isinstance(wrong.get(field), dict) or "local rank " in remedy
    ):
        assert isinstance(error.value, dict)  # as it was parsed, perhaps with the timeout added
    elif field in wrong:
        value = wrong[field]
        assert error.value is value or error.value == value
        if not isinstance(value, WithoutRepr) and value is not HUGE:
            assert repr(value)[:100] in message


def test_wrong_input_is_a_value_error_too():
    with pytest.raises(ValueError):
        make(nproc_per_node=0)


def test_a_log_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a directory"):
        make(log_dir=str(tmp_path / "file"))


def test_a_log_dir_under_a_file_is_refused_naming_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        make(log_dir=tmp_path / "file" / "a" / "b")
    assert caught.value.field == "log_dir" and f"{tmp_path / 'file'} is not a directory" in str(
        caught.value
    )


def test_a_log_dir_behind_a_dangling_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="log_dir"):
        make(log_dir=tmp_path / "link" / "x")


def test_a_log_dir_need_not_exist_and_checking_does_not_make_it(tmp_path):
    config = make(log_dir=tmp_path / "a" / "b")
    assert config.log_dir == str(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_log_dir_is_made_absolute_and_knows_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert make(log_dir="~/runs").log_dir == str(tmp_path / "runs")
    assert make(log_dir="runs").log_dir == str(tmp_path / "runs")


def test_rdzv_configs_that_are_nested_too_deeply_are_refused():
    deep: dict = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ConfigError) as caught:
        make(rdzv_configs=deep)
    assert caught.value.field == "rdzv_configs"


def test_validate_checks_what_was_assigned_after_construction():
    config = make()
    config.nproc_per_node = -3
    with pytest.raises(ConfigError, match="nproc_per_node=-3"):
        config.validate()


def test_replace_checks_again():
    with pytest.raises(ConfigError, match="max_restarts"):
        replace(make(), max_restarts=-1)


def test_several_nodes_with_an_endpoint_are_accepted():
    config = LaunchConfig(2, 4, 8, rdzv_endpoint="[fe80::1]:29400", rdzv_backend="c10d")
    assert (config.min_nodes, config.max_nodes) == (2, 4)


@pytest.mark.parametrize(
    "endpoint", ["localhost:0", "localhost", "h:65535", "[::1]:1", "[::1]", "10.0.0.1:29400"]
)
def test_common_endpoints_are_accepted(endpoint):
    assert make(rdzv_endpoint=endpoint, rdzv_backend="c10d").rdzv_endpoint == endpoint


def test_static_on_one_node_needs_no_rank():
    assert make(rdzv_endpoint="localhost:1", rdzv_backend="static").rdzv_configs == {"timeout": 900}


# The timeout, and `rdzv_timeout`, its legacy name.


def test_the_timeout_is_900_by_default():
    assert DEFAULT_RDZV_TIMEOUT == 900
    assert make().rdzv_configs["timeout"] == 900


def test_rdzv_timeout_is_the_legacy_name_of_the_timeout():
    assert make(rdzv_timeout=60).rdzv_configs == {"timeout": 60}


def test_rdzv_configs_timeout_is_kept():
    assert make(rdzv_configs={"timeout": 12.5, "join_timeout": 3}).rdzv_configs == {
        "timeout": 12.5,
        "join_timeout": 3,
    }


def test_the_legacy_name_wins_where_both_are_given_as_in_torch():
    from torch.distributed.launcher.api import LaunchConfig as TorchConfig

    ours = make(rdzv_timeout=60, rdzv_configs={"timeout": 5})
    theirs = TorchConfig(1, 1, 2, rdzv_timeout=60, rdzv_configs={"timeout": 5})
    assert ours.rdzv_configs["timeout"] == theirs.rdzv_configs["timeout"] == 60


# Std.


def test_the_numbers_of_std_are_torchs():
    from torch.distributed.elastic.multiprocessing import Std as TorchStd

    assert {s.name: int(s) for s in (Std.NONE, Std.OUT, Std.ERR, Std.ALL)} == {
        s.name: int(s) for s in (TorchStd.NONE, TorchStd.OUT, TorchStd.ERR, TorchStd.ALL)
    }


@pytest.mark.parametrize(
    ("spelling", "meaning"),
    [
        (0, Std.NONE),
        (1, Std.OUT),
        (2, Std.ERR),
        (3, Std.ALL),
        ("0", Std.NONE),
        ("3", Std.ALL),
        (" 2 ", Std.ERR),
        (Std.OUT | Std.ERR, Std.ALL),
        ("0:1,1:2", {0: Std.OUT, 1: Std.ERR}),
        (" 0 : 3 , 7:0 ", {0: Std.ALL, 7: Std.NONE}),
        ({0: 1, 1: "2", 2: Std.ALL}, {0: Std.OUT, 1: Std.ERR, 2: Std.ALL}),
        ({"0": 3}, {0: Std.ALL}),  # what a dict becomes in JSON
        ({}, {}),
    ],
)
def test_parse_reads_every_spelling(spelling, meaning):
    parsed = Std.parse(spelling)
    assert parsed == meaning
    assert all(
        type(one) is Std for one in (parsed.values() if isinstance(parsed, dict) else [parsed])
    )


def test_parse_reads_torchs_own_enum_and_what_torch_parses():
    from torch.distributed.elastic.multiprocessing import Std as TorchStd

    assert Std.parse(TorchStd.ALL) is Std.ALL
    assert Std.parse({1: TorchStd.ERR}) == {1: Std.ERR}
    for text in ("0", "1", "2", "3", "0:1,1:2", "0:3"):
        assert Std.parse(text) == TorchStd.from_str(text)
        assert Std.parse(TorchStd.from_str(text)) == TorchStd.from_str(text)


def test_parse_names_the_field_that_it_was_given():
    with pytest.raises(ConfigError, match=r"^tee='5': must be 0 to 3"):
        Std.parse("5", field="tee")


@pytest.mark.parametrize(
    ("redirects", "tee", "shown"),
    [
        (0, 0, [Std.ALL, Std.ALL]),
        (3, 0, [Std.NONE, Std.NONE]),
        (1, 0, [Std.ERR, Std.ERR]),
        (0, 3, [Std.ALL, Std.ALL]),
        (3, 3, [Std.ALL, Std.ALL]),
        (3, 1, [Std.OUT, Std.OUT]),
        ({0: 3}, 0, [Std.NONE, Std.ALL]),
        (3, {1: 2}, [Std.NONE, Std.ERR]),
        ("0:1,1:2", "0:2", [Std.ERR, Std.OUT]),
    ],
)
def test_teed_and_unset_streams_are_shown_redirected_ones_are_not(redirects, tee, shown):
    config = make(redirects=redirects, tee=tee)
    assert [config.shown(rank) for rank in range(2)] == shown


# JSON.

FULL = dict(
    min_nodes=1,
    max_nodes=2,
    nproc_per_node=4,
    run_id='ü\n"quoted"',
    role="r",
    rdzv_endpoint="h:1",
    rdzv_backend="static",
    rdzv_configs={"rank": 1, "timeout": 3.5},
    max_restarts=0,
    monitor_interval=0.1,
    start_method="fork",
    log_dir="/tmp/x",
    redirects={0: Std.OUT, 3: Std.ALL},
    tee="1:2",
    metrics_cfg={"handler": "console"},
)


@pytest.mark.parametrize(
    "wanted", [ONE, {**ONE, "rdzv_timeout": 30}, FULL], ids=["least", "legacy", "full"]
)
def test_a_config_survives_json(wanted):
    config = LaunchConfig(**wanted)
    assert LaunchConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_mappings_that_are_no_dicts_survive_json():
    frozen = types.MappingProxyType({"handler": "null"})
    config = make(
        metrics_cfg=frozen,
        tee=types.MappingProxyType({0: 1}),
        rdzv_configs=types.MappingProxyType({"timeout": 3}),
    )
    again = LaunchConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert (again.metrics_cfg, again.tee, again.rdzv_configs) == (
        {"handler": "null"},
        {0: Std.OUT},
        {"timeout": 3},
    )


def test_from_json_checks_too():
    with pytest.raises(ConfigError):
        LaunchConfig.from_json({**make().to_json(), "nproc_per_node": 0})
