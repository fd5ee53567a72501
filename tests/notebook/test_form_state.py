"""The form's fields: the launch that they describe, their errors, and the stored settings."""

from __future__ import annotations

import enum
import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icelaunch_nb as ice
from icelaunch_nb.notebook.form.settings_store import SettingsStore, notebook_path
from icelaunch_nb.notebook.form.state import Form
from icelaunch_nb.notebook.magic import options as opt
from icelaunch_nb.notebook.magic.interpolation import interpolate

steady = settings(deadline=None, derandomize=True, database=None)
TREES: list[str] = []


def train(data, epochs: int = 3, *, lr: float = 0.1, shuffle: bool = True):
    """Trains.

    And more.
    """


def grow(path):
    TREES.append(path)
    return path


for fn in (train, grow):
    fn.__module__ = "__main__"


@pytest.fixture
def namespace() -> dict[str, Any]:
    return {
        "ice": ice,
        "grow": grow,
        "train": train,
        "dataset": [1, 2, 3],
        "_hidden": train,
        "__builtins__": __builtins__,
    }


@pytest.fixture
def form(namespace):
    made = Form(namespace)
    made.set("argument.data", "dataset[:2]")
    return made


def fill(form, typed):
    for key, value in typed.items():
        form.set(key, value)


def problems(form):
    return form.read().problems


# The launch that the fields describe.


def test_it_offers_the_notebooks_functions_and_chooses_the_newest(namespace):
    view = Form(namespace).to_json()
    assert (view["functions"], view["function"], view["doc"]) == (
        ["grow", "train"],
        "train",
        "Trains.",
    )


def test_a_launch_has_the_values_that_were_typed(form):
    fill(
        form,
        {
            "argument.epochs": "5",
            "argument.shuffle": False,
            "setting.nproc_per_node": "2",
            "setting.max_restarts": "1",
            "setting.tee": "0:3",
        },
    )
    fn, args, kwargs, keywords = form.launch_arguments()
    assert (fn, args, kwargs) == (train, [], {"data": [1, 2], "epochs": 5, "shuffle": False})
    assert keywords == {"nproc_per_node": 2, "max_restarts": 1, "tee": "0:3"}
    assert form.python() == (
        "run = ice.launch(\n"
        "    train,\n"
        '    kwargs={"data": dataset[:2], "epochs": 5, "shuffle": False},\n'
        "    nproc_per_node=2,\n"
        '    max_restarts=1,\n    tee="0:3",\n)\nrun.result()'
    )
    assert (
        form.cell() == "%%icelaunch --nproc-per-node 2 --max-restarts 1 --tee 0:3\n"
        "train(data=dataset[:2], epochs=5, shuffle=False)"
    )


def test_a_field_put_back_to_its_default_is_not_passed(form):
    form.set("argument.epochs", "5")
    form.set("argument.epochs", "3")
    form.set("setting.max_restarts", "2")
    form.set("setting.max_restarts", "")
    assert form.launch_arguments()[2:] == ({"data": [1, 2]}, {})


def test_the_code_imports_what_the_notebook_lacks(form, namespace):
    del namespace["ice"]
    assert form.python().startswith("import icelaunch_nb as ice\n\nrun = ice.launch(train")
    namespace["launcher"] = ice
    assert form.python().startswith("run = launcher.launch(train")


@pytest.mark.parametrize(
    ("typed", "args", "kwargs", "call"),
    [
        ({"a": "1"}, [1], {}, "fn(1)"),
        ({"a": "1", "b": "3"}, [1, 3], {}, "fn(1, 3)"),
        ({"a": "1", "c": "4"}, [1], {"c": 4}, "fn(1, c=4)"),
        ({"a": "1", "rest": "(5, 6)"}, [1, 2, 0, 5, 6], {}, "fn(1, 2, 0, *(5, 6))"),
        ({"a": "1", "rest": "[]"}, [1, 2, 0], {}, "fn(1, 2, 0, *[])"),
        ({"a": "1", "names": "{'z': 1}"}, [1], {"z": 1}, "fn(1, **{'z': 1})"),
        (
            {"a": "1", "d": "7", "names": "dict(z=1)"},
            [1],
            {"d": 7, "z": 1},
            "fn(1, d=7, **(dict(z=1)))",
        ),
    ],
)
def test_every_way_of_passing_an_argument(typed, args, kwargs, call):
    seen = []

    def fn(a: int, b: int = 2, /, c: int = 0, *rest, d: int = 9, **names):
        seen.append(((a, b, c, *rest), d, names))

    form = Form({"__builtins__": __builtins__, "fn": fn}, fn)
    for name, value in typed.items():
        form.set(f"argument.{name}", value)
    found = form.launch_arguments()
    assert found[1:3] == (args, kwargs)
    assert form.cell().splitlines()[1] == call
    fn(*found[1], **found[2])
    eval(call, {"fn": fn})
    assert seen[0] == seen[1], "the code does what the form does"


