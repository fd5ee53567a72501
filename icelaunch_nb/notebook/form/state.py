"""The state of a form: what its fields hold, what is wrong with it, and the launch that it stands for. Knows no widget."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import icelaunch_nb as ice
from icelaunch_nb.errors import ConfigError, PackingError
from icelaunch_nb.launch import check_launch
from icelaunch_nb.notebook.form.call import Call, Given, read_call
from icelaunch_nb.notebook.form.expressions import evaluate
from icelaunch_nb.notebook.form.functions import called, importable, launchable
from icelaunch_nb.notebook.form.parameters import Parameter, Unwritten, behind, parameters
from icelaunch_nb.notebook.magic import options as opt

_MAIN = ("nproc_per_node", "devices", "max_restarts", "tee")
_LABELS = {"nproc_per_node": "ranks", "max_restarts": "restarts", "tee": "logs to tee"}
_NUMBERS = {
    "nproc_per_node",
    "max_restarts",
    "min_nodes",
    "max_nodes",
    "rdzv_timeout",
    "monitor_interval",
}
_KINDS = {
    "devices": "devices",
    "tee": "streams",
    "redirects": "streams",
    "rdzv_backend": "select",
    "start_method": "select",
}
_HINTS = {
    "nproc_per_node": "a number, or auto",
    "devices": "auto, cpu, cuda:0-2,7",
    "tee": "0 to 3, or 0:1,1:3",
    "redirects": "0 to 3, or 0:1,1:3",
    "run_id": "empty: a generated one",
    "log_dir": "empty: in the temporary directory",
    "rdzv_endpoint": "host:port",
    "rdzv_timeout": "-1: 900",
}
_NAMELESS = "# The notebook has no name for this function; with one, it can be launched by code."
_UNWRITTEN = "# There is no code for this launch: {}."


class Form:
    """A form's fields, as `set` changes them and `view` shows them.

    Fields have keys: ``function``, ``argument.NAME`` and ``setting.NAME``. What a field holds is text, or a bool for a checkbox.

    Args:
        namespace: The notebook's names.
        fn: The function to launch; None: one of the notebook's, by choice.

    Raises:
        ConfigError: `fn` is no function.
    """

    def __init__(self, namespace: dict[str, Any], fn: Any = None) -> None:
        if fn is not None and not callable(fn):
            raise ConfigError(
                "fn", fn, "must be a function of the notebook, or None; ice.launch takes programs"
            )
        self._namespace, self._given = namespace, fn
        self._given_name = called(fn, namespace) if fn is not None else ""
        self._chosen = self._given_name or getattr(fn, "__name__", "")
        self._instead = ""  # shown while the chosen one isn't there: its cell may not have run yet
        self._arguments: dict[str, dict[str, Given]] = {}
        self._settings: dict[str, Given] = {}
        self._late: dict[str, str] = {}  # what only a launch found out, until the field is changed

    @property
    def name(self) -> str:
        """What tells the forms of a notebook apart: the function that was given, else nothing."""
        return self._chosen if self._given is not None else ""

    # What it holds.

    def set(self, key: str, given: Given) -> None:
        """Changes a field; passes over a key that isn't one."""
        kind, _, name = key.partition(".")
        self._late.pop(key, None)
        if key == "function" and self._given is None:
            self._chosen, self._late = str(given), {}
        elif kind == "argument":
            self._chosen = self._shown()
            self._arguments.setdefault(self._chosen, {})[name] = given
        elif kind == "setting" and name in _BY_KEY:
            self._settings[name] = given

    def reset(self) -> None:
        """Puts every field back to its default; the function stays chosen."""
        self._arguments.pop(self._shown(), None)
        self._settings, self._late = {}, {}

    def kept(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {
            "function": self._chosen or self._shown(),
            "arguments": self._arguments,
            "settings": self._settings,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Takes what was kept of an earlier form, as far as it fits this one."""
        chosen, arguments, settings = (
            kept.get("function"),
            kept.get("arguments"),
            kept.get("settings"),
        )
        if self._given is None and isinstance(chosen, str):
            self._chosen = chosen
        for function, given in arguments.items() if isinstance(arguments, dict) else ():
            if isinstance(given, dict):
                self._arguments[str(function)] = {
                    str(name): value
                    for name, value in given.items()
                    if isinstance(value, str | bool)
                }
        for name, value in settings.items() if isinstance(settings, dict) else ():
            if name in _BY_KEY and isinstance(value, str | bool):
                self._settings[name] = value

    def functions(self) -> list[str]:
        """The functions to choose from."""
        if self._given is not None:
            return [self._chosen]
        return list(launchable(self._namespace))

    def function(self) -> Any:
        """The chosen function, as the notebook defines it now; None: there is none."""
        if self._given is not None:
            newest = self._namespace.get(self._given_name, self._given)
            return newest if callable(newest) else self._given
        return launchable(self._namespace).get(self._shown())

    def _shown(self) -> str:
        """The name of the function that the fields are of."""
        offered = self.functions()
        if self._chosen in offered or not offered:
            return self._chosen
        if self._instead not in offered:
            self._instead = offered[-1]  # the newest is what one has just written
        return self._instead

    # What it stands for.

    def read(self, *, now: bool = False) -> Reading:
        """Reads all fields; never raises for what stands in one of them.

        Args:
            now: Whether to evaluate also what may do something when it is evaluated: a launch does.
        """
        fn = self.function()
        reading = Reading(fn, called(fn, self._namespace) or self._shown())
        if fn is None:
            reading.problems["function"] = "a function that a cell defines appears here"
            reading.missing.add("function")
        else:
            self._read_arguments(reading, now=now)
        self._read_settings(reading)
        self._check(reading)
        reading.problems = {**reading.problems, **self._late}
        return reading

    def _read_arguments(self, reading: Reading, *, now: bool) -> None:
        try:
            reading.parameters = parameters(reading.fn)
        except ValueError as error:
            reading.problems["function"] = f"can't be launched from a form: {error}"
            return
        held = self._arguments.get(self._shown(), {})
        reading.held = {
            one.name: held[one.name] for one in reading.parameters if _fits(one, held.get(one.name))
        }
        reading.call = read_call(
            reading.parameters,
            reading.held,
            lambda text: evaluate(text, self._namespace, now=now),
            self._names_of(reading),
        )
        reading.problems |= {
            f"argument.{name}": text for name, text in reading.call.problems.items()
        }
        reading.missing |= {f"argument.{name}" for name in reading.call.missing}

    def _names_of(self, reading: Reading) -> Callable[[type], str]:
        def name_of(cls: type) -> str:
            name = called(cls, self._namespace)
            if not name:
                statement, name = importable(cls, self._namespace)
                if not statement:
                    raise Unwritten(f"the notebook has no name for {cls.__qualname__}")
                reading.imports[statement] = None
            return name

        return name_of

    def _read_settings(self, reading: Reading) -> None:
        for name, option in _BY_KEY.items():
            given = self._settings.get(name, opt.DEFAULTS[name])
            if given in (opt.DEFAULTS[name], ""):
                continue
            try:
                reading.keywords[name] = (
                    bool(given) if isinstance(opt.DEFAULTS[name], bool) else option.read(str(given))
                )
            except ValueError as error:
                reading.problems[f"setting.{name}"] = str(error)

    def _check(self, reading: Reading) -> None:
        """What `launch` says of it, field by field: without the ones that are wrong, until it is content."""
        fine = dict(reading.keywords)
        while True:
            try:
                reading.devices = check_launch(reading.fn or _nothing, **fine)
                return
            except ConfigError as error:
                name = error.field.partition("[")[0]
                key = "function" if name == "entrypoint" else f"setting.{name}"
                reading.problems.setdefault(key, error.remedy)
                if fine.pop(name, None) is None:
                    return

    def launched(self) -> tuple[Any, list[Any], dict[str, Any], dict[str, Any]]:
        """Function, args, kwargs and keywords for `launch`; evaluates every expression, unless something is wrong anyway.

        Raises:
            ConfigError: A field can't be; names the first one.
        """
        self._late = {}  # it may be right by now
        reading = self.read()
        if not reading.problems:
            reading = self.read(now=True)
            self._late = {
                key: text for key, text in reading.problems.items() if key not in reading.missing
            }
        for key, text in reading.problems.items():
            name = key.partition(".")[2] or key
            kept = (
                self._arguments.get(self._shown(), {})
                if key.startswith("argument.")
                else self._settings
            )
            raise ConfigError(name, kept.get(name, ""), text)
        return reading.fn, reading.call.args, reading.call.kwargs, reading.keywords

    def blame(self, error: Exception) -> bool:
        """Puts what a launch found beside the field that it is about; whether there is one."""
        reading = self.read()
        name = ""
        if isinstance(error, PackingError):
            names = [one.name for one in reading.parameters]
            name = next((one for one in names if error.path.startswith(f"kwargs[{one!r}]")), "")
            key, text = f"argument.{name}", f"can't be carried to the ranks: {error}"
        elif isinstance(error, ConfigError):
            name = error.field.partition("[")[0]
            key, text = f"setting.{name}", error.remedy
            name = name if name in _BY_KEY else ""
        if name:
            self._late[key] = text
        return bool(name)

    # How it looks.

    def view(self) -> dict[str, Any]:
        """All that a page shows of it, in plain data."""
        reading = self.read()
        fn = reading.fn
        return {
            "functions": self.functions(),
            "function": self._shown(),
            "fixed": self._given is not None,
            "doc": (inspect.getdoc(behind(fn)) or "").partition("\n")[0] if fn is not None else "",
            "problem": reading.problems.get("function", ""),
            "arguments": [_of_parameter(one, reading) for one in reading.parameters],
            "main": [self._of_setting(name, reading) for name in _MAIN],
            "advanced": [self._of_setting(name, reading) for name in _BY_KEY if name not in _MAIN],
            "says": reading.says(),
            "python": self.python(reading),
            "cell": self.cell(reading),
            "wrong": list(reading.problems),
            "missing": list(reading.missing),
        }

    def _of_setting(self, name: str, reading: Reading) -> dict[str, Any]:
        option, default, key = _BY_KEY[name], opt.DEFAULTS[name], f"setting.{name}"
        kind = _KINDS.get(name) or (
            "checkbox" if isinstance(default, bool) else "number" if name in _NUMBERS else "text"
        )
        return {
            "key": key,
            "label": _LABELS.get(name, name),
            "kind": kind,
            "value": self._settings.get(name, default),
            "default": default,
            "hint": _HINTS.get(name, option.metavar),
            "choices": list(option.values()) if kind in ("select", "devices") else [],
            "sentence": option.sentence,
            "error": reading.problems.get(key, ""),
            "missing": False,
            "waits": False,
        }

    def python(self, reading: Reading | None = None) -> str:
        """The launch as Python."""
        reading = reading or self.read()
        if reading.fn is not None and not called(reading.fn, self._namespace):
            return _NAMELESS
        if reading.call.unwritten:
            return _UNWRITTEN.format(reading.call.unwritten)
        module = next(
            (
                name
                for name, value in list(self._namespace.items())
                if value is ice and not name.startswith("_")
            ),
            "",
        )
        lines = [*([] if module else ["import icelaunch_nb as ice"]), *reading.imports]
        lines += [""] if lines else []
        code = reading.call.launched(
            f"run = {module or 'ice'}.launch", reading.name, reading.keywords
        )
        return "\n".join([*lines, code, "run.result()"])

    def cell(self, reading: Reading | None = None) -> str:
        """The launch as a ``%%icelaunch`` cell."""
        reading = reading or self.read()
        if reading.fn is not None and not called(reading.fn, self._namespace):
            return _NAMELESS
        if reading.call.unwritten:
            return _UNWRITTEN.format(reading.call.unwritten)
        line = opt.spell(reading.keywords)
        return "\n".join(
            [
                f"%%icelaunch{' ' * bool(line)}{line}",
                *reading.imports,
                reading.call.written(reading.name),
            ]
        )


class Reading:
    """What the fields of a form mean.

    Attributes:
        fn: The function; None: there is none.
        name: What the notebook calls it.
        parameters: Its parameters.
        held: What their fields hold, where that isn't the default.
        call: Its arguments.
        imports: Statements that the code needs beside the notebook's own names, in order.
        keywords: What `launch` gets beside them, where that isn't the default.
        devices: The device of each rank; empty where that can't be told.
        problems: What is wrong, by the field's key.
        missing: Those of `problems` that only need a value.
    """

    def __init__(self, fn: Any, name: str) -> None:
        self.fn, self.name = fn, name
        self.parameters: list[Parameter] = []
        self.held: dict[str, Given] = {}
        self.call = Call()
        self.imports: dict[str, None] = {}
        self.keywords: dict[str, Any] = {}
        self.devices: list[str] = []
        self.problems: dict[str, str] = {}
        self.missing: set[str] = set()

    def says(self) -> str:
        """In a few words what would be launched where."""
        if not self.devices:
            return ""
        count = len(self.devices)
        where = (
            "cpu"
            if self.devices[0] == "cpu"
            else ", ".join(self.devices)
            if count <= 4
            else f"{self.devices[0]} … {self.devices[-1]}"
        )
        nodes = self.keywords.get("max_nodes", 1)
        each = f" on each of {nodes} nodes" if nodes > 1 else ""
        return f"{count} rank{'s' * (count != 1)}{each}, {where}"


def _nothing() -> None:
    """Stands for a function where there is none, so that the other fields can be checked."""


def _fits(one: Parameter, held: Given | None) -> bool:
    """Whether what is kept of a field can stand in it: the function may have been written anew meanwhile."""
    return (
        held is not None
        and isinstance(held, bool) == (one.kind == "checkbox")
        and (one.values is None or str(held) in ("", *one.values))
    )


def _of_parameter(one: Parameter, reading: Reading) -> dict[str, Any]:
    key = f"argument.{one.name}"
    star = {"rest": "*", "names": "**"}.get(one.place, "")
    return {
        "key": key,
        "label": f"{star}{one.name}",
        "kind": one.kind,
        "value": reading.held.get(one.name, one.default),
        "default": one.default,
        "hint": one.hint,
        "choices": list(one.values or ()),
        "sentence": "",
        "error": reading.problems.get(key, ""),
        "missing": key in reading.missing,
        "waits": one.name in reading.call.waiting,
    }


_BY_KEY = {option.key: option for option in opt.OPTIONS if option.key in opt.OF_LAUNCH}
