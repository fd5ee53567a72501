"""How a rank formats its exception: the user's frames, source lines and cell names."""

from __future__ import annotations

import linecache
import sys
import textwrap
import traceback

import pytest
import torch

from icelaunch_nb.worker.tracebacks import render


@pytest.fixture
def cell():
    """Defines functions as a cell does: source in linecache, globals of ``__main__``."""
    names: list[str] = []

    def define(source: str, name: str = "<cell 3>", **globals_) -> dict:
        source = textwrap.dedent(source)
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        names.append(name)
        namespace = {"__name__": "__main__", **globals_}
        exec(compile(source, name, "exec"), namespace)
        return namespace

    yield define
    for name in names:
        linecache.cache.pop(name, None)


def rendered(function, names=None) -> str:
    """Renders what a function raises, as a rank does: the frames above it are ours."""
    try:
        function()
    except BaseException as error:
        # Drop the frame of this test. In a rank it belongs to the package and isn't shown.
        return render(
            error.with_traceback(error.__traceback__.tb_next),
            {"<cell 3>": "Cell In[3]"} if names is None else names,
        )
    raise AssertionError("it raised nothing")


def test_the_cell_is_named_with_the_failing_line_and_its_neighbours(cell):
    f = cell("""\
        def f():
            x = 1
            # some comment
            raise ValueError("boom")
    """)["f"]
    assert rendered(f) == textwrap.dedent("""\
        Cell In[3], line 4, in f
              2     x = 1
              3     # some comment
        ----> 4     raise ValueError("boom")

        ValueError: boom""")


def test_code_at_a_cells_top_level_has_no_function_name(cell):
    source = "y = 1\n1 / 0\n"
    linecache.cache["<cell 3>"] = (len(source), None, source.splitlines(True), "<cell 3>")
    code = compile(source, "<cell 3>", "exec")
    try:
        text = rendered(lambda: exec(code, {}))
    finally:
        del linecache.cache["<cell 3>"]
    assert text.endswith(
        "Cell In[3], line 2\n      1 y = 1\n----> 2 1 / 0\n\nZeroDivisionError: division by zero"
    )


def test_a_file_is_named_by_its_path_and_line(tmp_path):
    path = tmp_path / "helper.py"
    path.write_text("def f():\n    raise KeyError('x')\n")
    namespace: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    assert rendered(namespace["f"]).startswith(f"File {path}:2, in f\n")


def test_all_frames_of_the_user_are_shown_outermost_first(cell):
    space = cell("""\
        def inner():
            raise RuntimeError("deep")
        def outer():
            inner()
    """)
    text = rendered(space["outer"])
    assert text.index("in outer") < text.index("in inner") < text.index("RuntimeError: deep")


def test_frames_of_torch_and_of_ours_are_left_out(cell):
    f = cell(
        """\
        def f():
            net = torch.nn.Linear(2, 2)
            return net(torch.zeros(3))
    """,
        torch=torch,
    )["f"]
    text = rendered(f)
    assert "Cell In[3], line 3, in f" in text
    assert torch.__path__[0] not in text
    assert text.splitlines()[-1].startswith("RuntimeError: ")


def test_frames_of_this_package_are_left_out(cell):
    from icelaunch_nb.pickling import explain

    f = cell(
        "def f():\n    return explain(TypeError('x'), roots)\n", explain=explain.explain, roots=None
    )["f"]
    text = rendered(f)
    assert "packing" not in text and text.count("Cell In[3]") == 1


def test_torchs_frames_are_shown_where_no_others_are_left():
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(2, 2)(torch.zeros(3))
    frames = caught.value.__traceback__
    while torch.__path__[0] not in frames.tb_frame.f_code.co_filename:
        frames = frames.tb_next
    assert torch.__path__[0] in render(caught.value.with_traceback(frames), {})


def test_the_cause_comes_first_and_is_called_the_cause(cell):
    f = cell("""\
        def f():
            try:
                {}["a"]
            except KeyError as error:
                raise ValueError("no a") from error
    """)["f"]
    first, second = rendered(f).split(
        "\n\nThe above exception was the direct cause of the following exception:\n"
    )
    assert first.endswith("KeyError: 'a'") and second.endswith("ValueError: no a")


def test_the_context_comes_first_unless_it_is_suppressed(cell):
    space = cell("""\
        def f():
            try:
                {}["a"]
            except KeyError:
                raise ValueError("no a")
        def g():
            try:
                {}["a"]
            except KeyError:
                raise ValueError("no a") from None
    """)
    assert "During handling of the above exception, another exception occurred:" in rendered(
        space["f"]
    )
    assert "KeyError" not in rendered(space["g"]).replace("except KeyError", "")


def test_each_exception_of_a_circle_of_causes_is_rendered_once():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    text = render(first, {})
    assert text.endswith("ValueError: first") and text.count("ValueError: second") == 1


def test_an_exception_class_of_a_cell_is_named_without_its_module(cell):
    f = cell("""\
        class MyError(Exception): pass
        def f():
            raise MyError("mine")
    """)["f"]
    assert rendered(f).splitlines()[-1] == "MyError: mine"


def test_a_message_of_several_lines_is_kept(cell):
    f = cell("""\
        def f():
            raise ValueError("one\\ntwo")
    """)["f"]
    assert rendered(f).endswith("ValueError: one\ntwo")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no notes")
def test_notes_are_kept(cell):
    f = cell("""\
        def f():
            error = ValueError("one")
            error.add_note("a note")
            raise error
    """)["f"]
    assert rendered(f).endswith("ValueError: one\na note")


def test_a_syntax_error_shows_where(cell):
    f = cell("def f():\n    compile('a = = 1', 'the_file.py', 'exec')\n")["f"]
    text = rendered(f)
    assert 'File "the_file.py", line 1' in text and "^" in text
    assert text.splitlines()[-1] == "SyntaxError: invalid syntax"


def test_an_exception_without_a_traceback_or_source_is_rendered():
    assert render(ValueError("bare"), {}) == "ValueError: bare"
    assert rendered(lambda: exec("raise ValueError('x')", {})).splitlines()[-1] == "ValueError: x"


def test_system_exit_and_interrupts_are_rendered():
    assert render(SystemExit(3), {}) == "SystemExit: 3"
    assert render(KeyboardInterrupt(), {}) == "KeyboardInterrupt"


def test_an_exception_whose_str_raises_is_rendered_as_python_does():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    error = Mute()
    assert render(error, {}) == "".join(traceback.format_exception_only(error)).rstrip()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no groups")
def test_the_members_of_a_group_are_rendered(cell):
    members = [ValueError("member one"), KeyError("member two")]
    f = cell(
        """\
        def f():
            raise ExceptionGroup("several", members)
    """,
        members=members,
    )["f"]
    text = rendered(f)
    assert "member one" in text and "member two" in text


def test_endless_recursion_is_rendered_in_less_than_200_lines(cell):
    f = cell("""\
        def f():
            return f()
    """)["f"]
    text = rendered(f)
    assert "RecursionError: maximum recursion depth exceeded" in text.splitlines()[-1]
    assert len(text.splitlines()) < 200