@pytest.mark.parametrize(
    ("typed", "source"),
    [
        ("1, 2", "(1, 2)"),
        ("dataset,", "(dataset,)"),
        ("(1), (2)", "((1), (2))"),
        ("dataset # all", "dataset"),
        ("dataset, # both", "(dataset,)"),
        ("'#'", "'#'"),
        ("(1, 2)  # two", "(1, 2)"),
        ("(1)", "(1)"),
        ("[1, # one\n 2]", "[1, # one\n 2]"),
        ("(y := 1)", "(y := 1)"),
        ("lambda: 1, 2", "(lambda: 1, 2)"),
        ("(x for x in 'ab')", "(x for x in 'ab')"),
        ("'é', 'ü'", "('é', 'ü')"),
    ],
)
def test_an_expression_stays_one_argument_in_the_code(namespace, typed, source):
    seen = []

    def fn(a, /, b=None, *rest, **names):
        seen.append(
            [
                repr(list(one) if "generator" in repr(one) else one).partition(" at ")[0]
                for one in (a, b, rest, names)
            ]
        )

    namespace["fn"] = fn
    for typed_in in ({"a": typed}, {"a": "1", "b": typed}, {"a": "1", "rest": "[3]", "b": typed}):
        form = Form(namespace, fn)
        fill(form, {f"argument.{name}": value for name, value in typed_in.items()})
        _, args, kwargs, _ = form.launch_arguments()
        fn(*args, **kwargs)
        cell = form.cell().partition("\n")[2]
        assert source in cell
        eval(cell, dict(namespace))
        ran = {
            **namespace,
            "ice": type(
                "ice", (), {"launch": lambda fn, args=(), kwargs=None: fn(*args, **kwargs or {})}
            ),
        }
        exec(form.python().replace("\nrun.result()", ""), ran)
        assert seen[0] == seen[1] == seen[2], "the code does what the form does"
        seen.clear()


@pytest.mark.parametrize(
    "typed", ["[1] if dataset else [2]", "(dataset) + [4]", "dataset or [1]", "dataset, # all"]
)
def test_what_follows_a_star_in_the_code(namespace, typed):
    def fn(*rest):
        return rest

    form = Form({**namespace, "fn": fn}, fn)
    form.set("argument.rest", typed)
    code = form.cell().partition("\n")[2]
    assert eval(code, {**namespace, "fn": fn}) == tuple(form.launch_arguments()[1])
    ran = {**namespace, "fn": fn, "launch": lambda fn, args: fn(*args)}
    assert eval(form.python().splitlines()[0].replace("run = ice.", ""), ran) == tuple(
        form.launch_arguments()[1]
    )


def test_a_default_without_a_literal_is_passed_where_it_must_be(namespace):
    marker = object()

    def fn(a=marker, b: float = float("inf"), /, c=print, *rest):
        return a, b, c, rest

    form = Form({**namespace, "fn": fn}, fn)
    fill(form, {"argument.rest": "[1]"})
    assert not problems(form)
    assert form.launch_arguments()[1] == [marker, float("inf"), print, 1]
    assert (
        form.cell()
        == form.python()
        == "# There is no code for this launch: the default of a can't be written."
    )
    fill(form, {"argument.a": "1", "argument.c": " ", "argument.rest": " "})
    assert form.cell() == "%%icelaunch\nfn(1)"


