"""Stores the settings of a notebook's forms, so that they outlive the kernel."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from icelaunch_nb.system.files import write_atomically
from icelaunch_nb.system.userdirs import state_dir


def notebook_path(environ: Mapping[str, str], namespace: Mapping[str, Any]) -> str:
    """The path of this kernel's notebook.

    The Jupyter server sets it in a variable, VS Code in a name of the notebook. Without either,
    this is the kernel's working directory.

    Args:
        environ: The environment variables.
        namespace: The notebook's names.
    """
    path = environ.get("JPY_SESSION_NAME") or str(namespace.get("__vsc_ipynb_file__") or "")
    try:
        return os.path.abspath(path or os.getcwd())
    except FileNotFoundError:
        # The working directory was removed.
        return path


class SettingsStore:
    """The settings of one notebook's forms, in one file of the user's state directory.

    A file that can't be read counts as empty. What can't be written isn't stored. Neither raises.

    Args:
        notebook: The notebook's path.
    """

    def __init__(self, notebook: str) -> None:
        self._notebook = notebook
        name = hashlib.sha256(notebook.encode(errors="surrogatepass")).hexdigest()[:32]
        state = state_dir()
        self.path = state / "forms" / f"{name}.json" if state else None

    def load(self, form: str) -> dict[str, Any]:
        """The stored settings of a form; empty where there are none."""
        settings = self._load_all().get(form)
        return settings if isinstance(settings, dict) else {}

    def save(self, form: str, settings: Mapping[str, Any]) -> None:
        """Stores a form's settings, and keeps those of the notebook's other forms."""
        if self.path is None:
            return
        everything = json.dumps(
            {"notebook": self._notebook, "forms": {**self._load_all(), form: settings}}
        )
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self.path, everything.encode())

    def _load_all(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        try:
            forms = json.loads(self.path.read_text(encoding="utf-8"))["forms"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return forms if isinstance(forms, dict) else {}
