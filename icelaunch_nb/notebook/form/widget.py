"""The form: `LaunchPanel`, with which one launches by looking.

Python holds the truth: a page sends what was typed, key by key, and shows the view that comes back. What a form means stands in
`formstate`; here is what it looks like to a kernel: a widget for its fields, below it the panel of the newest run, and a text
where there are no widgets.
"""

from __future__ import annotations

import html
import os
import sys
import threading
import time
import weakref
from typing import Any

import anywidget
import ipywidgets
import traitlets

from icelaunch_nb.errors import IcelaunchError
from icelaunch_nb.launch import launch
from icelaunch_nb.notebook import subshell
from icelaunch_nb.notebook.form.functions import called
from icelaunch_nb.notebook.form.memory import Memory, notebook_of
from icelaunch_nb.notebook.form.state import Form
from icelaunch_nb.notebook.form.vacancy import vacancy
from icelaunch_nb.notebook.panel.panel import built
from icelaunch_nb.run import Run

_FRESH = 2.0  # seconds for which what is free on the devices isn't asked again
_by_cell: dict[
    str, tuple[str, weakref.WeakSet[LaunchPanel]]
] = {}  # by a notebook's cell: its newest execution, and the forms that it made


class FormFields(anywidget.AnyWidget):
    """The fields and buttons, as a page shows them; `LaunchPanel` gives them their meaning."""

    _esm = built("form.js")
    _css = built("form.css")

    view = traitlets.Dict().tag(sync=True)
    devices: Any = traitlets.List().tag(sync=True)
    stands = traitlets.Dict().tag(sync=True)


