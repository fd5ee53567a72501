"""Makes ranks log as the launching process does: levels, and handlers of stdout and stderr.

Handlers of other kinds are left out, since ranks that share a file would mix their lines. Handlers
of libraries are left out, too: libraries add them again when they are imported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


def capture(logging: Any) -> dict[str, Any]:
    """The logging configuration of this process, as JSON.

    Args:
        logging: The module.
    """
    loggers = {}
    for name, logger in _loggers(logging):
        handlers = (
            []
            if _is_a_librarys(name)
            else [parts for handler in logger.handlers if (parts := _describe(logging, handler))]
        )
        if logger.level or handlers or logger.disabled:
            loggers[name] = [
                logger.level,
                logger.propagate or not handlers,
                logger.disabled,
                handlers,
            ]
    return {"disable": logging.root.manager.disable, "loggers": loggers}


def apply(wanted: dict[str, Any]) -> None:
    """Configures this process's logging.

    Args:
        wanted: The result of `capture`.
    """
    import logging

    if logging.root.manager.disable != wanted["disable"]:
        logging.disable(wanted["disable"])
    for name, (level, propagate, disabled, handlers) in wanted["loggers"].items():
        logger = logging.getLogger(name)
        if logger.level != level:
            logger.setLevel(level)
        logger.disabled = disabled
        if handlers and not logger.handlers:
            logger.propagate = propagate
            for handler in handlers:
                logger.addHandler(_make_handler(logging, handler))


def _loggers(logging: Any) -> Iterator[tuple[str, Any]]:
    yield "root", logging.root
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):  # not a PlaceHolder
            yield name, logger


def _is_a_librarys(name: str) -> bool:
    top = name.partition(".")[0]
    return top in sys.modules and top != "__main__"


def _describe(logging: Any, handler: Any) -> dict[str, Any] | None:
    """A handler's parts, from which `_make_handler` makes one like it; None for other kinds."""
    stream = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}.get(
        id(getattr(handler, "stream", None))
    )
    formatter = handler.formatter
    if (
        stream is None
        or type(handler) is not logging.StreamHandler
        or handler.filters
        or type(formatter) not in (logging.Formatter, type(None))
    ):
        return None
    return {
        "stream": stream,
        "level": handler.level,
        "format": formatter and [formatter._fmt, formatter.datefmt, _style(logging, formatter)],
    }


def _style(logging: Any, formatter: Any) -> str:
    return next(
        (style for style, (cls, _) in logging._STYLES.items() if type(formatter._style) is cls), "%"
    )


def _make_handler(logging: Any, parts: dict[str, Any]) -> Any:
    handler = logging.StreamHandler(getattr(sys, parts["stream"]))
    handler.setLevel(parts["level"])
    if parts["format"]:
        with contextlib.suppress(ValueError):
            handler.setFormatter(logging.Formatter(*parts["format"]))
    return handler
