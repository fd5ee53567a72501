"""Tests of `plaintext`: no control sequence reaches a terminal, and no text is lost."""

from __future__ import annotations

import ast
import json

import pytest

from icelaunch_nb.errors import ConfigError, Failure, IcelaunchError, RunFailed, RunStopped
from icelaunch_nb.rundir.stacks import Stacks
from icelaunch_nb.system.plaintext import in_colors, in_lines, one_line, sendable

TITLE, CLIPBOARD, CLEAR = "\x1b]0;owned\x07", "\x1b]52;c;AAAA\x07", "\x1b[2J\x1b[H"


@pytest.mark.parametrize(
    "control",
    [
        TITLE,
        CLIPBOARD,
        CLEAR,
        "\x9b31m",
        "\x9d0;x\x9c",
        "\x07",
        "\x08",
        "\r",
        "\x7f",
        "\u202e",
        "\u2028",
        "\ud800",
    ],
)
def test_control_characters_are_escaped_without_loss(control):
    for shown in (one_line(f"a{control}b"), in_lines(f"a{control}b"), in_colors(f"a{control}b")):
        assert shown.isprintable() and "\x1b" not in shown
        assert ast.literal_eval(f"'{shown}'") == f"a{control}b"


def test_plain_text_and_colors_stay():
    assert one_line("größer 🙂\tx\ny") == r"größer 🙂\tx\ny"
    assert in_lines("größer 🙂\tx\ny") == "größer 🙂\tx\ny"
    assert in_colors("\x1b[1;31mred\x1b[0m\n") == "\x1b[1;31mred\x1b[0m\n"


def test_errors_escape_control_characters():
    failure = Failure(
        0,
        0,
        0,
        0.0,
        1,
        "raised",
        1,
        "ValueError",
        f"bad{TITLE}",
        f"\x1b[31mtrace\x1b[0m{CLEAR}\nValueError: bad{TITLE}",
        hint=CLIPBOARD,
    )
    errors = [
        RunFailed([failure], world_size=1, log_dir=f"/tmp/{TITLE}", note=CLEAR),
        RunStopped(f"run {TITLE} was stopped"),
        IcelaunchError(CLIPBOARD),
        ConfigError(TITLE, TITLE, TITLE),
    ]
    for error in errors:
        assert TITLE not in str(error) and CLEAR not in str(error) and "\x07" not in str(error)
    assert "\x1b[31mtrace\x1b[0m" in str(errors[0]) and r"\x1b]0;owned\x07" in str(errors[0])
    assert "\x1b]" not in "\n".join(errors[0]._render_traceback_())
    assert "\x1b" not in repr(failure)


def test_stacks_escape_control_characters_and_html():
    stacks = Stacks(
        {
            0: f'Current thread\n  File "<img src=x onerror=alert(1)>{TITLE}", line 1 in f\n',
            1: "elsewhere\n",
        }
    )
    assert (
        "\x1b" not in repr(stacks)
        and "<img" not in stacks._repr_html_()
        and "\x1b" not in stacks._repr_html_()
    )


def test_lone_surrogates_are_sendable():
    value = {"name\ud83d": ["\udcff", 1, None, {"a": ("b", "c")}]}
    assert json.loads(json.dumps(sendable(value), ensure_ascii=False).encode()) == {
        "name\\ud83d": ["\\udcff", 1, None, {"a": ["b", "c"]}]
    }
