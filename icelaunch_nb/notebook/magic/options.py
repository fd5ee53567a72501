"""The options of ``%%icelaunch``.

Every field of `LaunchConfig` has an option with torchrun's name. The magic adds a few options.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from icelaunch_nb.client.devices import count_gpus
from icelaunch_nb.client.launch import launch
from icelaunch_nb.client.launch_request import DEFAULTS as LAUNCH_DEFAULTS
from icelaunch_nb.config import RDZV_BACKENDS, START_METHODS, LaunchConfig, Std
from icelaunch_nb.errors import ConfigError
from icelaunch_nb.notebook.magic import option_types as types
from icelaunch_nb.system.suggestions import nearest

# The fields that have another name in torchrun. Their options accept the field's own name too.
_TORCHRUN_NAMES = {"run_id": "rdzv-id", "rdzv_configs": "rdzv-conf"}
# torchrun has all of these but -n.
_SHORT_NAMES = {"nproc_per_node": "-n", "redirects": "-r", "tee": "-t"}
_STREAMS = ("0", "1", "2", "3")
_HELP_WIDTH = 110


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: The name that the help shows: ``--max-restarts``.
        key: The setting's name: a keyword of `launch`, or a setting of the magic.
        description: The sentence that the help shows.
        metavar: The value's name in the help; empty for a flag.
        read: Parses the value from its text. Raises a ValueError that says what would be right.
        others: Other spellings of the name.
        values: Returns the values that TAB offers.
        undo: The flag that undoes this one, which may be a default; empty where there is none.
    """

    name: str
    key: str
    description: str
    metavar: str = ""
    read: Callable[[str], Any] = str
    others: tuple[str, ...] = ()
    values: Callable[[], Sequence[str]] = tuple
    undo: str = ""


@dataclass(frozen=True)
class Options:
    """The parsed options of a line.

    Attributes:
        launch: Keywords of `launch`.
        env: Environment variables that the ranks get beside the notebook's.
        out: The name that the results are bound to; empty for none.
        wait: Whether the cell waits for the results.
        panel: Whether the run's panel is shown.
        help: Whether to print the options and do nothing else.
    """

    launch: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    out: str = ""
    wait: bool = True
    panel: bool = True
    help: bool = False


def parse_options(line: str, defaults: Mapping[str, Any] | None = None) -> Options:
    """Parses an option line.

    Args:
        line: What follows ``%%icelaunch``.
        defaults: Settings for what the line doesn't set, as `parse_settings` returns them.

    Returns:
        The options.

    Raises:
        ConfigError: An option is unknown, or its value is wrong. The message names the option.
    """
    given = parse_settings(line)
    settings = merge(defaults or {}, given)
    return Options(
        launch={key: value for key, value in settings.items() if key in LAUNCH_KEYS},
        env=settings.get("env", {}),
        out=settings.get("out", ""),
        wait=not settings.get("no_wait"),
        panel=not settings.get("no_panel"),
        help=bool(settings.get("help")),
    )


def parse_settings(line: str) -> dict[str, Any]:
    """Parses an option line to the values that it sets.

    Returns:
        The values by `Option.key`.

    Raises:
        ConfigError: An option is unknown, or its value is wrong. The message names the option.
    """
    settings: dict[str, Any] = {}
    words = split_words(line)
    # A comment may end the line: nbval and linters read comments.
    while words and not words[0].startswith("#"):
        option, text = _pop_option(words)
        if not option.metavar:
            settings[option.key] = text != option.undo
            continue
        try:
            value = option.read(text)
        except ValueError as error:
            raise ConfigError(option.name, text, str(error)) from None
        for key, one in value.items() if option.key == "nnodes" else [(option.key, value)]:
            settings[key] = {**settings.get(key, {}), **one} if key == "env" else one
    return settings


def merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two settings: `given` overrides `defaults`, and environment variables add up."""
    merged = {**defaults, **given}
    if "env" in merged:
        merged["env"] = {**defaults.get("env", {}), **given.get("env", {})}
    return merged


def format_options(settings: Mapping[str, Any]) -> str:
    """The option line that sets these values.

    It is escaped: interpolation leaves the values as they are.
    """
    words: list[str] = []
    for key, value in settings.items():
        name, undo = next((option.name, option.undo) for option in OPTIONS if option.key == key)
        if isinstance(value, bool):
            words.append(name if value else undo)
        elif key == "env":
            for variable, text in value.items():
                words += [name, f"{variable}={text}"]
        elif isinstance(value, Mapping):
            words += [name, ",".join(f"{part}={text}" for part, text in value.items())]
        else:
            words += [f"{name}={value}"] if str(value).startswith("--") else [name, str(value)]
    # $ isn't escaped as $$, because IPython leaves $$ as it is inside quotes.
    plain = [shlex.quote(word).replace("{", "{{").replace("}", "}}") for word in words]
    return " ".join(re.sub(r"\$(?=[\w.])", '{"$"}', word) for word in plain)


def needs_value(word: str) -> bool:
    """Whether a word is an option and the next word its value."""
    option = _BY_NAME.get(word) or _BY_NAME.get("--" + word[2:].replace("_", "-"))
    return option is not None and option.metavar != ""


def split_words(line: str) -> list[str]:
    """Splits a line into words, as a shell does.

    Raises:
        ConfigError: A quotation mark is open, or the line ends with a backslash.
    """
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ConfigError("options", line, f"{str(error).lower()}; quote as in a shell") from None


def complete(before: str) -> list[str]:
    """Completes an option line.

    Args:
        before: The line up to the cursor, without the magic's name.

    Returns:
        All options, or all values of the option before the cursor.
    """
    *words, last = re.split(r"\s+", before.lstrip()) if before.strip() else [""]
    name, equals, _ = last.partition("=")
    if equals and name in _BY_NAME:
        return list(_BY_NAME[name].values())
    if words and words[-1] in _BY_NAME and _BY_NAME[words[-1]].metavar:
        return list(_BY_NAME[words[-1]].values())
    return [name for option in OPTIONS for name in (option.name, option.undo) if name]


def parse_words(
    line: str, known: Mapping[str, Callable[[str], Any]], *, max_words: int
) -> tuple[list[str], dict[str, Any]]:
    """Parses the rest of a line magic: plain words, and ``--name value``.

    Args:
        line: What follows the magic's command.
        known: The functions that parse the options' values, by the options' names without dashes.
        max_words: The largest number of plain words.

    Returns:
        The plain words, and the options' values by name.

    Raises:
        ConfigError: An option is unknown, its value is wrong, or there are too many words.
    """
    words, plain = split_words(line), list[str]()
    given: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        name, equals, text = word.partition("=")
        key = name.removeprefix("--")
        if name.startswith("--") and key in known:
            if not equals and not words:
                raise ConfigError("option", word, "needs a value")
            text = text if equals else words.pop(0)
            try:
                given[key] = known[key](text)
            except ValueError as error:
                raise ConfigError(name, text, str(error)) from None
        elif word.startswith("-") or len(plain) >= max_words:
            spelt = [f"--{one}" for one in known]
            raise ConfigError(
                "option",
                word,
                f"is not known here; {nearest(word, spelt)}" if spelt else "is not known here",
            )
        else:
            plain.append(word)
    return plain, given


def complete_words(before: str, known: Mapping[str, Callable[[str], Any]]) -> list[str]:
    """Completes the rest of a line magic that `parse_words` parses.

    Args:
        before: What follows the magic's command, up to the cursor.
        known: As for `parse_words`.

    Returns:
        All options, or the streams after ``--stream``.
    """
    words = before.split(" ")
    if "=" in words[-1]:
        option = words[-1].partition("=")[0]
    else:
        option = words[-2] if len(words) > 1 else ""
    return ["stdout", "stderr"] if option == "--stream" else [f"--{name}" for name in known]


def help_text() -> str:
    """The help of the magics: all options, each with its description, and the line commands."""
    lines = [
        "%%icelaunch [OPTIONS]",
        "",
        *textwrap.wrap(
            "Runs the cell's body on every rank. The notebook's names that it uses are carried "
            "over; rank, local_rank, world_size, device and ctx are there, as globals, so the "
            "notebook's functions see them as well. The value of the last expression on each rank "
            "is the cell's result, {rank: value}; a semicolon behind it keeps it from being shown. "
            "{expr} and $name on the option line, and only there, stand for the notebook's values. "
            "Where two flags stand together, the second undoes the first, which may be a default.",
            _HELP_WIDTH,
        ),
        "",
    ]
    for option in OPTIONS:
        short = [other for other in option.others if not other.startswith("--")]
        spellings = ", ".join(filter(None, [*short, option.name, option.undo]))
        lines.append(f"  {spellings}{' ' if option.metavar else ''}{option.metavar}")
        default = DEFAULTS.get(option.key) or ""
        lines += textwrap.wrap(
            f"{option.description}{f' Default: {default}.' if default else ''}",
            _HELP_WIDTH,
            initial_indent=" " * 8,
            subsequent_indent=" " * 8,
        )
    lines += [
        "",
        "%icelaunch status                       the runs, and how they stand",
        "%icelaunch stop [RUN_ID]                stops the newest living run, or the one named",
        "%icelaunch logs [RUN_ID] [--rank N] [--stream stdout|stderr] [--attempt K]",
        "                                        prints what a rank of the newest run, or the one "
        "named, wrote",
        "%icelaunch attach [RUN_ID]              gives the newest living run, or the one named, "
        "also another notebook's",
        "%icelaunch defaults [OPTIONS]           sets what later cells use, and shows it; "
        "--reset forgets it",
        "%icelaunch help                         prints this",
    ]
    return "\n".join(lines)


def _pop_option(words: list[str]) -> tuple[Option, str]:
    """Removes an option and its text from the front of `words`. A flag's text is its name."""
    word = words.pop(0)
    name, equals, text = word.partition("=")
    if not word.startswith("--") and len(word) > 2 and word[:2] in _BY_NAME:
        # -n4 or -n=4
        name, equals, text = word[:2], "=", word[2:].removeprefix("=")
    elif name.startswith("--"):
        # torchrun accepts both spellings.
        name = "--" + name[2:].replace("_", "-")
    option = _BY_NAME.get(name)
    if option is None:
        if word.startswith("-"):
            problem = "is no option of %%icelaunch"
        else:
            problem = "is neither an option nor the value of one"
        long_names = [known for known in _BY_NAME if known.startswith("--")]
        raise ConfigError("option", word, f"{problem}; {nearest(name, long_names)}")
    if not option.metavar:
        if equals:
            raise ConfigError(name, text, "is a flag: it takes no value")
        return option, name
    if equals:
        return option, text
    if not words or words[0].startswith("--"):
        raise ConfigError("option", word, f"needs a value: {option.name} {option.metavar}")
    return option, words.pop(0)


