"""The widget of the form: `LaunchPanel`.

`form.state` holds the form's state. A page sends what was typed, field by field, and shows the
state that it receives. The widget consists of the fields and, below them, the panel of the newest
run. Where a front end shows no widgets, it shows a text.
"""

from __future__ import annotations

import html
import os
import sys
import threading
import time
import weakref
from typing import Any

import ipywidgets
import traitlets

from icelaunch_nb.client.launch import launch
from icelaunch_nb.client.run import Run
from icelaunch_nb.errors import IcelaunchError
from icelaunch_nb.notebook import subshell
from icelaunch_nb.notebook.form.device_usage import device_usage
from icelaunch_nb.notebook.form.functions import name_in_notebook
from icelaunch_nb.notebook.form.settings_store import SettingsStore, notebook_path
from icelaunch_nb.notebook.form.state import Form
from icelaunch_nb.notebook.panel.panel import bundle_file
from icelaunch_nb.notebook.widgets import RequestWidget, request_id
from icelaunch_nb.system.plaintext import sendable

# Seconds for which the devices' usage isn't read again.
_USAGE_MAX_AGE = 2.0
# By the id of a notebook's cell: the id of its newest execution, and the forms that this made.
_by_cell: dict[str, tuple[str, weakref.WeakSet[LaunchPanel]]] = {}


class FormFields(RequestWidget):
    """The fields and buttons that a page shows. `LaunchPanel` handles their requests."""

    _esm = bundle_file("form.js")
    _css = bundle_file("form.css")

    form_state = traitlets.Dict().tag(sync=True)
    devices: Any = traitlets.List().tag(sync=True)
    run_status = traitlets.Dict().tag(sync=True)