class LaunchPanel(ipywidgets.VBox):  # type: ignore[misc]
    """A form to launch from: choose a function, fill in its arguments, Launch, and watch the run below.

    The arguments' fields follow the function's signature: a checkbox for a bool, a menu for a Literal or an Enum, numbers and text
    as they are, and a Python expression for everything else, evaluated in the notebook's namespace. Names, literals, and items of lists,
    dicts and arrays are evaluated as they are typed; whatever may do something when it is looked at waits for the launch. What is
    wrong is said beside its field, by the same code that `launch` asks. A function that a cell defines anew is used as it is then.
    Running its cell again makes a new form and closes the old one.

    What was last typed is kept for the notebook: in the user's state directory (on Linux ``~/.local/state/icelaunch_nb/forms``), in a file
    that only the user can read, found by the notebook's path (``JPY_SESSION_NAME``, as the Jupyter server tells it; without one,
    the folder that the kernel runs in).

    Args:
        fn: The function to launch; None: one of the notebook's, by choice.

    Attributes:
        run: The newest `Run` that this form launched; None: none yet.

    Raises:
        ConfigError: `fn` is no function.
        IcelaunchError: The package was not built, so that its front end is missing.
    """

    _shell: Any = None  # IPython's; None outside of it, and once this is closed

    def __init__(self, fn: Any = None) -> None:
        shell = _shell_here()
        namespace = shell.user_ns if shell is not None else vars(sys.modules["__main__"])
        self._form = Form(namespace, fn)
        self._memory = Memory(notebook_of(os.environ, namespace))
        self._form.restore(self._memory.read(self._form.name))
        self.run: Run | None = None
        self._lock = threading.RLock()  # clicks are handled by subshells where there are some, the run's state comes by the panels' thread
        self._cell: dict[str, Any] = {}  # the message that asked for the newest display
        self._looked = time.monotonic()
        self._fields = FormFields(view=self._form.view(), devices=vacancy(os.environ))
        super().__init__(children=[self._fields])
        self._fields.on_msg(lambda _, content, buffers: self._hear(content))
        subshell.listen(self._fields.model_id)
        self._shell = shell
        if shell is not None:
            shell.events.register("post_run_cell", self._after_a_cell)
            _take_the_place_of_older_ones(self, _kernel(shell))

    def launch(self) -> Run:
        """Launches what the form shows, as its button does; returns at once.

        Raises:
            ConfigError: A field can't be; names the first one. No process was started.
            PackingError: The function or an argument can't be pickled. No process was started.
        """
        self._tell("")
        fn, args, kwargs, keywords = self._form.launched()
        self.run = run = launch(fn, args, kwargs, **keywords)
        self._show(run)
        return run

    @property
    def python(self) -> str:
        """The same launch as Python."""
        return self._form.python()

    @property
    def cell(self) -> str:
        """The same launch as a ``%%icelaunch`` cell."""
        return self._form.cell()

    def close(self) -> None:
        """Ends the widget, as running its cell again does; a run goes on, and its panel stays where else it is shown."""
        super().close()
        if self._shell is not None:
            self._shell.events.unregister("post_run_cell", self._after_a_cell)
            self._shell = None
            subshell.unlisten(self._fields.model_id)
            for widget in (
                self._fields,
                self._fields.layout,
                self.layout,
            ):  # the layouts are widgets that nobody else would close
                widget.close()

    # What a page asks for.

    def _hear(self, content: dict[str, Any]) -> None:
        what = content.get("do")
        with self._lock:
            try:
                if what == "set":
                    self._form.set(str(content.get("key")), _given(content.get("value")))
                    self._keep()
                elif what == "reset":
                    self._form.reset()
                    self._keep()
                elif what == "launch":
                    self._launch_from_a_page()
                elif what == "look" and time.monotonic() - self._looked > _FRESH:
                    self._look()
            finally:
                # "heard" comes last: a page shows what was typed until then, and the view from then on.
                self._refresh()
                self._fields.send(
                    {"kind": "heard", "to": content.get("from"), "n": content.get("n")}
                )

    def _launch_from_a_page(self) -> None:
        if self.run is not None and not self.run.state.over:
            return  # a second click, made before the page heard of the first
        try:
            self.launch()
        except IcelaunchError as error:
            if not self._form.blame(error) and not self._form.read().problems:
                self._tell(str(error))
            return
        self._look()

    def _tell(self, text: str) -> None:
        if text != self._fields.stands.get("says", ""):
            self._fields.stands = {**self._fields.stands, "says": text}

    def _keep(self) -> None:
        self._memory.write(self._form.name, self._form.kept())

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._fields.devices = vacancy(os.environ)

    def _after_a_cell(self, _result: Any) -> None:
        """Functions may be there that weren't before, or other ones by the same name."""
        self._refresh()

    def _refresh(self) -> None:
        with self._lock:
            self._fields.view = self._form.view()

    # The run below.

    def _show(self, run: Run) -> None:
        if _kernel(self._shell) is None:
            return
        panel = run.panel()
        panel.stand_in(self._cell)
        panel.observe(lambda _: self._tell_state(run), "story")
        panel.observe(lambda _: self._forget(panel), "comm")
        self.children = [self._fields, panel]
        self._tell_state(run)

    def _forget(self, panel: Any) -> None:
        """A panel of long ago is closed; a form that still had it for a part could not be drawn anew."""
        if panel.comm is None and panel in self.children:
            self.children = [self._fields]

    def _tell_state(self, run: Run) -> None:
        with self._lock:
            if run is self.run and self._shell is not None:
                state, name = run.story.state, called(self, self._shell.user_ns)
                results = f"{name}.run.result()" if name else ""
                self._fields.stands = {
                    **self._fields.stands,
                    "state": str(state),
                    "over": state.over,
                    "results": results,
                }

    # How it looks without widgets.

    def __repr__(self) -> str:
        reading = self._form.read()
        lines = [
            f"{type(self).__name__}: {reading.name or 'no function'}{f', {reading.says()}' if reading.says() else ''}"
        ]
        rows = [
            *(
                (one.name, reading.held.get(one.name, one.default), f"argument.{one.name}")
                for one in reading.parameters
            ),
            *((name, value, f"setting.{name}") for name, value in reading.keywords.items()),
        ]
        known = {key for _, _, key in rows}
        rows += [
            (key.partition(".")[2] or key, "", key) for key in reading.problems if key not in known
        ]
        width = max((len(name) for name, _, _ in rows), default=0)
        for name, value, key in rows:
            problem = reading.problems.get(key)
            lines.append(
                f"    {name:<{width}}  {value!s}{f'  <- {problem}' if problem else ''}".rstrip()
            )
        if not reading.problems:
            lines += [
                "launch() on it does the same as",
                *(f"    {line}" for line in self.python.splitlines()),
            ]
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


def _take_the_place_of_older_ones(form: LaunchPanel, kernel: Any) -> None:
    """Closes the forms of an earlier execution of the same cell: their places are gone, and nobody could close them any more."""
    asked = kernel.get_parent() if kernel is not None else {}
    cell, execution = (
        asked.get("metadata", {}).get("cellId", ""),
        asked.get("header", {}).get("msg_id", ""),
    )
    if not cell:
        return
    before, forms = _by_cell.get(cell, ("", weakref.WeakSet()))
    if before != execution:
        for one in list(forms):
            one.close()
        forms = weakref.WeakSet()
    forms.add(form)
    _by_cell[cell] = execution, forms


def _shell_here() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()


def _kernel(shell: Any) -> Any:
    return getattr(shell, "kernel", None)


def _given(value: object) -> str | bool:
    return value if isinstance(value, bool) else str(value)