def _device_names() -> Sequence[str]:
    gpus = count_gpus(os.environ)
    return [
        "auto",
        "cpu",
        "cuda",
        *(f"cuda:{index}" for index in range(gpus)),
        *([f"cuda:0-{gpus - 1}"] if gpus > 1 else []),
    ]


_FIELD_TYPES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "int": ("N", types.integer),
    "float": ("SECONDS", types.number),
    "str": ("TEXT", str),
    "str | None": ("PATH", str),
    "dict[str, Any]": ("NAME=VALUE,…", types.literals),
    "dict[str, str]": ("NAME=VALUE,…", types.pairs),
    "Std | dict[int, Std]": ("0-3 or RANK:0-3,…", str),
}
_FIELD_VALUES: dict[str, Callable[[], Sequence[str]]] = {
    "nproc_per_node": lambda: ["auto", "1", "2", "4", "8"],
    "rdzv_backend": lambda: RDZV_BACKENDS,
    "start_method": lambda: START_METHODS,
    "redirects": lambda: _STREAMS,
    "tee": lambda: _STREAMS,
}


def _field_descriptions() -> dict[str, str]:
    """Each field's description in the docstring of `LaunchConfig`."""
    # Python removes docstrings under -OO.
    text = inspect.getdoc(LaunchConfig) or ""
    arguments = text.partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: re.sub(r"``?", "", " ".join(description.split())) for name, description in found}


