"""Formats an exception for the user: their frames, with source lines and cell names."""

from __future__ import annotations

import linecache
import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping
from types import FrameType

_ENDS = 10  # frames shown at either end of a long traceback
_CONTEXT = 2  # lines shown before and after the failing one, as IPython does


def render(error: BaseException, cell_names: Mapping[str, str]) -> str:
    """Formats the traceback, with the causes first and the exception last.

    It leaves out the frames of torch and of this package. Where no other frames are left (an error
    while torch itself starts, for example), it shows all of torch's.

    Args:
        error: The exception, its traceback attached.
        cell_names: Name to show (``Cell In[3]``) by code filename.

    Returns:
        The text, without a newline at its end.
    """
    parts, seen = [], set()
    current: BaseException | None = error
    joint = ""
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        parts.append(_format_one(current, cell_names) + joint)
        if current.__cause__ is not None:
            joint = "\n\nThe above exception was the direct cause of the following exception:\n"
            current = current.__cause__
        elif current.__context__ is not None and not current.__suppress_context__:
            joint = "\n\nDuring handling of the above exception, another exception occurred:\n"
            current = current.__context__
        else:
            current = None
    return "\n".join(reversed(parts))


def _format_one(error: BaseException, cell_names: Mapping[str, str]) -> str:
    """Formats an exception without its causes."""
    frames = list(traceback.walk_tb(error.__traceback__))
    kept = [pair for pair in frames if not _is_ours(pair[0].f_code.co_filename)]
    users = [pair for pair in kept if not _is_torchs(pair[0].f_code.co_filename)] or kept
    lines = []
    for frame, lineno in users[:_ENDS]:
        lines += _format_frame(frame, lineno, cell_names)
    if len(users) > 2 * _ENDS:  # endless recursion
        lines += [f"… {len(users) - 2 * _ENDS} frames more …", ""]
    for frame, lineno in users[max(_ENDS, len(users) - _ENDS) :]:
        lines += _format_frame(frame, lineno, cell_names)
    text = "".join(traceback.format_exception_only(type(error), error)).rstrip()
    if not isinstance(error, SyntaxError):
        # The class's bare name: the `__main__.` of `__main__.MyError` means nothing in a notebook.
        text = text.removeprefix("__main__.")
    members = getattr(error, "exceptions", ())  # of an exception group
    for number, member in enumerate(members if isinstance(members, tuple) else (), 1):
        text += f"\n\n{number}. " + render(member, cell_names).replace("\n", "\n   ")
    return "\n".join([*lines, text])


def _format_frame(frame: FrameType, lineno: int, cell_names: Mapping[str, str]) -> list[str]:
    filename, name = frame.f_code.co_filename, frame.f_code.co_name
    where = (
        f"{cell_names[filename]}, line {lineno}"
        if filename in cell_names
        else f"File {filename}:{lineno}"
    )
    return [
        where + (f", in {name}" if name != "<module>" else ""),
        *_source_lines(filename, lineno, frame.f_globals),
        "",
    ]


def _source_lines(filename: str, lineno: int, module_globals: dict) -> list[str]:
    lines = linecache.getlines(filename, module_globals)
    if not 1 <= lineno <= len(lines):
        return []
    first, last = max(1, lineno - _CONTEXT), min(len(lines), lineno + _CONTEXT)
    while last > lineno and not lines[last - 1].strip():
        last -= 1
    shown = range(first, last + 1)
    width = max(len(str(shown[-1])), 1)
    return [
        f"{'----> ' if n == lineno else '      '}{n:>{width}} {lines[n - 1].rstrip()}".rstrip()
        for n in shown
    ]


def _is_ours(filename: str) -> bool:
    return filename.startswith((_OURS, _MULTIPROCESSING))


def _is_torchs(filename: str) -> bool:
    torch = sys.modules.get("torch")
    folder = os.path.dirname(getattr(torch, "__file__", None) or "\0")
    return filename.startswith((folder + os.sep, "<frozen "))


_MULTIPROCESSING = os.path.dirname(multiprocessing.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
