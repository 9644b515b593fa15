"""The frozen sets of audits: package data that is what its digest says, read once."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from luthier.core.errors import UserError
from luthier.core.example import Example, question

# Written by scripts/make_audit_sets.py; the labelled replies by hand. A changed set is another audit: raise the
# versions of those that read it.
DIGESTS = {
    "general/choices": "760e5203e8560dbc6b5bbf5f5a0010598473debeef78de4ade66aefa5d8ace97",
    "general/texts": "dcdf393be3efd951f210cd775121a482c843a3c79d6d60fbab07cbed28f6d6d1",
    "replies/labelled": "34fc8f5b3df84b12d651c479939ae123984bc21f35024f2fb569e0ef8a59d023",
    "xstest/safe": "42de3a5e72cfb33dac176908b4f6f23b3fceacdf3808aaaf389e32998de4fb26",
}


@cache
def frozen(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of a set.

    Raises:
        UserError: the file was changed since it was measured with.
    """
    from importlib.resources import files

    text = files("luthier").joinpath("data", f"{name}.jsonl").read_bytes()
    if hashlib.sha256(text).hexdigest() != DIGESTS[name]:
        raise UserError(f"The set {name} of this installation was changed: numbers would not compare. Reinstall luthier.")
    return tuple(map(json.loads, text.decode().splitlines()))


def spread(rows: tuple[dict[str, Any], ...], count: int) -> list[dict[str, Any]]:
    """`count` rows at equal distances, so that every part of a set stays represented; all where it has no more."""
    return [rows[i * len(rows) // min(count, len(rows))] for i in range(min(count, len(rows)))]


def choices(count: int) -> list[Example]:
    """Questions of the general set with four options each."""
    return [question(r["id"], r["question"], task="multiple-choice", source=r["set"], label=r["right"],
                     meta={"options": r["options"]}) for r in spread(frozen("general/choices"), count)]