def test_a_member_of_an_enumeration_is_written_as_the_notebook_can_name_it(
    namespace, tmp_path, monkeypatch
):
    import http
    import inspect

    class Own(enum.Enum):
        ONE = 1

    def fn(x, y=None):
        pass

    fn.__annotations__ = {"x": inspect._ParameterKind, "y": http.HTTPStatus}
    form = Form({"fn": fn, "ice": ice}, fn)
    form.set("argument.x", "VAR_KEYWORD")
    assert (
        form.cell()
        == "%%icelaunch\nfrom inspect import _ParameterKind\nfn(x=_ParameterKind.VAR_KEYWORD)"
    )
    assert form.python().startswith("from inspect import _ParameterKind\n\nrun = ice.launch(")
    form._namespace["inspect"] = inspect
    assert form.cell() == "%%icelaunch\nfn(x=inspect._ParameterKind.VAR_KEYWORD)"
    del form._namespace["inspect"]
    form._namespace["_ParameterKind"] = 3
    assert (
        form.cell()
        == form.python()
        == "# There is no code for this launch: the notebook has no name for _ParameterKind."
    )
    fn.__annotations__ = {"x": Own}
    form.set("argument.x", "ONE")
    assert "the notebook has no name for " in form.cell()
    form._namespace["Mine"] = Own
    assert form.cell() == "%%icelaunch\nfn(x=Mine.ONE)"


def test_the_cell_parses_to_the_same_launch(form):
    typed = {
        "nproc_per_node": "3",
        "role": "it's me",
        "rdzv_configs": "timeout=60",
        "detach": True,
        "redirects": "1",
        "log_dir": "/tmp/a b/{run}/$x",
    }
    fill(form, {f"setting.{name}": value for name, value in typed.items()})
    line = form.cell().splitlines()[0].removeprefix("%%icelaunch ")
    assert opt.parse_options(interpolate(line, {})).launch == form.launch_arguments()[3]


def test_a_function_that_is_redefined_is_launched_as_it_is_now(namespace):
    form = Form(namespace, train)
    assert [one["label"] for one in form.to_json()["arguments"]] == [
        "data",
        "epochs",
        "lr",
        "shuffle",
    ]

    def newer(steps: int = 1):
        pass

    newer.__name__, namespace["train"] = "train", newer
    assert [one["label"] for one in form.to_json()["arguments"]] == ["steps"]
    assert form.launch_arguments()[0] is newer


def test_a_modules_function_is_called_through_it_and_a_nameless_one_has_no_code(namespace):
    import textwrap

    assert (
        Form({"tw": textwrap, "ice": ice}, textwrap.dedent).cell().endswith("\ntw.dedent(text=...)")
    )
    nameless = Form(namespace, lambda steps=3: steps)
    assert (
        nameless.cell()
        == nameless.python()
        == "# The notebook has no name for this function; with one, it can be launched by code."
    )
    assert nameless.launch_arguments()[2:] == ({}, {})


def test_rebinding_a_functions_name_leaves_the_form_its_function(namespace):
    form = Form(namespace, train)
    namespace["train"] = None
    assert [one["label"] for one in form.to_json()["arguments"]] == [
        "data",
        "epochs",
        "lr",
        "shuffle",
    ]


# Errors.


