"""The browser tests share a server and a browser, and the tests of a file share a notebook.

A test adds its cells at the end of the notebook.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SETUP = """
%load_ext icelaunch_nb
import asyncio, os, sys, time
import icelaunch_nb as ice

def chatter(seconds=60):
    ctx = ice.get_context()
    for number in range(int(seconds * 20)):
        print(f"line {number} of rank {ctx.rank}")
        time.sleep(0.05)
"""


def _import_lab():
    spec = importlib.util.spec_from_file_location("icelaunch_browser_lab", HERE / "lab.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lab():
    pytest.importorskip("playwright", reason="playwright is not installed")
    module = _import_lab()
    if not os.path.exists(module.CHROMIUM):
        pytest.skip("Chromium is not installed")
    return module


@pytest.fixture(scope="session")
def server(lab, tmp_path_factory, ipykernel):
    server = lab.Server(tmp_path_factory.mktemp("jupyter"), ipykernel)
    yield server
    server.close_notebooks()
    server.close()
    assert "the panel of" not in (server.home / "server.log").read_text(), (
        "the panel thread logged an error"
    )


@pytest.fixture(scope="session")
def browser(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, lab.chromium(playwright) as browser:
        yield browser


@pytest.fixture(scope="module")
def shared_book(lab, server, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    book = lab.Book(server, page, server.notebook([SETUP]))
    book.run(0)
    book.wait_for_end(0, 60)
    yield book
    page.close()
    server.close_notebooks()


@pytest.fixture
def book(shared_book):
    """The file's notebook.

    A test fails that causes an error on the page. A run that it leaves is killed.
    """
    errors: list[str] = []

    def add_error(error):
        errors.append(str(error))

    shared_book.page.on("pageerror", add_error)
    yield shared_book
    shared_book.page.remove_listener("pageerror", add_error)
    last = shared_book.cell("if 'run' in globals():\n    run.kill()\n    run.wait(10)\n    del run")
    shared_book.wait_for_end(last, 20)
    assert errors == []
