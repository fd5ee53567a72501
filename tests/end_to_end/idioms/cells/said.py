# %% a logger with the module's name
import logging
log = logging.getLogger(__name__)
def work():
    log.info("not shown")
    return log.name, log is logging.getLogger("__main__")
#= ("__main__", True)

# %% logging set up in the function
import io
import logging
def work():
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    log = logging.getLogger("idioms.train")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.info("step %d", 3)
    log.removeHandler(handler)
    return text.getvalue()
#= "INFO idioms.train step 3\n"

# %% logging set up from a table
import logging
import logging.config
def work():
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": {"idioms.eval": {"level": "ERROR"}}})
    return logging.getLogger("idioms.eval").isEnabledFor(logging.WARNING)
#= False

# %% a logger that is an attribute
import logging
class Trainer:
    def __init__(self):
        self.log = logging.getLogger("idioms.trainer")
trainer = Trainer()
def work():
    return trainer.log is logging.getLogger("idioms.trainer")
#= True

# %% an adapter that says which rank speaks
import logging
import os
adapter = logging.LoggerAdapter(logging.getLogger("idioms.rank"), {"job": "a"})
def work():
    return adapter.process("hello", {})
#= ("hello", {"extra": {"job": "a"}})

# %% what is printed is caught
import contextlib
import io
def work():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        print("step", 1, sep="=", end="!")
    return text.getvalue()
#= "step=1!"

# %% print, flushed, to both streams
import sys
def work():
    return print("out", flush=True), print("err", file=sys.stderr), sys.stdout.write("x\n")
#= (None, None, 2)

# %% the encoding and the width of the streams
import shutil
import sys
def work():
    return sys.stdout.encoding.lower(), shutil.get_terminal_size().columns >= 0
#= ("utf-8", True)

# %% warnings, kept
import warnings
def old():
    warnings.warn("use new()", FutureWarning, stacklevel=2)
def work():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old()
    return [str(w.message) for w in caught]
#= ["use new()"]

# %% an exception's text, as a log has it
import traceback
def work():
    try:
        {}["lr"]
    except KeyError:
        return traceback.format_exc().strip().splitlines()[-1]
#= "KeyError: 'lr'"

# %% rich
from rich.console import Console
from rich.table import Table
def work():
    console = Console(record=True, file=open("/dev/null", "w"), width=30)
    table = Table("rank")
    table.add_row("0")
    console.print(table)
    return "rank" in console.export_text()
#= True

# %% pprint and json, sorted
import json
from pprint import pformat
def work():
    return pformat({"b": 1, "a": 2}), json.dumps({"b": 1, "a": (1, 2)}, sort_keys=True)
#= ("{'a': 2, 'b': 1}", '{"a": [1, 2], "b": 1}')

# %% is this a notebook?
def in_notebook():
    try:
        return get_ipython().__class__.__name__ == "ZMQInteractiveShell"
    except NameError:
        return False
def work():
    return in_notebook()
#= kernel: True
#= rank: False

# %% display, which a rank prints
import contextlib
import io
def work():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        display({"loss": 0.5})
    return text.getvalue()
#= kernel: —
#= rank: "{'loss': 0.5}\n"
#= differs: torchrun's script has no display; a rank prints what the notebook would show

# %% a function that may call exit
def work(bad=False):
    if bad:
        exit(1)
    return "stayed"
#= "stayed"

# %% the script's own name
def work():
    return __name__
#= "__main__"

# %% the file that isn't there
import os
def work():
    return os.path.dirname(__file__)
#= kernel: raises NameError: name '__file__' is not defined
#= rank: raises NameError: name '__file__' is not defined
#= differs: a notebook has no __file__, and so its ranks have none

# %% a question that nobody answers
def work():
    return input("name? ")
#= kernel: —
#= rank: raises EOFError
