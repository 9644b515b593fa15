"""Errors written for the person who has to mend them.

A message names the row or field, what was found, what would be legal and, where there is one, the next command.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LuthierError(Exception):
    """Base of every error that Luthier raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(LuthierError):
    """Bad input: nothing was started, nothing is lost (exit code 2)."""

    exit_code = 2


class GateError(LuthierError):
    """Two things that must agree differ, or a hard limit is broken (exit code 3)."""

    exit_code = 3


def nearest(word: str, legal: Iterable[str]) -> str:
    """The tail of an error message: the nearest legal word, or the list when nothing is near."""
    words = sorted(legal)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return "Legal: " + (", ".join(words) if words else "nothing") + "."
