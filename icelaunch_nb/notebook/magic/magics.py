"""The magics ``%%icelaunch`` and ``%icelaunch``.

`options` parses their lines, and `cell_compiler` compiles the cell.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from icelaunch_nb.client.launch import launch
from icelaunch_nb.client.run import Run
from icelaunch_nb.client.runs import attach, runs
from icelaunch_nb.errors import ConfigError, IcelaunchError, PackingError, RunFailed
from icelaunch_nb.launching.launch_environment import variables
from icelaunch_nb.notebook.magic import options as opt
from icelaunch_nb.notebook.magic.cell_compiler import (
    CellSource,
    CompiledCell,
    compile_cell,
    set_rendered_traceback,
)
from icelaunch_nb.notebook.magic.interpolation import interpolate
from icelaunch_nb.pickling import explain
from icelaunch_nb.system.plaintext import as_of, one_line
from icelaunch_nb.system.suggestions import nearest

NAME = "icelaunch"
# TAB completes the ids of this many runs, the newest ones.
_COMPLETED_RUNS = 20


class IcelaunchMagics:
    """The magics of one shell, with the runs that they started and the defaults that were set.

    They are plain functions and don't use IPython's ``Magics`` class, so that importing this module
    doesn't import IPython.

    Args:
        shell: The IPython shell.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._defaults: dict[str, Any] = {}
        self._live_runs: list[Run] = []
        # The directories of runs that are over. A `Run` would keep its results in memory.
        self._finished_dirs: list[str] = []
        self._handlers: dict[str, Callable[[str], Any]] = {
            "status": self._status,
            "stop": self._stop,
            "logs": self._logs,
            "defaults": self._set_defaults,
            "attach": self._attach,
            "help": self._help,
        }

    def register(self) -> None:
        """Registers the magics and their completion with the shell."""
        from IPython.core.magic import no_var_expand

        for function in (type(self).line, type(self).cell):
            # IPython leaves the line unchanged where interpolation fails. `_interpolate` raises.
            no_var_expand(function)
        self._shell.register_magic_function(self.line, "line", NAME)
        self._shell.register_magic_function(self.cell, "cell", NAME)
        _add_completer(self._shell.Completer, self._complete)
        _allow_empty_cells(self._shell.input_transformers_cleanup)

    # %%icelaunch

    def cell(self, line: str, cell: str) -> Any:
        with _without_frames():
            options = opt.parse_options(self._interpolate(line), self._defaults)
            if options.help:
                _print(opt.help_text())
                return None
            if not cell.strip():
                raise IcelaunchError(
                    f"%%{NAME} runs what stands below it on every rank, and nothing does; "
                    "--help prints the options"
                )
            source = self._source(line, cell)
            namespace, flags = self._shell.user_ns, self._shell.compile.flags
            compiled = compile_cell(source, cell, namespace, flags=flags)
            try:
                run = _launch(compiled, options)
            except PackingError:
                unfit = [
                    name for name in compiled.optional if not explain.can_pickle(namespace[name])
                ]
                if not unfit:
                    raise
                compiled_without = compile_cell(source, cell, namespace, flags=flags, without=unfit)
                run = _launch(compiled_without, options)
            self._add_run(run)
            if not options.wait:
                self._bind(options.out, run)
                return None if compiled.suppressed else run
            if options.panel and getattr(self._shell, "kernel", None) is not None:
                # The run isn't printed below the cell where a page shows its panel.
                run._ipython_display_()
            results = run.result()
            self._bind(options.out, results)
        # A cell doesn't show None.
        shown = compiled.shows and any(value is not None for value in results.values())
        return results if shown else None

    cell.__doc__ = opt.help_text()

    def _interpolate(self, line: str) -> str:
        return interpolate(line, self._shell.user_ns)

    def _source(self, line: str, cell: str) -> CellSource:
        """The cell as it was typed.

        It is rebuilt where the history lacks it, as after a silent execution.
        """
        history, compiler = self._shell.history_manager.input_hist_raw, self._shell.compile
        # The shell's execution_count can't be used: since IPython 9, it is already the next cell's.
        raw, number = next(iter(history[-1:]), ""), len(history) - 1
        lines = [text.strip() for text in raw.rstrip().split("\n")]
        first = next((row for row, text in enumerate(lines, 1) if text.startswith(f"%%{NAME}")), 0)
        if not first or lines[first:] != [text.strip() for text in cell.rstrip().split("\n")]:
            raw, first = f"%%{NAME} {line}\n{cell}", 1
        filename = compiler.cache(raw, number, raw_code=raw)
        label = compiler.format_code_name(filename)
        return CellSource(raw, first + 1, " ".join(label) if label else filename, filename)

    def _bind(self, name: str, value: Any) -> None:
        if name:
            self._shell.push({name: value})

    # %icelaunch

    def line(self, line: str) -> Any:
        with _without_frames():
            command, _, rest = self._interpolate(line).strip().partition(" ")
            if command in ("", "-h", "--help"):
                command = "help"
            if command not in self._handlers:
                raise ConfigError(
                    "command",
                    command,
                    f"%{NAME} knows no such word; {nearest(command, list(self._handlers))}",
                )
            return self._handlers[command](rest)

    line.__doc__ = opt.help_text()

    def _help(self, _rest: str) -> None:
        """Prints the help and ignores the rest of the line."""
        _print(opt.help_text())

    def _status(self, rest: str) -> None:
        opt.parse_words(rest, {}, max_words=0)
        own_runs = self._known_runs()
        own_dirs = {run.log_dir for run in own_runs}
        others = [run for run in runs() if run.log_dir not in own_dirs and not run.state.over]
        lines = [repr(run).strip("<>") for run in [*own_runs, *others]]
        if any(not run.state.over for run in [*own_runs, *others]):
            lines.append(as_of())
        _print("\n".join(lines) or "no runs yet")

    def _stop(self, rest: str) -> None:
        run_ids, _ = opt.parse_words(rest, {}, max_words=1)
        if run_ids:
            run: Run | None = self._find_run(run_ids[0])
        else:
            run = next((run for run in self._known_runs() if not run.state.over), None)
        if run is None:
            raise IcelaunchError(
                f"no run of this notebook is alive; %{NAME} stop RUN_ID stops another's"
            )
        if run.state.over:
            _print(f"run {one_line(run.run_id)} is over: {run.state}")
        else:
            run.stop()
            _print(f"stopping run {one_line(run.run_id)}")

    def _logs(self, rest: str) -> None:
        run_ids, given = opt.parse_words(rest, opt.LOGS_OPTIONS, max_words=1)
        run = self._find_run(run_ids[0]) if run_ids else next(iter(self._known_runs()), None)
        if run is None:
            raise IcelaunchError("there is no run yet")
        try:
            text = run.logs(**given)
        except ValueError as error:
            raise IcelaunchError(f"run {run.run_id}: {error}") from None
        if text:
            _print(text.removesuffix("\n"))

    def _set_defaults(self, rest: str) -> None:
        if rest.split() == ["--reset"]:
            self._defaults = {}
        else:
            given = opt.parse_settings(rest)
            for key in ("out", "help"):
                if key in given:
                    raise ConfigError(
                        "option", f"--{key}", "belongs to one cell; it can't be a default"
                    )
            self._defaults = opt.merge(self._defaults, given)
        _print(f"defaults: {opt.format_options(self._defaults) or 'none'}")

    def _attach(self, rest: str) -> Run:
        run_ids, _ = opt.parse_words(rest, {}, max_words=1)
        run = attach(*run_ids)
        self._add_run(run)
        return run

    def _add_run(self, run: Run) -> None:
        self._finished_dirs += [one.log_dir for one in self._live_runs if one.state.over]
        self._live_runs = [*(one for one in self._live_runs if not one.state.over), run]

    def _known_runs(self) -> list[Run]:
        """The runs that the magics started or that the notebook has a name for, newest first."""
        named = [value for value in list(self._shell.user_ns.values()) if isinstance(value, Run)]
        found = {run.log_dir: run for run in [*named, *self._live_runs]}
        for path in self._finished_dirs:
            # The directory may have been removed.
            with contextlib.suppress(IcelaunchError):
                found.setdefault(path, Run(path))
        return sorted(found.values(), key=lambda run: run.started, reverse=True)

    def _find_run(self, run_id: str) -> Run:
        known = next((run for run in self._known_runs() if run.run_id == run_id), None)
        return known or attach(run_id)

    # TAB

    def _complete(self, before: str) -> list[str]:
        """The completions of a line; none where it isn't a line of these magics."""
        command, space, rest = before.lstrip().partition(" ")
        if not space or command not in (f"%{NAME}", f"%%{NAME}"):
            return []
        if command == f"%%{NAME}":
            return opt.complete(rest)
        word, space, rest = rest.lstrip().partition(" ")
        if not space:
            return [*self._handlers, "--help"]
        if word == "defaults":
            return opt.complete(rest)
        if word == "logs" and (rest.count(" ") or rest.startswith("-")):
            return opt.complete_words(rest, opt.LOGS_OPTIONS)
        if word in ("attach", "stop", "logs"):
            return [run.run_id for run in runs()[:_COMPLETED_RUNS]]
        return []


