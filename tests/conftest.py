"""For all tests: nothing of them is written to the user's own directories."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own() -> Iterator[None]:
    """The list of runs lies in a temporary directory; kernels and scripts that tests start inherit that."""
    folder = tempfile.mkdtemp(prefix="icelaunch-tests-")
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = folder
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before
    shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: playwright keeps an event loop running in this thread, and asyncio.run refuses to start another."""
    items.sort(key=lambda item: "browser" in item.path.parts)
