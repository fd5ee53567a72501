"""The options of ``%%icelaunch``: torchrun's, by torchrun's names, for every field of `LaunchConfig`; and a few of the magic's own."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from icelaunch_nb.config import RDZV_BACKENDS, START_METHODS, LaunchConfig, Std
from icelaunch_nb.devices import count_gpus
from icelaunch_nb.errors import ConfigError, nearest
from icelaunch_nb.launch import DEFAULTS as LAUNCH_DEFAULTS
from icelaunch_nb.launch import launch
from icelaunch_nb.notebook.magic import values as val

# Where torchrun's name for a field isn't the field's own; the field's own works, too.
_TORCHRUNS = {"run_id": "rdzv-id", "rdzv_configs": "rdzv-conf"}
_SHORT = {
    "nproc_per_node": "-n",
    "redirects": "-r",
    "tee": "-t",
}  # -n is ours, the others are torchrun's
_STREAMS = ("0", "1", "2", "3")


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: As the help shows it (``--max-restarts``).
        key: What it sets: a keyword of `launch`, or the magic's own.
        sentence: What it does.
        metavar: What its value stands for; empty for a flag.
        read: From its text to its value; raises ValueError, saying what is right.
        others: Its other spellings.
        values: What TAB offers after it.
        undo: What a flag is undone by, where it was a default.
    """

    name: str
    key: str
    sentence: str
    metavar: str = ""
    read: Callable[[str], Any] = str
    others: tuple[str, ...] = ()
    values: Callable[[], Sequence[str]] = tuple
    undo: str = ""


@dataclass(frozen=True)
class Options:
    """What an option line says.

    Attributes:
        launch: Keywords of `launch`.
        env: Variables that the ranks get beside the notebook's.
        out: The name that the results are bound to; empty: none.
        wait: Whether the cell waits for the results.
        panel: Whether the run's panel is shown.
        help: Whether the options are to be printed, and nothing else done.
    """

    launch: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    out: str = ""
    wait: bool = True
    panel: bool = True
    help: bool = False


def read_options(line: str, defaults: Mapping[str, Any] | None = None) -> Options:
    """Reads an option line.

    Args:
        line: What stands behind ``%%icelaunch``.
        defaults: What holds where the line says nothing, as `read_settings` gave it.

    Raises:
        ConfigError: An option is misspelt, or its value can't be; the message names it.
    """
    given = read_settings(line)
    settings = merge(defaults or {}, given)
    return Options(
        launch={key: value for key, value in settings.items() if key in OF_LAUNCH},
        env=settings.get("env", {}),
        out=settings.get("out", ""),
        wait=not settings.get("no_wait"),
        panel=not settings.get("no_panel"),
        help=bool(settings.get("help")),
    )


def read_settings(line: str) -> dict[str, Any]:
    """The values that an option line sets, by `Option.key`.

    Raises:
        ConfigError: As for `read_options`.
    """
    settings: dict[str, Any] = {}
    words = split(line)
    while words and not words[0].startswith("#"):  # a comment may follow, for nbval or a linter
        option, text = _next(words)
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
    """Both together; `given` wins, variables add up."""
    merged = {**defaults, **given}
    if "env" in merged:
        merged["env"] = {**defaults.get("env", {}), **given.get("env", {})}
    return merged


def spell(settings: Mapping[str, Any]) -> str:
    """The option line that sets these values, as one would type it: nothing in it is taken for the notebook's."""
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
    # Not $$: inside of quotes, IPython leaves a $ as it is.
    plain = [shlex.quote(word).replace("{", "{{").replace("}", "}}") for word in words]
    return " ".join(re.sub(r"\$(?=[\w.])", '{"$"}', word) for word in plain)


def needs_a_value(word: str) -> bool:
    """Whether a word is an option whose value must follow."""
    option = _BY_NAME.get(word) or _BY_NAME.get("--" + word[2:].replace("_", "-"))
    return option is not None and option.metavar != ""


