"""Imports in a rank: always of the code that is on disk now."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from importlib.machinery import SourceFileLoader
from typing import Any

# Seconds. Some container images set all times alike. So equal times of source and bytecode are
# suspicious only where the source was written recently.
_RECENT = 60


def ignore_stale_bytecode() -> None:
    """Makes imports ignore cached bytecode that is older than its source.

    Python compares whole seconds and the file's size. A module that is edited twice within a second
    can therefore run in its first version. A person who edits and launches again takes longer; a
    warm launch after a scripted edit doesn't.
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
            # importlib then compiles the source.
            raise OSError("cached bytecode is older than its source")
    return {"mtime": source.st_mtime, "size": source.st_size}
