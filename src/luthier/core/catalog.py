"""The catalogue of seeds: each published technique, what must work, and the clauses of its oracle.

The package data holds one JSON line a seed with the keys `id, slug, name, title, kind, home, summary, works_when,
components, oracles, status, result`. `components` are the parts expected to realise the seed and `oracles` its numbered
claims, `{"n": 1, "text": "..."}`, to which the oracle tests point. What stands behind a seed is not written there: it is
recorded in `status/NNN.json` by the script that runs the tests, and holds for the versions and clauses it names:

    studied   verified, and the study of its claim is recorded (`core/recorded.py`)
    verified  every clause of the oracle passed          runs   a component is registered, its contract suite green
    stale     a component or a clause changed since      -      nothing recorded, or not green
    underpowered   verified, and the recorded study was too small to see a difference of interest

`result` is the recorded verdict on the published claim, negative ones included, with its scale and version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from luthier.core import recorded
from luthier.core.errors import UserError

STUDY = "study"  # the kind that judges a claim; what realises it are the other kinds
Component = tuple[str, str, int, Iterable[int]]  # kind, name, version, ids of the seeds it realises


# How a component of a kind is asked for; of any other kind its fields are shown.
_ASKED = {
    "method": "luthier tune data.jsonl --method {}", "objective": "luthier tune data.jsonl --objective {}",
    "regularizer": "luthier tune data.jsonl --regularizer {}", "optimizer": "luthier tune data.jsonl --optimizer {}",
    "decoder": "luthier tune data.jsonl --decoder {}", "metric": "luthier tune data.jsonl --metric {}",
    "audit": "luthier audit RUN --audit {}", "weight_rule": "luthier merge RUN1 RUN2 --rule {}",
    "retriever": "luthier adapt docs/ --retriever {}", STUDY: "luthier reproduce {}",
}


class UnknownSeed(UserError, LookupError):
    """No seed has this slug or id."""


@cache
def _text() -> str:
    from importlib.resources import files  # slow to import, and only needed here

    return files("luthier").joinpath("data", "catalog.jsonl").read_text(encoding="utf-8")


@cache
def records() -> dict[int, dict[str, Any]]:
    """What the status files say, by seed: those of the installed package, or of the repository it is run from."""
    from importlib.resources import files

    shipped = Path(str(files("luthier").joinpath("data", "status")))
    folder = shipped if shipped.is_dir() else Path(__file__).resolve().parents[3] / "status"
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("[0-9][0-9][0-9].json")))
    return {record["seed"]: record for record in found}


def state(seed: dict[str, Any], versions: dict[str, int], record: dict[str, Any] | None) -> str:
    """The status of a seed: `versions` are those of its registered components by "kind name", `record` its file."""
    if not versions or record is None:
        return "-"
    held = [(clause["n"], clause["text"]) for clause in record["clauses"]]
    same = held == [(clause["n"], clause["text"]) for clause in seed["oracles"]] and record["components"] == versions
    return str(record["status"]) if same else "stale"


def statuses(components: Iterable[Component]) -> dict[int, str]:
    """The status of every seed that a component names."""
    return {seed["id"]: seed["status"] for seed in rows(components) if seed["status"] != "-"}


def rows(components: Iterable[Component] = ()) -> list[dict[str, Any]]:
    """Every seed, by id, with its status for these components."""
    versions: dict[int, dict[str, int]] = {}
    studies: dict[int, int] = {}
    for kind, name, version, seeds in components:
        for seed in seeds:
            if kind == STUDY:
                studies[seed] = version
            else:
                versions.setdefault(seed, {})[f"{kind} {name}"] = version
    out = [json.loads(line) for line in _text().splitlines()]
    for seed in out:
        status = state(seed, versions.get(seed["id"], {}), records().get(seed["id"]))
        found = recorded.records().get(seed["id"])
        seed["status"] = recorded.studied(status, studies.get(seed["id"]), found)
        if found is not None and seed["id"] in studies:
            seed["result"] = {k: found[k] for k in ("verdict", "why", "scale", "version", "world")} | {
                "current": found["version"] == studies[seed["id"]]}
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


def commands(seed: int, components: Iterable[Component]) -> list[str]:
    """What to type for each component of a seed, its study last; `data.jsonl`, `docs/` and `RUN` are the reader's own."""
    found = sorted(((kind, name) for kind, name, _, seeds in components if seed in seeds), key=lambda one: one[0] == STUDY)
    return [_ASKED[kind].format(name) if kind in _ASKED else f"luthier schema {kind} {name}" for kind, name in found]


def search(text: str, seeds: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The seeds that hold every word: in slug, name, title, kind, summary, `works_when`, status or component names."""
    words = text.lower().split()
    return [seed for seed in seeds if all(w in _said(seed) for w in words)]


def _said(seed: dict[str, Any]) -> str:
    told = [str(seed["id"]), *(seed[k] for k in ("slug", "name", "title", "kind", "summary", "works_when", "status"))]
    return " ".join([*told, *(c["name"] for c in seed["components"])]).lower()