def _field_options() -> list[Option]:
    descriptions = _field_descriptions()
    found = []
    for one in fields(LaunchConfig):
        metavar, read = _FIELD_TYPES[str(one.type)]
        description = descriptions.get(one.name, "")
        if one.name == "nproc_per_node":
            metavar, read = "N|auto", types.nproc
            description += " auto: one per device named, per visible GPU, or one."
        own = "--" + one.name.replace("_", "-")
        name = "--" + _TORCHRUN_NAMES.get(one.name, own[2:])
        others = tuple(
            other for other in (_SHORT_NAMES.get(one.name), own) if other and other != name
        )
        found.append(
            Option(
                name,
                one.name,
                description,
                metavar,
                read,
                others,
                _FIELD_VALUES.get(one.name, tuple),
            )
        )
    return found


OPTIONS: tuple[Option, ...] = (
    # The most used option comes first.
    *sorted(_field_options(), key=lambda option: option.key != "nproc_per_node"),
    Option(
        "--nnodes",
        "nnodes",
        "Number of nodes, or the range that it may lie in: min_nodes and max_nodes at once.",
        "N|MIN:MAX",
        types.nodes,
    ),
    Option(
        "--devices",
        "devices",
        "auto (a GPU per rank; the CPU where there are no GPUs), cpu, cuda, cuda:0-2,7 or cpu:0-3.",
        "DEVICES",
        values=_device_names,
    ),
    Option(
        "--out",
        "out",
        "The notebook's name for the results, {rank: value}; with --no-wait, for the Run.",
        "NAME",
        types.identifier,
    ),
    Option(
        "--env",
        "env",
        "A variable that the ranks get beside the notebook's; may be given several times.",
        "NAME=VALUE",
        types.variable,
    ),
    Option(
        "--no-wait", "no_wait", "Returns a Run at once, and the notebook goes on.", undo="--wait"
    ),
    Option(
        "--no-panel",
        "no_panel",
        "Shows no panel: what the ranks print is printed below the cell, each line with its rank.",
        undo="--panel",
    ),
    Option("--detach", "detach", "The run outlives this kernel.", undo="--no-detach"),
    Option(
        "--post-mortem",
        "post_mortem",
        "A rank that raises waits there in the debugger, before it is torn down.",
        undo="--no-post-mortem",
    ),
    Option(
        "--hang-after",
        "hang_after",
        "Seconds of silence after which a rank is marked with where it stands; none: never.",
        "SECONDS|none",
        types.number_or_none,
    ),
    Option(
        "--saved-output",
        "saved_output",
        "Bytes of the ranks' output, at most, that a notebook executed without a browser keeps; "
        "none: no limit.",
        "BYTES|none",
        types.integer_or_none,
    ),
    Option("--help", "help", "Prints this.", others=("-h",)),
)
# The options of `%icelaunch logs`, by name without dashes.
LOGS_OPTIONS: dict[str, Callable[[str], Any]] = {
    "rank": types.integer,
    "stream": types.stream,
    "attempt": types.integer,
}
_BY_NAME = {
    name: option
    for option in OPTIONS
    for name in (option.name, *option.others, option.undo)
    if name
}
# The settings that the form offers.
FORM_KEYS = {
    *(one.name for one in fields(LaunchConfig)),
    "devices",
    "detach",
    "post_mortem",
    "hang_after",
}
# The settings that are keywords of `launch`. The form lacks `saved_output`, which has no effect
# where a browser shows the form.
LAUNCH_KEYS = {*FORM_KEYS, "saved_output"}


def _defaults() -> dict[str, str | bool]:
    """The defaults of `launch`, by key, as one would type them; empty where nothing is typed."""
    plain: dict[str, Any] = {one.name: one.default for one in fields(LaunchConfig)}
    parameters = inspect.signature(launch).parameters
    plain |= {one.name: one.default for one in parameters.values()} | LAUNCH_DEFAULTS
    found: dict[str, str | bool] = {}
    for option in OPTIONS:
        if option.key in LAUNCH_KEYS:
            default = plain[option.key]
            if isinstance(default, bool):
                found[option.key] = default
            elif isinstance(default, Std):
                found[option.key] = str(int(default))
            elif isinstance(default, float):
                found[option.key] = f"{default:g}"
            else:
                found[option.key] = str(default) if isinstance(default, int | str) else ""
    return found


DEFAULTS = _defaults()
