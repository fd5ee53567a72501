"""Imports in a rank: always the code that is on disk now."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from importlib.machinery import SourceFileLoader
from typing import Any

_RECENT = 60  # seconds; some images set all times alike, so equal ones are suspicious only where somebody just wrote


def trust_only_fresh_bytecode() -> None:
    """Passes over cached bytecode that is older than its source.

    Python compares whole seconds and the size, so a helper that was edited twice within a second can run as it was. A person
    who edits and launches again takes longer; a warm launch after a scripted edit doesn't.
    """
    importlib.invalidate_caches()
    SourceFileLoader.path_stats = _path_stats  # type: ignore[method-assign, assignment]


def _path_stats(loader: SourceFileLoader, path: str) -> dict[str, Any]:
    source = os.stat(path)
    try:
        cached = os.stat(importlib.util.cache_from_source(path))
    except (OSError, NotImplementedError):
        pass
    else:
        age = cached.st_mtime_ns - source.st_mtime_ns
        if age < 0 or (age == 0 and time.time() - source.st_mtime < _RECENT):
            raise OSError(
                "cached bytecode is older than its source"
            )  # importlib then compiles the source
    return {"mtime": source.st_mtime, "size": source.st_size}
