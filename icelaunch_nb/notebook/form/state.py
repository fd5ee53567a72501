"""The state of a form: the content of its fields, their errors, and the launch that they describe.

This module uses no widgets.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from icelaunch_nb.client.launch import check_launch
from icelaunch_nb.errors import ConfigError, PackingError
from icelaunch_nb.notebook.form.call import Call, FieldValue, read_call
from icelaunch_nb.notebook.form.expressions import evaluate
from icelaunch_nb.notebook.form.functions import import_statement, launchable, name_in_notebook
from icelaunch_nb.notebook.form.parameters import NoSource, Parameter, parameters, unwrap
from icelaunch_nb.notebook.magic import options as opt

_MAIN_SETTINGS = ("nproc_per_node", "devices", "max_restarts", "tee")
_LABELS = {"nproc_per_node": "ranks", "max_restarts": "restarts", "tee": "logs to tee"}
_NUMBER_SETTINGS = {
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
_NO_SOURCE = "# There is no code for this launch: {}."


class Form:
    """A form's fields. `set` changes them, and `to_json` describes them for a page.

    The fields have keys: ``function``, ``argument.NAME`` and ``setting.NAME``. A field contains a
    text, or a bool for a checkbox.

    Args:
        namespace: The notebook's names.
        fn: The function to launch. None lets the user choose one of the notebook's functions.

    Raises:
        ConfigError: `fn` is no function.
    """

    def __init__(self, namespace: dict[str, Any], fn: Any = None) -> None:
        if fn is not None and not callable(fn):
            raise ConfigError(
                "fn", fn, "must be a function of the notebook, or None; ice.launch takes programs"
            )
        self._namespace, self._given = namespace, fn
        self._given_name = name_in_notebook(fn, namespace) if fn is not None else ""
        self._chosen = self._given_name or getattr(fn, "__name__", "")
        # The function that is shown while the chosen one isn't defined: its cell may not have run.
        self._fallback = ""
        self._arguments: dict[str, dict[str, FieldValue]] = {}
        self._settings: dict[str, FieldValue] = {}
        # The errors of the last launch by field. Changing a field removes its error.
        self._launch_errors: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The form's name in the settings store: its fixed function; empty where it has none."""
        return self._chosen if self._given is not None else ""

    # The fields' content.

    def set(self, key: str, given: FieldValue) -> None:
        """Changes a field's content. An unknown key is ignored."""
        kind, _, name = key.partition(".")
        self._launch_errors.pop(key, None)
        if key == "function" and self._given is None:
            self._chosen, self._launch_errors = str(given), {}
        elif kind == "argument":
            self._chosen = self._shown_function()
            self._arguments.setdefault(self._chosen, {})[name] = given
        elif kind == "setting" and name in _OPTIONS_BY_KEY:
            self._settings[name] = given

    def reset(self) -> None:
        """Resets every field to its default. The function stays chosen."""
        self._arguments.pop(self._shown_function(), None)
        self._settings, self._launch_errors = {}, {}

    def dump(self) -> dict[str, Any]:
        """The form's content, for `restore`."""
        return {
            "function": self._chosen or self._shown_function(),
            "arguments": self._arguments,
            "settings": self._settings,
        }

    def restore(self, settings: Mapping[str, Any]) -> None:
        """Applies the content of an earlier form, as far as it fits this one.

        Args:
            settings: What `dump` returned. It comes from a file, so that anything may be in it.
        """
        chosen, arguments = settings.get("function"), settings.get("arguments")
        options = settings.get("settings")
        if self._given is None and isinstance(chosen, str):
            self._chosen = chosen
        for function, given in arguments.items() if isinstance(arguments, dict) else ():
            if isinstance(given, dict):
                self._arguments[str(function)] = {
                    str(name): value
                    for name, value in given.items()
                    if isinstance(value, str | bool)
                }
        for name, value in options.items() if isinstance(options, dict) else ():
            if name in _OPTIONS_BY_KEY and isinstance(value, str | bool):
                self._settings[name] = value

    def functions(self) -> list[str]:
        """The names of the functions to choose from."""
        if self._given is not None:
            return [self._chosen]
        return list(launchable(self._namespace))

    def function(self) -> Any:
        """The chosen function, as the notebook defines it now; None where there is none."""
        if self._given is not None:
            newest = self._namespace.get(self._given_name, self._given)
            return newest if callable(newest) else self._given
        return launchable(self._namespace).get(self._shown_function())

    def _shown_function(self) -> str:
        """The name of the function whose fields are shown."""
        offered = self.functions()
        if self._chosen in offered or not offered:
            return self._chosen
        if self._fallback not in offered:
            # The newest function is probably the one that the user has just written.
            self._fallback = offered[-1]
        return self._fallback

    # The launch that the fields describe.

    def read(self, *, launching: bool = False) -> FormResult:
        """Reads all fields. An invalid field doesn't raise: its error is in the result.

        Args:
            launching: Whether to evaluate expressions that may have side effects too.
        """
        fn = self.function()
        result = FormResult(fn, name_in_notebook(fn, self._namespace) or self._shown_function())
        if fn is None:
            result.problems["function"] = "a function that a cell defines appears here"
            result.missing.add("function")
        else:
            self._read_arguments(result, launching=launching)
        self._read_settings(result)
        self._check(result)
        result.problems = {**result.problems, **self._launch_errors}
        return result

    def _read_arguments(self, result: FormResult, *, launching: bool) -> None:
        try:
            result.parameters = parameters(result.fn)
        except ValueError as error:
            result.problems["function"] = f"can't be launched from a form: {error}"
            return
        held = self._arguments.get(self._shown_function(), {})
        result.values = {
            one.name: held[one.name]
            for one in result.parameters
            if _is_valid_content(one, held.get(one.name))
        }
        result.call = read_call(
            result.parameters,
            result.values,
            lambda text: evaluate(text, self._namespace, force=launching),
            self._names_of(result),
        )
        result.problems |= {f"argument.{name}": text for name, text in result.call.problems.items()}
        result.missing |= {f"argument.{name}" for name in result.call.missing}

    def _names_of(self, result: FormResult) -> Callable[[type], str]:
        def name_of(cls: type) -> str:
            name = name_in_notebook(cls, self._namespace)
            if not name:
                statement, name = import_statement(cls, self._namespace)
                if not statement:
                    raise NoSource(f"the notebook has no name for {cls.__qualname__}")
                result.imports[statement] = None
            return name

        return name_of

    def _read_settings(self, result: FormResult) -> None:
        for name, option in _OPTIONS_BY_KEY.items():
            given = self._settings.get(name, opt.DEFAULTS[name])
            if given in (opt.DEFAULTS[name], ""):
                continue
            try:
                result.keywords[name] = (
                    bool(given) if isinstance(opt.DEFAULTS[name], bool) else option.read(str(given))
                )
            except ValueError as error:
                result.problems[f"setting.{name}"] = str(error)

    def _check(self, result: FormResult) -> None:
        """Lets `check_launch` check the settings, so that each wrong one gets an error.

        A check stops at its first error. So the setting with the error is left out, and the rest is
        checked again.
        """
        valid = dict(result.keywords)
        while True:
            try:
                result.devices = check_launch(result.fn or _no_function, **valid)
                return
            except ConfigError as error:
                name = error.field.partition("[")[0]
                key = "function" if name == "entrypoint" else f"setting.{name}"
                result.problems.setdefault(key, error.remedy)
                if valid.pop(name, None) is None:
                    return

    def launch_arguments(self) -> tuple[Any, list[Any], dict[str, Any], dict[str, Any]]:
        """The arguments for `launch`. Evaluates all expressions, unless a field is wrong already.

        Returns:
            The function, its positional arguments, its keyword arguments, and the keywords of
            `launch`.

        Raises:
            ConfigError: A field is wrong. The error names the first such field.
        """
        # The causes of the last launch's errors may be gone.
        self._launch_errors = {}
        result = self.read()
        if not result.problems:
            result = self.read(launching=True)
            self._launch_errors = {
                key: text for key, text in result.problems.items() if key not in result.missing
            }
        for key, text in result.problems.items():
            name = key.partition(".")[2] or key
            content = self._settings
            if key.startswith("argument."):
                content = self._arguments.get(self._shown_function(), {})
            raise ConfigError(name, content.get(name, ""), text)
        return result.fn, result.call.args, result.call.kwargs, result.keywords

    def attach_error(self, error: Exception) -> bool:
        """Attaches an error of a launch to the field that caused it.

        Returns:
            Whether a field caused the error.
        """
        result = self.read()
        name = ""
        if isinstance(error, PackingError):
            names = [one.name for one in result.parameters]
            name = next((one for one in names if error.path.startswith(f"kwargs[{one!r}]")), "")
            key, text = f"argument.{name}", f"can't be carried to the ranks: {error}"
        elif isinstance(error, ConfigError):
            name = error.field.partition("[")[0]
            key, text = f"setting.{name}", error.remedy
            name = name if name in _OPTIONS_BY_KEY else ""
        if name:
            self._launch_errors[key] = text
        return bool(name)

    # The form for a page.

    def to_json(self) -> dict[str, Any]:
        """The form as plain data. A page shows nothing else of it."""
        result = self.read()
        fn = result.fn
        return {
            "functions": self.functions(),
            "function": self._shown_function(),
            "fixed": self._given is not None,
            "doc": (inspect.getdoc(unwrap(fn)) or "").partition("\n")[0] if fn is not None else "",
            "problem": result.problems.get("function", ""),
            "arguments": [_argument_json(one, result) for one in result.parameters],
            "main": [self._setting_json(name, result) for name in _MAIN_SETTINGS],
            "advanced": [
                self._setting_json(name, result)
                for name in _OPTIONS_BY_KEY
                if name not in _MAIN_SETTINGS
            ],
            "summary": result.summary(),
            "python": self.python(result),
            "cell": self.cell(result),
            "invalid": list(result.problems),
            "missing": list(result.missing),
        }

    def _setting_json(self, name: str, result: FormResult) -> dict[str, Any]:
        option, default, key = _OPTIONS_BY_KEY[name], opt.DEFAULTS[name], f"setting.{name}"
        kind = _KINDS.get(name) or (
            "checkbox"
            if isinstance(default, bool)
            else "number"
            if name in _NUMBER_SETTINGS
            else "text"
        )
        return {
            "key": key,
            "label": _LABELS.get(name, name),
            "kind": kind,
            "value": self._settings.get(name, default),
            "default": default,
            "hint": _HINTS.get(name, option.metavar),
            "choices": list(option.values()) if kind in ("select", "devices") else [],
            "description": option.description,
            "error": result.problems.get(key, ""),
            "missing": False,
            "deferred": False,
        }

    def python(self, result: FormResult | None = None) -> str:
        """The launch as Python code.

        Args:
            result: What `read` returned; None reads the fields again.
        """
        result = result or self.read()
        if result.fn is not None and not name_in_notebook(result.fn, self._namespace):
            return _NAMELESS
        if result.call.no_source:
            return _NO_SOURCE.format(result.call.no_source)
        package = sys.modules["icelaunch_nb"]
        names = [name for name, value in list(self._namespace.items()) if value is package]
        module = next((name for name in names if not name.startswith("_")), "")
        lines = [*([] if module else ["import icelaunch_nb as ice"]), *result.imports]
        lines += [""] if lines else []
        code = result.call.launch_source(
            f"run = {module or 'ice'}.launch", result.name, result.keywords
        )
        return "\n".join([*lines, code, "run.result()"])

    def cell(self, result: FormResult | None = None) -> str:
        """The launch as a ``%%icelaunch`` cell.

        Args:
            result: What `read` returned; None reads the fields again.
        """
        result = result or self.read()
        if result.fn is not None and not name_in_notebook(result.fn, self._namespace):
            return _NAMELESS
        if result.call.no_source:
            return _NO_SOURCE.format(result.call.no_source)
        line = opt.format_options(result.keywords)
        first_line = f"%%icelaunch {line}" if line else "%%icelaunch"
        return "\n".join([first_line, *result.imports, result.call.source(result.name)])