def split(line: str) -> list[str]:
    """The words of a line, quoted as in a shell.

    Raises:
        ConfigError: A quotation mark is open, or a backslash stands last.
    """
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ConfigError("options", line, f"{str(error).lower()}; quote as in a shell") from None


def complete(before: str) -> list[str]:
    """What can stand at the end of an option line.

    Args:
        before: The line up to the cursor, without the magic's name.
    """
    *words, last = re.split(r"\s+", before.lstrip()) if before.strip() else [""]
    name, equals, _ = last.partition("=")
    if equals and name in _BY_NAME:
        return list(_BY_NAME[name].values())
    if words and words[-1] in _BY_NAME and _BY_NAME[words[-1]].metavar:
        return list(_BY_NAME[words[-1]].values())
    return [name for option in OPTIONS for name in (option.name, option.undo) if name]


def read_words(
    line: str, known: Mapping[str, Callable[[str], Any]], *, most: int
) -> tuple[list[str], dict[str, Any]]:
    """Reads the rest of a line magic: plain words, and ``--name value``.

    Args:
        line: What stands behind the magic's word.
        known: How the value of each option is read, by its name without dashes.
        most: How many plain words there may be.

    Raises:
        ConfigError: An option is unknown, its value can't be, or there are too many words.
    """
    words, plain = split(line), list[str]()
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
        elif word.startswith("-") or len(plain) >= most:
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
    """What can stand at the end of the rest of a line magic that `read_words` reads."""
    words = before.split(" ")
    last = (
        words[-1].partition("=")
        if "=" in words[-1]
        else (words[-2] if len(words) > 1 else "", "", "")
    )
    return ["stdout", "stderr"] if last[0] == "--stream" else [f"--{name}" for name in known]


def help_text() -> str:
    """All options, each with its sentence."""
    lines = [
        "%%icelaunch [OPTIONS]",
        "",
        "Runs the cell's body on every rank. The notebook's names that it uses are carried over; rank, local_rank, world_size,",
        "device and ctx are there, as globals, so the notebook's functions see them as well. The value of the last expression on each",
        "rank is the cell's result, {rank: value}; a semicolon behind it keeps it from being shown.",
        "{expr} and $name on the option line, and only there, stand for the notebook's values. Where two flags stand together, the second",
        "undoes the first, which may be a default.",
        "",
    ]
    for option in OPTIONS:
        short = [other for other in option.others if not other.startswith("--")]
        spellings = ", ".join(filter(None, [*short, option.name, option.undo]))
        lines.append(f"  {spellings}{' ' if option.metavar else ''}{option.metavar}")
        default = DEFAULTS.get(option.key) or ""
        lines += textwrap.wrap(
            f"{option.sentence}{f' Default: {default}.' if default else ''}",
            110,
            initial_indent=" " * 8,
            subsequent_indent=" " * 8,
        )
    lines += [
        "",
        "%icelaunch status                       the runs, and how they stand",
        "%icelaunch stop [RUN_ID]                stops the newest living run, or the one named",
        "%icelaunch logs [RUN_ID] [--rank N] [--stream stdout|stderr] [--attempt K]",
        "                                        prints what a rank of the newest run, or the one named, wrote",
        "%icelaunch attach [RUN_ID]              gives the newest living run, or the one named, also another notebook's",
        "%icelaunch defaults [OPTIONS]           sets what later cells use, and shows it; --reset forgets it",
    ]
    return "\n".join(lines)


def _next(words: list[str]) -> tuple[Option, str]:
    """Takes an option and its text off the front of `words`; of a flag, the text is its name."""
    word = words.pop(0)
    name, equals, text = word.partition("=")
    if not word.startswith("--") and len(word) > 2 and word[:2] in _BY_NAME:  # -n4, -n=4
        name, equals, text = word[:2], "=", word[2:].removeprefix("=")
    elif name.startswith("--"):
        name = "--" + name[2:].replace("_", "-")  # torchrun takes both
    option = _BY_NAME.get(name)
    if option is None:
        what = (
            "is no option of %%icelaunch"
            if word.startswith("-")
            else "is neither an option nor the value of one"
        )
        raise ConfigError(
            "option",
            word,
            f"{what}; {nearest(name, [known for known in _BY_NAME if known.startswith('--')])}",
        )
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


_KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "int": ("N", val.count),
    "float": ("SECONDS", val.seconds),
    "str": ("TEXT", str),
    "str | None": ("PATH", str),
    "dict[str, Any]": ("NAME=VALUE,…", val.literals),
    "dict[str, str]": ("NAME=VALUE,…", val.pairs),
    "Std | dict[int, Std]": ("0-3 or RANK:0-3,…", str),
}
_VALUES: dict[str, Callable[[], Sequence[str]]] = {
    "nproc_per_node": lambda: ["auto", "1", "2", "4", "8"],
    "rdzv_backend": lambda: RDZV_BACKENDS,
    "start_method": lambda: START_METHODS,
    "redirects": lambda: _STREAMS,
    "tee": lambda: _STREAMS,
}


def _field_sentences() -> dict[str, str]:
    """What the docstring of `LaunchConfig` says of each field."""
    text = inspect.getdoc(LaunchConfig) or ""  # none under -OO
    arguments = text.partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: re.sub(r"``?", "", " ".join(sentence.split())) for name, sentence in found}


def _options_of_fields() -> list[Option]:
    sentences = _field_sentences()
    found = []
    for one in fields(LaunchConfig):
        metavar, read = _KINDS[str(one.type)]
        sentence = sentences.get(one.name, "")
        if one.name == "nproc_per_node":
            metavar, read = "N|auto", val.ranks
            sentence += " auto: one per device named, per visible GPU, or one."
        own = "--" + one.name.replace("_", "-")
        name = "--" + _TORCHRUNS.get(one.name, own[2:])
        others = tuple(other for other in (_SHORT.get(one.name), own) if other and other != name)
        found.append(
            Option(name, one.name, sentence, metavar, read, others, _VALUES.get(one.name, tuple))
        )
    return found


OPTIONS: tuple[Option, ...] = (
    *sorted(
        _options_of_fields(), key=lambda option: option.key != "nproc_per_node"
    ),  # what is wanted most stands first
    Option(
        "--nnodes",
        "nnodes",
        "Number of nodes, or the range that it may lie in: min_nodes and max_nodes at once.",
        "N|MIN:MAX",
        val.nodes,
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
        val.identifier,
    ),
    Option(
        "--env",
        "env",
        "A variable that the ranks get beside the notebook's; may be given several times.",
        "NAME=VALUE",
        val.variable,
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
        val.patience,
    ),
    Option("--help", "help", "Prints this.", others=("-h",)),
)
LOGS: dict[str, Callable[[str], Any]] = {
    "rank": val.count,
    "stream": val.stream,
    "attempt": val.count,
}  # of `%icelaunch logs`
_BY_NAME = {
    name: option
    for option in OPTIONS
    for name in (option.name, *option.others, option.undo)
    if name
}
OF_LAUNCH = {
    *(one.name for one in fields(LaunchConfig)),
    "devices",
    "detach",
    "post_mortem",
    "hang_after",
}


def _defaults() -> dict[str, str | bool]:
    """What `launch` takes where nothing is said, as it would be typed; empty where that is nothing."""
    plain: dict[str, Any] = {one.name: one.default for one in fields(LaunchConfig)}
    plain |= {
        one.name: one.default for one in inspect.signature(launch).parameters.values()
    } | LAUNCH_DEFAULTS
    found: dict[str, str | bool] = {}
    for option in OPTIONS:
        if option.key in OF_LAUNCH:
            default = (
                int(plain[option.key]) if isinstance(plain[option.key], Std) else plain[option.key]
            )
            text = (
                f"{default:g}"
                if isinstance(default, float)
                else str(default)
                if isinstance(default, int | str)
                else ""
            )
            found[option.key] = default if isinstance(default, bool) else text
    return found


DEFAULTS = _defaults()
