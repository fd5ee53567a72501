"""What a form was last set to, kept for its notebook beyond the kernel's end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs


def notebook_of(environ: Mapping[str, str], namespace: Mapping[str, Any]) -> str:
    """The path of the notebook that this kernel serves: as the Jupyter server says, as VS Code says, or the folder that it runs in."""
    path = environ.get("JPY_SESSION_NAME") or str(namespace.get("__vsc_ipynb_file__") or "")
    return os.path.abspath(path or os.getcwd())


class Memory:
    """The settings of one notebook's forms, in one file of the user's state directory.

    Whatever happens to the file, a form only forgets: what can't be read is empty, what can't be written isn't kept.

    Args:
        notebook: The notebook's path.
    """

    def __init__(self, notebook: str) -> None:
        self._notebook = notebook
        name = hashlib.sha256(notebook.encode(errors="surrogatepass")).hexdigest()[:32]
        self.path = platformdirs.user_state_path("icelaunch_nb") / "forms" / f"{name}.json"

    def read(self, form: str) -> dict[str, Any]:
        """What was kept of a form; empty where nothing was."""
        kept = self._read_all().get(form)
        return kept if isinstance(kept, dict) else {}

    def write(self, form: str, settings: Mapping[str, Any]) -> None:
        """Keeps a form's settings, those of other forms of the notebook beside them."""
        everything = json.dumps(
            {"notebook": self._notebook, "forms": {**self._read_all(), form: settings}}
        )
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            beside = self.path.with_suffix(f".{os.getpid()}")
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(everything)
            os.replace(beside, self.path)

    def _read_all(self) -> dict[str, Any]:
        try:
            forms = json.loads(Path(self.path).read_text(encoding="utf-8"))["forms"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return forms if isinstance(forms, dict) else {}
