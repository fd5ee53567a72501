"""For all tests: none of them writes to the user's own directories."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ipykernel",
        choices=["6", "7"],
        default="7",
        help="the ipykernel that kernels run on; `make setup` installs both",
    )


@pytest.fixture(scope="session")
def ipykernel(request: pytest.FixtureRequest) -> dict[str, str]:
    """Returns the environment variables that make a kernel run on the chosen ipykernel."""
    if request.config.getoption("ipykernel") == "7":
        return {}
    folder = Path(sys.prefix) / "ipykernel6"
    assert (folder / "ipykernel").is_dir(), f"{folder} is missing: `make setup` makes it"
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    }


@pytest.fixture(scope="session", autouse=True)
def own_state_directory() -> Iterator[None]:
    """Puts the list of runs into a temporary directory, also for what the tests start."""
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
    """Puts browser tests last.

    playwright keeps an event loop running in this thread, and asyncio.run refuses to start another.
    """
    items.sort(key=lambda item: "browser" in item.path.parts)
