"""``%%icelaunch`` and ``%icelaunch``: the entry. What the options mean stands in `options`, what becomes of a body in `cellbody`."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import icelaunch_nb as ice
from icelaunch_nb import packing
from icelaunch_nb.errors import ConfigError, IcelaunchError, PackingError, RunFailed, nearest
from icelaunch_nb.notebook.magic import options as opt
from icelaunch_nb.notebook.magic.cellbody import Cell, Source, read_cell, show_as
from icelaunch_nb.notebook.magic.expansion import expand
from icelaunch_nb.run import Run
from icelaunch_nb.surroundings import variables

NAME = "icelaunch"
_OFFERED = 20  # runs that TAB offers, the newest


class Magic:
    """The magics of one shell, with the runs that they started and the defaults that were set.

    Plain functions and no class of IPython's: the extension is imported by whoever looks at it, IPython only by IPython.

    Args:
        shell: The IPython shell.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._defaults: dict[str, Any] = {}
        self._living: list[Run] = []
        self._over: list[str] = []  # directories: a `Run` would keep its results in memory
        self._commands: dict[str, Callable[[str], Any]] = {
            "status": self._status,
            "stop": self._stop,
            "logs": self._logs,
            "defaults": self._set_defaults,
            "attach": self._attach,
        }

    def register(self) -> None:
        """Makes the magics and their completion known to the shell."""
        from IPython.core.magic import no_var_expand

        for function in (type(self).line, type(self).cell):
            no_var_expand(
                function
            )  # IPython would leave a line as it is where something in it fails; `_expanded` says what
        self._shell.register_magic_function(self.line, "line", NAME)
        self._shell.register_magic_function(self.cell, "cell", NAME)
        _complete_with(self._shell.Completer, self._offers)
        _let_through(self._shell.input_transformers_cleanup)

    # %%icelaunch

    def cell(self, line: str, cell: str) -> Any:
        with _shown_plainly():
            options = opt.read_options(self._expanded(line), self._defaults)
            if options.help:
                _say(opt.help_text())
                return None
            if not cell.strip():
                raise IcelaunchError(
                    f"%%{NAME} runs what stands below it on every rank, and nothing does; --help prints the options"
                )
            source, namespace, flags = (
                self._source(line, cell),
                self._shell.user_ns,
                self._shell.compile.flags,
            )
            made = read_cell(source, cell, namespace, flags=flags)
            try:
                run = _launch(made, options)
            except PackingError:
                unfit = [name for name in made.spare if not packing.fits(namespace[name])]
                if not unfit:
                    raise
                run = _launch(
                    read_cell(source, cell, namespace, flags=flags, without=unfit), options
                )
            self._remember(run)
            if not options.wait:
                self._bind(options.out, run)
                return None if made.silenced else run
            if options.panel and getattr(self._shell, "kernel", None) is not None:
                run._ipython_display_()  # what a front end shows there isn't printed, too
            results = run.result()
            self._bind(options.out, results)
        # As in any cell: None isn't shown.
        return (
            results if made.shows and any(value is not None for value in results.values()) else None
        )

    cell.__doc__ = opt.help_text()

    def _expanded(self, line: str) -> str:
        return expand(line, self._shell.user_ns)

    def _source(self, line: str, cell: str) -> Source:
        """The cell as it was typed; where the history has it not (a silent execution), as it must have been."""
        history, compiler = self._shell.history_manager.input_hist_raw, self._shell.compile
        # Not the shell's execution_count: since IPython 9 that is the next cell's already.
        raw, number = next(iter(history[-1:]), ""), len(history) - 1
        lines = [text.strip() for text in raw.rstrip().split("\n")]
        first = next((row for row, text in enumerate(lines, 1) if text.startswith(f"%%{NAME}")), 0)
        if not first or lines[first:] != [text.strip() for text in cell.rstrip().split("\n")]:
            raw, first = f"%%{NAME} {line}\n{cell}", 1
        filename = compiler.cache(raw, number, raw_code=raw)
        label = compiler.format_code_name(filename)
        return Source(raw, first + 1, " ".join(label) if label else filename, filename)

    def _bind(self, name: str, value: Any) -> None:
        if name:
            self._shell.push({name: value})

    # %icelaunch

    def line(self, line: str) -> Any:
        with _shown_plainly():
            command, _, rest = self._expanded(line).strip().partition(" ")
            if command in ("", "-h", "--help"):
                _say(opt.help_text())
                return None
            if command not in self._commands:
                raise ConfigError(
                    "command",
                    command,
                    f"%{NAME} knows no such word; {nearest(command, list(self._commands))}",
                )
            return self._commands[command](rest)

    line.__doc__ = opt.help_text()

    def _status(self, rest: str) -> None:
        opt.read_words(rest, {}, most=0)
        here = self._here()
        known = {run.log_dir for run in here}
        elsewhere = [run for run in ice.runs() if run.log_dir not in known and not run.state.over]
        _say("\n".join(repr(run).strip("<>") for run in [*here, *elsewhere]) or "no runs yet")

    def _stop(self, rest: str) -> None:
        named, _ = opt.read_words(rest, {}, most=1)
        run = (
            self._named(named[0])
            if named
            else next((run for run in self._here() if not run.state.over), None)
        )
        if run is None:
            raise IcelaunchError(
                f"no run of this notebook is alive; %{NAME} stop RUN_ID stops another's"
            )
        if run.state.over:
            _say(f"run {run.run_id} is over: {run.state}")
        else:
            run.stop()
            _say(f"stopping run {run.run_id}")

    def _logs(self, rest: str) -> None:
        named, given = opt.read_words(rest, opt.LOGS, most=1)
        run = self._named(named[0]) if named else next(iter(self._here()), None)
        if run is None:
            raise IcelaunchError("there is no run yet")
        try:
            text = run.logs(**given)
        except ValueError as error:
            raise IcelaunchError(f"run {run.run_id}: {error}") from None
        if text:
            _say(text.removesuffix("\n"))

    def _set_defaults(self, rest: str) -> None:
        if rest.split() == ["--reset"]:
            self._defaults = {}
        else:
            given = opt.read_settings(rest)
            for key in ("out", "help"):
                if key in given:
                    raise ConfigError(
                        "option", f"--{key}", "belongs to one cell; it can't be a default"
                    )
            self._defaults = opt.merge(self._defaults, given)
        _say(f"defaults: {opt.spell(self._defaults) or 'none'}")

    def _attach(self, rest: str) -> Run:
        named, _ = opt.read_words(rest, {}, most=1)
        run = ice.attach(*named)
        self._remember(run)
        return run

    def _remember(self, run: Run) -> None:
        self._over += [one.log_dir for one in self._living if one.state.over]
        self._living = [*(one for one in self._living if not one.state.over), run]

    def _here(self) -> list[Run]:
        """The runs that this notebook started by the magic or holds under a name, the newest first."""
        held = [value for value in list(self._shell.user_ns.values()) if isinstance(value, Run)]
        runs = {run.log_dir: run for run in [*held, *self._living]}
        for path in self._over:
            with contextlib.suppress(IcelaunchError):  # the directory was removed
                runs.setdefault(path, Run(path))
        return sorted(runs.values(), key=lambda run: run.started, reverse=True)

    def _named(self, run_id: str) -> Run:
        return next((run for run in self._here() if run.run_id == run_id), None) or ice.attach(
            run_id
        )

    # TAB

    def _offers(self, before: str) -> list[str]:
        """What can stand at the end of a line; nothing where it isn't one of these magics'."""
        command, space, rest = before.lstrip().partition(" ")
        if not space or command not in (f"%{NAME}", f"%%{NAME}"):
            return []
        if command == f"%%{NAME}":
            return opt.complete(rest)
        word, space, rest = rest.lstrip().partition(" ")
        if not space:
            return [*self._commands, "--help"]
        if word == "defaults":
            return opt.complete(rest)
        if word == "logs" and (rest.count(" ") or rest.startswith("-")):
            return opt.complete_words(rest, opt.LOGS)
        return (
            [run.run_id for run in ice.runs()[:_OFFERED]]
            if word in ("attach", "stop", "logs")
            else []
        )


