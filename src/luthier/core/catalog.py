"""The catalogue of seeds: each published technique, what must work, and the clauses of its oracle.

The package data holds one JSON line a seed with the keys `id, slug, name, title, kind, home, summary, works_when,
components, oracles, status, result`. `components` are the parts expected to realise the seed and `oracles` its numbered
claims, `{"n": 1, "text": "..."}`, to which the oracle tests point. Whether a seed runs is not written down: it follows
from the components that are registered, which the caller passes in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from typing import Any

from luthier.core.errors import UserError

Component = tuple[str, str, Iterable[int]]  # kind, name, ids of the seeds it realises


class UnknownSeed(UserError, LookupError):
    """No seed has this slug or id."""


@cache
def _text() -> str:
    from importlib.resources import files  # slow to import, and only needed here

    return files("luthier").joinpath("data", "catalog.jsonl").read_text(encoding="utf-8")


def rows(components: Iterable[Component] = ()) -> list[dict[str, Any]]:
    """Every seed, by id; its status is "runs" where a component names its id, else "-"."""
    running = {seed for _kind, _name, seeds in components for seed in seeds}
    out = [json.loads(line) for line in _text().splitlines()]
    for seed in out:
        seed["status"] = "runs" if seed["id"] in running else "-"
    return out


def row(slug_or_id: str | int, components: Iterable[Component] = ()) -> dict[str, Any]:
    """The seed with this slug or id (`"lora"`, `114`, `"114"`); UnknownSeed names the nearest slugs."""
    seeds = rows(components)
    wanted = str(slug_or_id).strip().lower()
    number = int(wanted) if wanted.isdecimal() else None
    for seed in seeds:
        if wanted == seed["slug"] or number == seed["id"]:
            return seed
    if number is not None:
        hint = f"Ids run from {seeds[0]['id']} to {seeds[-1]['id']}."
    else:
        near = get_close_matches(wanted, [seed["slug"] for seed in seeds], n=3, cutoff=0.5)
        hint = f"Nearest: {', '.join(near)}." if near else "Nothing is near."
    raise UnknownSeed(f"There is no technique {slug_or_id!r}. {hint} See: luthier catalog")