class LaunchPanel(ipywidgets.VBox):  # type: ignore[misc]
    """A form to launch from: choose a function, fill in its arguments, Launch, and watch the run.

    The arguments' fields follow the function's signature: a checkbox for a bool, a menu for a
    Literal or an Enum, a field for a number or a text, and a Python expression for everything else.
    An expression is evaluated in the notebook's namespace. Names, literals, and items of lists,
    dicts and arrays are evaluated while they are typed. Anything that may have side effects is
    evaluated at the launch.

    An error shows beside its field. `launch` makes the same checks. When a cell redefines the
    function, the form uses the new definition. Running the form's cell again makes a new form and
    closes the old one.

    The form stores what was last typed for the notebook. The file is in the user's state directory
    (on Linux ``~/.local/state/icelaunch_nb/forms``), and only the user can read it. The notebook is
    identified by its path, which the Jupyter server sets as ``JPY_SESSION_NAME``. Without one, it
    is identified by the kernel's working directory.

    Args:
        fn: The function to launch. None lets the user choose one of the notebook's functions.

    Attributes:
        run: The newest `Run` that this form launched; None before the first launch.

    Raises:
        ConfigError: `fn` is no function.
        IcelaunchError: The package was not built, so that its front end is missing.
    """

    # IPython's shell; None without IPython, and after the form is closed.
    _shell: Any = None

    def __init__(self, fn: Any = None) -> None:
        shell = _current_shell()
        namespace = shell.user_ns if shell is not None else vars(sys.modules["__main__"])
        self._form = Form(namespace, fn)
        self._store = SettingsStore(notebook_path(os.environ, namespace))
        self._form.restore(self._store.load(self._form.name))
        self.run: Run | None = None
        # A subshell handles clicks where the kernel has subshells. The panel thread reports the
        # run's state.
        self._lock = threading.RLock()
        # The message that requested the execution of the cell that last displayed the form.
        self._cell: dict[str, Any] = {}
        self._usage_read_at = time.monotonic()
        self._fields = FormFields(form_state=self._form.to_json(), devices=device_usage(os.environ))
        super().__init__(children=[self._fields])
        self._fields.on_msg(lambda _, content, buffers: self._on_request(content))
        subshell.register(self._fields.model_id)
        self._shell = shell
        if shell is not None:
            shell.events.register("post_run_cell", self._after_cell)
            _replace_older_forms(self, _kernel(shell))

    def launch(self) -> Run:
        """Launches what the form shows, as its button does. Doesn't wait for the run.

        Returns:
            The run.

        Raises:
            ConfigError: A field is wrong. The error names the first such field. No process was
                started.
            PackingError: The function or an argument can't be pickled. No process was started.
        """
        self._show_error("")
        fn, args, kwargs, keywords = self._form.launch_arguments()
        self.run = run = launch(fn, args, kwargs, **keywords)
        self._show_panel(run)
        return run

    @property
    def python(self) -> str:
        """The launch as Python code."""
        return self._form.python()

    @property
    def cell(self) -> str:
        """The launch as a ``%%icelaunch`` cell."""
        return self._form.cell()

    def close(self) -> None:
        """Closes the form, as running its cell again does.

        The run goes on. Its panel stays in other outputs that show it.
        """
        super().close()
        if self._shell is not None:
            self._shell.events.unregister("post_run_cell", self._after_cell)
            self._shell = None
            subshell.unregister(self._fields.model_id)
            # The layouts are separate widgets, which ipywidgets doesn't close.
            for widget in (self._fields, self._fields.layout, self.layout):
                widget.close()

    # Requests of a page.

    def _on_request(self, content: Any) -> None:
        if not isinstance(content, dict):
            return
        action = content.get("action")
        with self._lock:
            try:
                if action == "set":
                    key = sendable(str(content.get("key")))
                    self._form.set(key, _field_value(content.get("value")))
                    self._save()
                elif action == "reset":
                    self._form.reset()
                    self._save()
                elif action == "launch":
                    self._launch_from_page()
                elif action == "refresh_devices" and self._usage_is_old():
                    self._read_usage()
            finally:
                # "received" is sent last: until a page receives it, the page shows what was typed,
                # and afterwards the new state.
                self._refresh()
                to, seq = request_id(content.get("sender")), request_id(content.get("seq"))
                self._fields.send({"kind": "received", "to": to, "seq": seq})

    def _launch_from_page(self) -> None:
        if self.run is not None and not self.run.state.over:
            # This is a second click, made before the page received the state after the first.
            return
        try:
            self.launch()
        except IcelaunchError as error:
            if not self._form.attach_error(error) and not self._form.read().problems:
                self._show_error(str(error))
            return
        self._read_usage()

    def _show_error(self, text: str) -> None:
        if text != self._fields.run_status.get("error", ""):
            self._fields.run_status = {**self._fields.run_status, "error": text}

    def _save(self) -> None:
        self._store.save(self._form.name, self._form.dump())

    def _usage_is_old(self) -> bool:
        return time.monotonic() - self._usage_read_at > _USAGE_MAX_AGE

    def _read_usage(self) -> None:
        self._usage_read_at = time.monotonic()
        self._fields.devices = device_usage(os.environ)

    def _after_cell(self, _result: Any) -> None:
        """Updates the form after a cell, which may have defined or redefined functions."""
        self._refresh()

    def _refresh(self) -> None:
        with self._lock:
            self._fields.form_state = self._form.to_json()

    # The panel of the run.

    def _show_panel(self, run: Run) -> None:
        if _kernel(self._shell) is None:
            return
        panel = run.panel()
        panel.show_in(self._cell)
        panel.observe(lambda _: self._show_run_status(run), "run_state")
        panel.observe(lambda _: self._remove_closed(panel), "comm")
        self.children = [self._fields, panel]
        self._show_run_status(run)

    def _remove_closed(self, panel: Any) -> None:
        """Removes the panel if it is closed, as panels of old runs are.

        A front end can't draw a form that has a closed child.
        """
        if panel.comm is None and panel in self.children:
            self.children = [self._fields]

    def _show_run_status(self, run: Run) -> None:
        with self._lock:
            if run is self.run and self._shell is not None:
                state, name = run.state, name_in_notebook(self, self._shell.user_ns)
                code = f"{name}.run.result()" if name else ""
                status = {"state": str(state), "over": state.over, "result_code": code}
                self._fields.run_status = {**self._fields.run_status, **status}

    # The form without widgets.

    def __repr__(self) -> str:
        result = self._form.read()
        summary = f", {result.summary()}" if result.summary() else ""
        lines = [f"{type(self).__name__}: {result.name or 'no function'}{summary}"]
        rows = [
            *(
                (one.name, result.values.get(one.name, one.default), f"argument.{one.name}")
                for one in result.parameters
            ),
            *((name, value, f"setting.{name}") for name, value in result.keywords.items()),
        ]
        known = {key for _, _, key in rows}
        rows += [
            (key.partition(".")[2] or key, "", key) for key in result.problems if key not in known
        ]
        width = max((len(name) for name, _, _ in rows), default=0)
        for name, value, key in rows:
            problem = result.problems.get(key)
            error = f"  <- {problem}" if problem else ""
            lines.append(f"    {name:<{width}}  {value!s}{error}".rstrip())
        if not result.problems:
            code = (f"    {line}" for line in self.python.splitlines())
            lines += ["launch() on it does the same as", *code]
        return "\n".join(lines)

    def _ipython_display_(self, **_: Any) -> None:
        from IPython.display import display

        kernel = _kernel(self._shell)
        text = repr(self)
        data: dict[str, Any] = {"text/plain": text}
        if kernel is not None:
            self._cell = dict(kernel.get_parent())
            data["text/html"] = f"<pre>{html.escape(text)}</pre>"
            data["application/vnd.jupyter.widget-view+json"] = {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.model_id,
            }
        display(data, raw=True)


def _replace_older_forms(form: LaunchPanel, kernel: Any) -> None:
    """Closes the forms of an earlier execution of the same cell, whose output is gone."""
    request = kernel.get_parent() if kernel is not None else {}
    cell = request.get("metadata", {}).get("cellId", "")
    execution = request.get("header", {}).get("msg_id", "")
    if not cell:
        return
    before, forms = _by_cell.get(cell, ("", weakref.WeakSet()))
    if before != execution:
        for one in list(forms):
            one.close()
        forms = weakref.WeakSet()
    forms.add(form)
    _by_cell[cell] = execution, forms


def _current_shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()


def _kernel(shell: Any) -> Any:
    return getattr(shell, "kernel", None)


def _field_value(value: object) -> str | bool:
    return value if isinstance(value, bool) else sendable(str(value))