class FormResult:
    """The launch that a form's fields describe.

    Attributes:
        fn: The function; None where there is none.
        name: The notebook's name for the function.
        parameters: The function's parameters.
        values: The content of their fields, where it isn't the default.
        call: The function's arguments.
        imports: The import statements that the source needs, in order. The values mean nothing.
        keywords: The keywords of `launch` that aren't the defaults.
        devices: The device of each rank; empty where that is unknown.
        problems: The error messages, by field key.
        missing: The keys of `problems` whose fields only need a value.
    """

    def __init__(self, fn: Any, name: str) -> None:
        self.fn, self.name = fn, name
        self.parameters: list[Parameter] = []
        self.values: dict[str, FieldValue] = {}
        self.call = Call()
        self.imports: dict[str, None] = {}
        self.keywords: dict[str, Any] = {}
        self.devices: list[str] = []
        self.problems: dict[str, str] = {}
        self.missing: set[str] = set()

    def summary(self) -> str:
        """How many ranks would be launched on which devices, in a few words."""
        if not self.devices:
            return ""
        count = len(self.devices)
        if self.devices[0] == "cpu":
            where = "cpu"
        elif count <= 4:
            where = ", ".join(self.devices)
        else:
            where = f"{self.devices[0]} … {self.devices[-1]}"
        nodes = self.keywords.get("max_nodes", 1)
        each = f" on each of {nodes} nodes" if nodes > 1 else ""
        return f"{count} rank{'s' * (count != 1)}{each}, {where}"


def _no_function() -> None:
    """Stands in for a missing function, so that `launch` can check the other fields."""


def _is_valid_content(one: Parameter, held: FieldValue | None) -> bool:
    """Whether a field can hold a stored value. The function may have changed since then."""
    return (
        held is not None
        and isinstance(held, bool) == (one.kind == "checkbox")
        and (one.values is None or str(held) in ("", *one.values))
    )


def _argument_json(one: Parameter, result: FormResult) -> dict[str, Any]:
    key = f"argument.{one.name}"
    star = {"rest": "*", "names": "**"}.get(one.passed, "")
    return {
        "key": key,
        "label": f"{star}{one.name}",
        "kind": one.kind,
        "value": result.values.get(one.name, one.default),
        "default": one.default,
        "hint": one.hint,
        "choices": list(one.values or ()),
        "description": "",
        "error": result.problems.get(key, ""),
        "missing": key in result.missing,
        "deferred": one.name in result.call.deferred,
    }


_OPTIONS_BY_KEY = {option.key: option for option in opt.OPTIONS if option.key in opt.FORM_KEYS}
