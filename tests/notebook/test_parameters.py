"""A function's parameters as fields: their kinds, their defaults, and the values of typed text."""

from __future__ import annotations

import enum
import functools
import sys
from typing import Annotated, Literal, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelaunch_nb.notebook.form.parameters import MissingValue, literal, parameters

steady = settings(deadline=None, derandomize=True, database=None)


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


def one(fn, name="x"):
    return next(p for p in parameters(fn) if p.name == name)


def refuse(text):
    raise AssertionError(f"{text} was evaluated")


@pytest.mark.parametrize(
    ("annotation", "default", "kind", "shown"),
    [
        (bool, True, "checkbox", True),
        (bool, ..., "checkbox", False),
        (int, 3, "number", "3"),
        (int, ..., "number", ""),
        (float, 0.5, "number", "0.5"),
        (float, 2, "number", "2"),
        (str, "a b", "text", "a b"),
        (str, "two\nlines", "expression", '"two\\nlines"'),
        (int | None, None, "number", ""),
        (Union[str, None], None, "text", ""),  # noqa: UP007
        (bool | None, None, "select", "None"),
        (Literal["fast", "slow"], "slow", "select", "slow"),
        (Literal[1, "1"], ..., "select", ""),
        (Literal["a"] | None, None, "select", "None"),
        (Color, Color.BLUE, "select", "BLUE"),
        (Annotated[int, "positive"], 1, "number", "1"),
        (list[int], [1, 2], "expression", "[1, 2]"),
        (dict, ..., "expression", ""),
        (int, "three", "expression", '"three"'),
        (int | str, 3, "expression", "3"),
        ("NotDefined", 3, "expression", "3"),
        (..., False, "checkbox", False),
        (..., 7, "number", "7"),
        (..., 1e-3, "number", "0.001"),
        (..., "text", "text", "text"),
        (..., Color.RED, "select", "RED"),
        (..., None, "expression", "None"),
        (..., (1, 2), "expression", "(1, 2)"),
        (..., print, "expression", ""),
        (..., ..., "expression", ""),
    ],
)
def test_kinds_and_defaults(annotation, default, kind, shown):
    def fn(x):
        pass

    fn.__annotations__ = {} if annotation is ... else {"x": annotation}
    fn.__defaults__ = None if default is ... else (default,)
    found = one(fn)
    assert (found.kind, found.default, found.required) == (kind, shown, default is ...)
    if default is not ... and (kind != "expression" and shown != ""):
        assert found.read(found.default, refuse) == default


@pytest.mark.parametrize(
    ("annotation", "typed", "value"),
    [
        (bool, True, True),
        (int, " 12 ", 12),
        (int, "1_000", 1000),
        (float, "1e-3", 0.001),
        (str, "  kept ", "  kept "),
        (int | None, "", None),
        (str | None, "", None),
        (str | None, "x", "x"),
        (Literal[1, "1"], "1", 1),
        (Literal[1, "1"], '"1"', "1"),
        (Color, "RED", Color.RED),
        (bool | None, "False", False),
        (Color | None, "None", None),
    ],
)
def test_text_is_converted_to_a_value(annotation, typed, value):
    def fn(x):
        pass

    fn.__annotations__ = {"x": annotation}
    read = one(fn).read(typed, refuse)
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("annotation", "typed", "error", "expected"),
    [
        (int, "three", ValueError, "must be a whole number"),
        (int, "1.5", ValueError, "must be a whole number"),
        (float, "x", ValueError, "must be a number"),
        (str, "", MissingValue, "needs a value"),
        (int, "", MissingValue, "needs a value"),
        (int, "  ", MissingValue, "needs a value"),
        (Literal["a", "b"], "c", ValueError, "must be one of a, b"),
        (Color, "", MissingValue, "choose one"),
        (list, "", MissingValue, "needs a value"),
    ],
)
def test_an_impossible_value_is_reported(annotation, typed, error, expected):
    def fn(x):
        pass

    fn.__annotations__ = {"x": annotation}
    with pytest.raises(error, match=expected):
        one(fn).read(typed, refuse)


def test_ways_of_passing():
    def fn(a, /, b, *rest, c=1, **names):
        pass

    assert [(p.name, p.passed) for p in parameters(fn)] == [
        ("a", "position"),
        ("b", "either"),
        ("rest", "rest"),
        ("c", "name"),
        ("names", "names"),
    ]


def test_partials_methods_and_callables_without_a_signature():
    class Trainer:
        def fit(self, epochs: int = 2):
            pass

    assert [(p.name, p.default) for p in parameters(Trainer().fit)] == [("epochs", "2")]
    assert [
        (p.name, p.default) for p in parameters(functools.partial(Trainer().fit, epochs=5))
    ] == [("epochs", "5")]
    with pytest.raises(ValueError):
        parameters(dict)


def test_an_unresolvable_annotation_doesnt_affect_the_others():
    def fn(x, y, z=None):
        pass

    fn.__annotations__ = {"x": "int", "y": "Nowhere", "z": "float | None"}
    assert [(p.kind, p.hint) for p in parameters(fn)] == [
        ("number", "int"),
        ("expression", "Nowhere"),
        ("number", "float, empty: None"),
    ]
    assert [p.kind for p in parameters(functools.partial(fn, y=1))] == [
        "number",
        "expression",
        "number",
    ]


@pytest.mark.skipif(
    sys.version_info < (3, 14), reason="annotations are evaluated when the function is defined"
)
def test_an_annotation_that_raises_is_ignored():
    namespace = {}
    exec("def fn(x: int, y: Nowhere): pass", namespace)
    assert [p.kind for p in parameters(namespace["fn"])] == ["number", "expression"]


def test_a_default_that_cannot_be_shown_is_named_by_its_type():
    class Broken:
        def __repr__(self):
            raise RuntimeError("not yet")

    def fn(x=Broken(), y: int = Broken()):  # noqa: B008
        pass

    for found in parameters(fn):
        assert (found.kind, found.default) == ("expression", "")
        assert found.hint.startswith("empty: a ") and found.hint.endswith("Broken")


@steady
@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
        st.lists(st.text()),
        st.sampled_from(Color),
    )
)
def test_a_literal_is_converted_to_its_value(value):
    assert eval(literal(value)) == value


@steady
@given(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.lists(st.integers(), max_size=4),
        st.none(),
        st.sampled_from(Color),
    )
)
def test_an_empty_field_has_its_default(default):
    def fn(x=default):
        pass

    found = one(fn)
    if found.default != "" or isinstance(default, str):  # an empty field isn't passed
        assert found.read(found.default, eval) == default
