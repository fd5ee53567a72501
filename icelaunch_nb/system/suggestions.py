"""Suggestions for a mistyped word."""

from __future__ import annotations

from collections.abc import Sequence


def nearest(word: str, words: Sequence[str]) -> str:
    """A clause that names the `closest` of `words`, or lists all of them if none is close."""
    close = closest(word, words)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(words)}"


def closest(word: str, words: Sequence[str]) -> str:
    """The only one of `words` that begins with `word`, or else the most similar one.

    Returns:
        The word; empty if none is similar.
    """
    import difflib

    beginning = [known for known in words if known.startswith(word)]
    return (
        beginning[0]
        if len(beginning) == 1
        else next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.5)), "")
    )