def _launch(made: Cell, options: opt.Options) -> Run:
    try:
        with variables(options.env):
            return ice.launch(made.function, panel=options.panel, **options.launch)
    except PackingError as error:
        raise PackingError(
            error.path.replace(".carried →", " →", 1), error.type_name, error.reason
        ) from None


def _let_through(transforms: list[Any]) -> None:
    """Has IPython call the cell magic also where nothing stands below it: it refuses by itself to, with ``--help``, too.

    An empty line is put there before IPython reads the magic's line.
    """

    def icelaunch_without_a_body(lines: list[str]) -> list[str]:
        if lines and re.match(rf"%%{NAME}\b(?!\?)", lines[0]) and not "".join(lines[1:]).strip():
            return [lines[0].rstrip("\n") + "\n", "\n"]
        return lines

    names = [getattr(one, "__name__", "") for one in transforms]
    if (
        icelaunch_without_a_body.__name__ not in names
    ):  # once, however often the extension is loaded
        transforms.insert(
            names.index("cell_magic") if "cell_magic" in names else 0, icelaunch_without_a_body
        )


def _complete_with(completer: Any, offers: Callable[[str], list[str]]) -> None:
    """Adds a matcher that speaks alone where it has something to say: jedi takes ``--st`` for the beginning of a name."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher(identifier="icelaunch_nb")  # type: ignore[untyped-decorator, unused-ignore]
    def matcher(context: Any) -> dict[str, Any]:
        last = re.split(r"[\s=]", context.text_until_cursor)[-1]
        found = [
            SimpleCompletion(text=text, type="option")
            for text in offers(context.text_until_cursor)
            if text.startswith(last)
        ]
        return {
            "completions": found,
            "suppress": bool(found),
            "matched_fragment": last,
            "ordered": True,
        }

    known = [
        one
        for one in completer.custom_matchers
        if getattr(one, "matcher_identifier", "") != "icelaunch_nb"
    ]
    completer.custom_matchers = [*known, matcher]  # once, however often the extension is loaded


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


@contextlib.contextmanager
def _shown_plainly() -> Iterator[None]:
    """What goes wrong is shown without the frames of the magic, which are no user's."""
    try:
        yield
    except RunFailed:
        raise  # shows itself
    except (IcelaunchError, KeyboardInterrupt) as error:
        if "_render_traceback_" not in vars(error):
            show_as(error, [])
        raise