def _launch(compiled: CompiledCell, options: opt.Options) -> Run:
    try:
        with variables(options.env):
            return launch(compiled.function, panel=options.panel, **options.launch)
    except PackingError as error:
        raise PackingError(
            error.path.replace(".carried →", " →", 1), error.type_name, error.reason
        ) from None


def _allow_empty_cells(transforms: list[Any]) -> None:
    """Makes IPython call the cell magic also where the cell is empty, as with ``--help``.

    IPython refuses to call a cell magic without a cell. So a transform adds an empty line before
    IPython parses the magic's line.
    """

    def add_empty_body(lines: list[str]) -> list[str]:
        if lines and re.match(rf"%%{NAME}\b(?!\?)", lines[0]) and not "".join(lines[1:]).strip():
            return [lines[0].rstrip("\n") + "\n", "\n"]
        return lines

    names = [getattr(one, "__name__", "") for one in transforms]
    # The extension may be loaded several times.
    if add_empty_body.__name__ not in names:
        position = names.index("cell_magic") if "cell_magic" in names else 0
        transforms.insert(position, add_empty_body)


def _add_completer(completer: Any, complete: Callable[[str], list[str]]) -> None:
    """Adds a matcher that suppresses the others. jedi would complete ``--st`` as a Python name."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher(identifier="icelaunch_nb")  # type: ignore[untyped-decorator, unused-ignore]
    def matcher(context: Any) -> dict[str, Any]:
        last = re.split(r"[\s=]", context.text_until_cursor)[-1]
        found = [
            SimpleCompletion(text=text, type="option")
            for text in complete(context.text_until_cursor)
            if text.startswith(last)
        ]
        return {
            "completions": found,
            "suppress": bool(found),
            "matched_fragment": last,
            "ordered": True,
        }

    # The extension may be loaded several times, and adds only one matcher.
    others = [
        one
        for one in completer.custom_matchers
        if getattr(one, "matcher_identifier", "") != "icelaunch_nb"
    ]
    completer.custom_matchers = [*others, matcher]


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


@contextlib.contextmanager
def _without_frames() -> Iterator[None]:
    """Makes IPython show errors without the magic's frames, which aren't the user's code."""
    try:
        yield
    except RunFailed:
        # It renders its own traceback.
        raise
    except (IcelaunchError, KeyboardInterrupt) as error:
        if "_render_traceback_" not in vars(error):
            set_rendered_traceback(error, [])
        raise