@pytest.mark.parametrize(
    ("key", "typed", "expected"),
    [
        ("argument.epochs", "three", "must be a whole number"),
        ("argument.epochs", "", "must not be empty; the default is 3"),
        ("argument.lr", "fast", "must be a number"),
        ("argument.data", "", "needs a value"),
        ("argument.data", "datasett", "name 'datasett' is not defined: did you mean 'dataset'?"),
        ("argument.data", "nowhere[0]", "name 'nowhere' is not defined"),
        ("argument.data", "dataset[", "not a Python expression"),
        ("argument.data", "x = 1", "not a Python expression"),
        ("argument.data", "import os", "not a Python expression"),
        ("argument.data", "-" * 2000 + "1", "nested too deeply"),
        ("argument.data", "dataset[9]", "IndexError: list index out of range"),
        (
            "argument.data",
            "dataset.nothing",
            "AttributeError: 'list' object has no attribute 'nothing'",
        ),
        ("setting.nproc_per_node", "0", "must be at least 1"),
        ("setting.nproc_per_node", "many", 'must be an int, or "auto"'),
        ("setting.nproc_per_node", "1.5", 'must be an int, or "auto"'),
        ("setting.nproc_per_node", "1000000", "must be at most 100000"),
        ("setting.devices", "gpu", 'must be "auto", "cpu"'),
        ("setting.devices", "cuda:1-0", "runs backwards"),
        ("setting.devices", "cuda:0,0", "device 0 stands twice"),
        ("setting.max_restarts", "-1", "must be at least 0"),
        ("setting.max_restarts", "often", "must be an int"),
        ("setting.tee", "4", "must be 0 to 3"),
        ("setting.tee", "3:1", "local rank 3 does not exist"),
        ("setting.redirects", "0:1,0:2", "must be 0 to 3"),
        ("setting.min_nodes", "2", "must not be greater than max_nodes=1"),
        ("setting.max_nodes", "0", "must be at least 1"),
        ("setting.rdzv_endpoint", "host:port", "must be host:port with a port from 0 to 65535"),
        ("setting.rdzv_backend", "c10", "did you mean 'c10d'?"),
        ("setting.rdzv_configs", "timeout", "must be NAME=VALUE"),
        ("setting.rdzv_timeout", "0", "must be seconds greater than 0"),
        ("setting.monitor_interval", "-1", "must be seconds, greater than 0"),
        ("setting.start_method", "thread", "must be one of spawn, fork, forkserver"),
        ("setting.log_dir", "/dev/null/logs", "is not a directory"),
        ("setting.metrics_cfg", "handler=file", 'its "handler" must be "null" or "console"'),
        ("setting.run_id", "a\0b", "must not hold a NUL character"),
    ],
)
def test_an_error_shows_at_its_field_and_nowhere_else(form, key, typed, expected):
    form.set(key, typed)
    found = problems(form)
    assert list(found) == [key]
    assert expected in found[key]
    view = form.to_json()
    shown = {
        one["key"]: one["error"]
        for one in [*view["arguments"], *view["main"], *view["advanced"]]
        if one["error"]
    }
    assert shown == found
    with pytest.raises(ice.ConfigError) as caught:
        form.launch_arguments()
    assert caught.value.field == key.partition(".")[2]
    form.set(
        key,
        "dataset"
        if key == "argument.data"
        else {
            one["key"]: one["default"]
            for one in [*view["arguments"], *view["main"], *view["advanced"]]
        }[key],
    )
    assert problems(form) == {}


def test_several_errors_all_show(form):
    fill(
        form,
        {
            "argument.epochs": "x",
            "setting.nproc_per_node": "0",
            "setting.max_restarts": "-1",
            "setting.max_nodes": "2",
            "setting.role": "a\0",
        },
    )
    assert set(problems(form)) == {
        "argument.epochs",
        "setting.nproc_per_node",
        "setting.max_restarts",
        "setting.rdzv_endpoint",
        "setting.role",
    }


def test_a_function_that_cant_be_launched_is_reported(namespace):
    async def coroutine():
        pass

    coroutine.__module__ = "__main__"
    assert "is async" in problems(Form({"coroutine": coroutine}))["function"]
    assert problems(Form({})) == {"function": "a function that a cell defines appears here"}
    assert "can't be launched from a form" in problems(Form({"dict": dict}, dict))["function"]
    for wrong in ("train.py", 3, [train]):
        with pytest.raises(ice.ConfigError, match="fn=.* must be a function"):
            Form(namespace, wrong)


@pytest.mark.parametrize(
    "typed",
    [
        "grow('oak')",
        "[grow('oak') for _ in 'ab']",
        "10 ** 10 ** 10",
        "(lambda: grow('oak'))()",
        "f'{grow(1)}'",
    ],
)
def test_an_expression_with_side_effects_is_evaluated_at_the_launch(form, typed):
    form.set("argument.data", typed)
    view = form.to_json()
    assert view["arguments"][0]["deferred"] and not view["invalid"]
    assert TREES == []


class Grows:
    """Counts how often an operator or an attribute of it is evaluated."""

    def __init__(self):
        self.evaluated = 0

    def __getitem__(self, item):
        self.evaluated += 1
        return item

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self.evaluated += 1
        return 1

    def __len__(self):
        self.evaluated += 1
        return 1

    def __neg__(self):
        self.evaluated += 1
        return 1


@pytest.mark.parametrize(
    "typed",
    [
        "it[0]",
        "it.x",
        "[it.x]",
        "not it",
        "-it",
        "[*it]",
        "{'a': it[1]}",
        "dataset[it.x]",
        "counts['new']",
        "[*steps]",
    ],
)
def test_what_evaluation_may_change_is_evaluated_at_the_launch(form, namespace, typed):
    import collections

    namespace |= {"it": Grows(), "counts": collections.defaultdict(int), "steps": iter("ab")}
    form.set("argument.data", typed)
    view = form.to_json()
    assert view["arguments"][0]["deferred"] and not view["invalid"]
    assert (namespace["it"].evaluated, len(namespace["counts"]), list(namespace["steps"])) == (
        0,
        0,
        ["a", "b"],
    )


