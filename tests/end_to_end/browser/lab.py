"""A real JupyterLab or Notebook 7 server, and a notebook of it in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    try:
        yield browser
    finally:
        browser.close()


class Server:
    """``jupyter lab`` on a free port of this machine, with its own settings.

    Args:
        home: A folder for its settings and notebooks.
        environ: Variables for its kernels, beside its own.
    """

    def __init__(self, home: Path, environ: Mapping[str, str] | None = None) -> None:
        self.home, self.token = home, secrets.token_hex(16)
        self._settings(
            "apputils-extension", "notification", {"fetchNews": "false", "checkForUpdates": False}
        )
        self._settings(
            "notebook-extension", "tracker", {"windowingMode": "none"}
        )  # draw all cells, not only the visible ones
        self._kernelspec(environ or {})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = open(home / "server.log", "wb")
        (home / "tmp").mkdir()
        environ = {
            # A virtual environment's own kernel would otherwise precede that of `_kernelspec`.
            **os.environ,
            "JUPYTER_PREFER_ENV_PATH": "0",
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "IPYTHONDIR": str(home / "ipython"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "TMPDIR": str(home / "tmp"),
            # Tests count runs, so none is removed. The TMPDIR has no other runs.
            "ICELAUNCH_KEEP_RUNS": "10000",
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={self.port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={self.token}",
                f"--ServerApp.root_dir={home}",
                "--LabApp.expose_app_in_browser=True",
                "--JupyterNotebookApp.expose_app_in_browser=True",
                "--LabApp.news_url=None",
            ],
            env=environ,
            cwd=home,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(
                    f"http://127.0.0.1:{self.port}/api?token={self.token}", timeout=5
                ).close()
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((home / "server.log").read_text())
            time.sleep(0.05)

    def _settings(self, extension: str, name: str, content: dict[str, Any]) -> None:
        folder = self.home / "settings" / "@jupyterlab" / extension
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jupyterlab-settings").write_text(json.dumps(content))

    def _kernelspec(self, environ: Mapping[str, str]) -> None:
        """Writes a kernelspec of the tests' interpreter, under the name that notebooks have."""
        folder = self.home / "data" / "kernels" / "python3"
        folder.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (folder / "kernel.json").write_text(
            json.dumps(
                {
                    "argv": argv,
                    "display_name": "Python 3",
                    "language": "python",
                    "env": dict(environ),
                }
            )
        )

    def theme(self, name: str) -> None:
        """Sets the theme of pages that are opened from now on."""
        self._settings("apputils-extension", "themes", {"theme": name})

    def notebook(self, cells: Sequence[str]) -> str:
        """Writes a notebook with these code cells. Returns its name."""
        name = f"{secrets.token_hex(4)}.ipynb"
        content = {
            "cells": [
                {
                    "cell_type": "code",
                    "id": f"c{i}",
                    "metadata": {},
                    "source": cell,
                    "outputs": [],
                    "execution_count": None,
                }
                for i, cell in enumerate(cells)
            ],
            "metadata": {
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (self.home / name).write_text(json.dumps(content))
        return name

    def request(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read() or b"null")

    def close_notebooks(self) -> None:
        for session in self.request("api/sessions"):
            self.request(f"api/sessions/{session['id']}", "DELETE")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


class Book:
    """A notebook that is open in a browser's page.

    Args:
        server: The notebook's server.
        page: The page.
        name: The notebook's name on the server.
        app: ``lab`` or ``notebook``.
    """

    def __init__(self, server: Server, page: Page, name: str, app: str = "lab") -> None:
        self.server, self.page, self.name = server, page, name
        page.set_default_timeout(120_000)  # milliseconds; CI is slow
        path = f"{'lab/tree' if app == 'lab' else 'notebooks'}/{name}"
        self._url = f"http://127.0.0.1:{server.port}/{path}?token={server.token}&reset"
        self.open()

    def open(self) -> None:
        self.page.goto(self._url)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        self.page.wait_for_function(_IDLE, timeout=120_000)

    def restart(self) -> None:
        """Restarts the kernel as the menu does.

        Meanwhile the server answers no other request about this kernel.
        """
        self.page.evaluate(
            f"async () => {{ {_WIDGET} await nb.sessionContext.session.kernel.restart(); }}"
        )

    def cell(self, source: str) -> int:
        """Adds a cell at the end and starts it, without waiting for its end. Returns its index."""
        return self.page.evaluate(_ADD, source)

    def run(self, cell: int) -> None:
        """Starts a cell, without waiting for its end."""
        self.page.evaluate(_RUN, cell)

    def wait_for_end(self, cell: int, timeout: float = 120) -> None:
        """Waits for a cell's end."""
        self.page.wait_for_function(_HAS_ENDED, arg=cell, timeout=timeout * 1000)

    def output(self, cell: int) -> Any:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-OutputArea").first

    def panel(self, cell: int) -> Any:
        found = self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".ice-panel").first
        found.wait_for(timeout=120_000)
        return found

    def text(self, cell: int) -> str:
        """The visible text of the terminal of a cell's panel."""
        return self.panel(cell).locator(".xterm-rows").inner_text()

    def wait_for_text(self, cell: int, text: str, timeout: float = 60) -> None:
        """Waits until the terminal of a cell's panel shows `text`.

        A terminal draws only while it is on the screen, so each poll scrolls it there. The page may
        draw the panel again at the run's end, so each poll finds it anew.
        """
        self.page.wait_for_function(
            _SHOWS_TEXT, arg=[cell, text], timeout=timeout * 1000, polling=20
        )

    def wait_for_state(self, cell: int, state: str, timeout: float = 60) -> None:
        """Waits until the panel's header shows `state`."""
        self.panel(cell).locator(".ice-state-label", has_text=state).wait_for(
            timeout=timeout * 1000
        )

    def click(self, cell: int, action: str) -> None:
        self.panel(cell).locator(f'.ice-button[data-action="{action}"]').click()

    def time_until_state(self, cell: int, action: str, state: str, timeout: float = 60) -> float:
        """Clicks a button, and waits until the header shows `state`.

        Returns:
            The seconds between the two, by the page's clock.
        """
        return self.page.evaluate(_CLICK_UNTIL_STATE, [cell, action, state, timeout * 1000]) / 1000

    def save(self) -> Any:
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        return json.loads((self.server.home / self.name).read_text())


_WIDGET = "const nb = window.jupyterapp.shell.currentWidget;"
_IDLE = f"""() => {{
  if (!window.jupyterapp) return false;
  {_WIDGET}
  return nb?.sessionContext?.session?.kernel?.status === 'idle';
}}"""
_ADD = f"""(source) => {{ {_WIDGET}
  const cell = {{cell_type: 'code', source, metadata: {{trusted: true}}}};
  nb.model.sharedModel.insertCell(nb.content.widgets.length, cell);
  nb.content.deselectAll();
  nb.content.activeCellIndex = nb.content.widgets.length - 1;
  window.jupyterapp.commands.execute('notebook:run-cell');
  return nb.content.activeCellIndex;
}}"""
_RUN = f"""(cell) => {{ {_WIDGET}
  nb.content.activeCellIndex = cell;
  window.jupyterapp.commands.execute('notebook:run-cell');
}}"""
_HAS_ENDED = f"""(cell) => {{ {_WIDGET}
  const model = nb.content.widgets[cell].model;
  return model.executionState !== 'running' && model.executionCount !== null;
}}"""
_CLICK_UNTIL_STATE = """([cell, action, state, timeout]) => new Promise((resolve, reject) => {
  const found = document.querySelectorAll('.jp-Notebook .jp-Cell')[cell];
  const clicked = performance.now();
  const poll = setInterval(() => {  // at the run's end, the output may be drawn again
    if ([...found.querySelectorAll('.ice-state-label')].some((one) => one.textContent === state)) {
      clearInterval(poll);
      resolve(performance.now() - clicked);
    } else if (performance.now() - clicked > timeout) {
      clearInterval(poll);
      reject(new Error(`${action}: ${state} never came`));
    }
  }, 4);
  found.querySelector(`.ice-button[data-action="${action}"]:not([hidden])`).click();
})"""
_SHOWS_TEXT = """([cell, text]) => {
  const found = document.querySelectorAll('.jp-Notebook .jp-Cell')[cell];
  found?.querySelector('.ice-terminal')?.scrollIntoView({ block: 'nearest' });
  const shown = found?.querySelector('.xterm-rows')?.innerText ?? '';
  return shown.replaceAll('\\u00a0', ' ').includes(text);
}"""