@pytest.mark.parametrize(
    "typed",
    [
        "dataset[0]",
        "dataset[:2][1]",
        "{'a': dataset}['a']",
        "ice.errors.ConfigError",
        "-1",
        "[*dataset, 3]",
        "{**{'a': 1}}",
        "array[1:, 0]",
        "array.shape[0]",
        "(1)" + 30 * ".real",
    ],
)
def test_a_plain_expression_is_evaluated_as_it_is_typed(form, namespace, typed):
    import numpy

    namespace["array"] = numpy.zeros((2, 2))
    form.set("argument.data", typed)
    view = form.to_json()
    assert not view["arguments"][0]["deferred"] and not view["invalid"]


def test_an_invalid_launch_evaluates_nothing(form):
    fill(form, {"argument.data": "grow('oak')", "setting.nproc_per_node": "0"})
    for _ in range(2):
        with pytest.raises(ice.ConfigError, match="nproc_per_node"):
            form.launch_arguments()
    assert TREES == []


def test_an_error_of_one_launch_is_gone_at_the_next(form, namespace):
    namespace["n"] = 0
    form.set("argument.data", "6 // n")
    with pytest.raises(ice.ConfigError, match="ZeroDivisionError"):
        form.launch_arguments()
    namespace["n"] = 3
    assert form.launch_arguments()[2] == {"data": 2}


def test_a_launch_evaluates_once_and_an_error_stays_beside_its_field(form):
    form.set("argument.data", "grow('oak')")
    assert form.launch_arguments()[2]["data"] == "oak"
    assert TREES == ["oak"]
    TREES.clear()
    form.set("argument.data", "1 // 0")
    assert problems(form) == {}
    with pytest.raises(ice.ConfigError, match="ZeroDivisionError"):
        form.launch_arguments()
    assert "ZeroDivisionError" in problems(form)["argument.data"]
    form.set("argument.data", "1 // 1")
    assert problems(form) == {}


def test_an_argument_that_cant_be_pickled_shows_its_error(form):
    assert form.attach_error(ice.PackingError("kwargs['data'].lock", "_thread.lock", "no"))
    assert "kwargs['data'].lock (a _thread.lock)" in problems(form)["argument.data"]
    assert not form.attach_error(ice.PackingError("train → something", "_thread.lock", "no"))


# Every field of LaunchConfig.


def test_every_field_of_launch_config_has_its_description(form):
    view = form.to_json()
    by_name = {one["key"].partition(".")[2]: one for one in [*view["main"], *view["advanced"]]}
    assert set(by_name) == {
        *(one.name for one in fields(ice.LaunchConfig)),
        "devices",
        "detach",
        "post_mortem",
        "hang_after",
    }
    assert all(one["description"] for one in by_name.values())
    assert by_name["max_restarts"]["description"].startswith(
        "How often the ranks may be restarted after a failure."
    )
    assert [one["key"] for one in view["main"]] == [
        "setting.nproc_per_node",
        "setting.devices",
        "setting.max_restarts",
        "setting.tee",
    ]


def test_a_view_is_plain_data(form):
    assert json.loads(json.dumps(form.to_json())) == form.to_json()


TYPED = st.one_of(
    st.text(max_size=12),
    st.booleans(),
    st.sampled_from(
        ["1", "-1", "auto", "cpu", "0:1", "dataset", "dataset[", "a=b", "\x00", "\ud800", "９"]
    ),
)
KEYS = st.sampled_from(
    [
        "function",
        "argument.data",
        "argument.epochs",
        "argument.shuffle",
        "argument.no",
        "setting.no",
        "nothing",
        "",
        *(f"setting.{option.key}" for option in opt.OPTIONS),
    ]
)


@steady
@given(st.lists(st.tuples(KEYS, TYPED), max_size=6))
def test_any_text_is_answered_and_stored(tmp_path_factory, typed):
    namespace = {
        "train": train,
        "grow": grow,
        "dataset": [1],
        "ice": ice,
        "__builtins__": __builtins__,
    }
    form = Form(namespace)
    for key, value in typed:
        form.set(key, value)
    view = form.to_json()
    assert set(view["invalid"]) >= set(view["missing"])
    try:
        fn, *_ = form.launch_arguments()
    except ice.ConfigError:
        pass
    else:
        assert fn in (train, grow) and not form.read(launching=True).problems
    again = Form(namespace)
    again.restore(json.loads(json.dumps(form.dump())))
    again._launch_errors = form._launch_errors
    assert again.to_json() == form.to_json()


# Stored settings.


def test_settings_are_restored(form, namespace, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    form.set("setting.nproc_per_node", "4")
    store = SettingsStore("/home/me/train.ipynb")
    store.save(form.name, form.dump())
    store.save("other", {"settings": {"nproc_per_node": "8"}})
    again = Form(namespace)
    again.restore(SettingsStore("/home/me/train.ipynb").load(again.name))
    assert again.cell() == "%%icelaunch --nproc-per-node 4\ntrain(data=dataset[:2])"
    assert SettingsStore("/home/me/other.ipynb").load("") == {}
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in store.path.parent.iterdir()] == [store.path.name]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no json",
        "[]",
        '{"forms": 3}',
        '{"forms": {"": 3}}',
        '{"forms": {"": {"settings": 1, "arguments": {"train": 2}, "function": 3}}}',
        "\ud800",
    ],
)
def test_a_damaged_settings_file_is_ignored(namespace, tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    store = SettingsStore("/home/me/train.ipynb")
    store.path.parent.mkdir(parents=True)
    store.path.write_bytes(content.encode(errors="surrogatepass"))
    form = Form(namespace)
    form.restore(store.load(""))
    assert form.cell() == "%%icelaunch\ntrain(data=...)"
    store.save("", form.dump())
    assert store.load("") == json.loads(json.dumps(form.dump()))


def test_an_unwritable_state_directory_is_ignored(form, tmp_path, monkeypatch):
    (tmp_path / "icelaunch_nb").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    store = SettingsStore("/home/me/train.ipynb")
    store.save("", form.dump())
    assert store.load("") == {}


def test_a_chosen_function_stays_chosen_until_it_is_defined(namespace):
    form = Form(namespace)
    fill(form, {"function": "grow", "argument.path": "'a'"})
    kept = json.loads(json.dumps(form.dump()))
    grow_again = namespace.pop("grow")
    again = Form(namespace)
    again.restore(kept)
    assert again.to_json()["function"] == "train"
    assert again.dump() == kept
    namespace["grow"] = grow_again
    assert again.cell() == "%%icelaunch\ngrow(path='a')"
    del namespace["grow"]
    again.set("argument.data", "1")
    namespace["grow"] = grow_again
    assert again.to_json()["function"] == "train", "who fills in its fields has chosen it"


def test_a_function_that_nobody_chose_stays_when_a_newer_one_comes(namespace):
    form = Form(namespace)
    assert form.to_json()["function"] == "train"
    namespace["newest"] = namespace["grow"]
    assert form.to_json()["function"] == "train"


def test_partials_and_caches_of_the_notebooks_functions_are_offered(namespace):
    import functools
    import operator

    namespace |= {
        "half": functools.partial(train, epochs=1),
        "kept": functools.lru_cache(train),
        "add": functools.partial(operator.add, 1),
    }
    view = Form(namespace).to_json()
    assert (view["functions"], view["function"], view["doc"]) == (
        ["grow", "train", "half", "kept"],
        "kept",
        "Trains.",
    )
    form = Form(namespace, namespace["half"])
    assert form.to_json()["doc"] == "Trains."
    form.set("argument.data", "1")
    assert form.cell() == "%%icelaunch\nhalf(data=1)"


def test_settings_that_no_longer_fit_the_function_are_left_out(form, namespace):
    form.set("argument.shuffle", False)
    form.set("argument.epochs", "7")

    def newer(data, shuffle: str = "no", epochs: bool = True):
        pass

    newer.__module__, newer.__name__, namespace["train"] = "__main__", "train", newer
    assert form.cell() == "%%icelaunch\ntrain(data=dataset[:2])"


def test_the_notebook_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert notebook_path({"JPY_SESSION_NAME": "/a/b.ipynb"}, {}) == "/a/b.ipynb"
    assert notebook_path({}, {"__vsc_ipynb_file__": "/c/d.ipynb"}) == "/c/d.ipynb"
    assert notebook_path({}, {}) == str(tmp_path)
