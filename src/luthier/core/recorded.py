"""Recorded results of studies: one JSON file a study in the package, at most 50 kB, ids and scores but no text of rows.

A record says what was found, by which version of the study, at which scale; one of an earlier version is stale. Its
`fingerprint` is a digest of what was run and claimed: a test holds it against the study, so that neither changes unseen.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from luthier.core.files import write_atomic

FOLDER = Path(__file__).resolve().parents[1] / "studies" / "recorded"
MOST_BYTES = 50_000
# Verdicts for which more budget might still say something.
WANTS_BUDGET = ("underpowered",)
NO_VERDICT = "not applicable"


@cache
def records() -> dict[int, dict[str, Any]]:
    """Every record, by seed of the catalogue."""
    found = (json.loads(p.read_text(encoding="utf-8")) for p in sorted(FOLDER.glob("[0-9][0-9][0-9]-*.json")))
    return {r["seed"]: r for r in found}


def path_of(seed: int, name: str) -> Path:
    """Where a study's record is kept."""
    return FOLDER / f"{seed:03d}-{name}.json"


def write(record: dict[str, Any]) -> Path:
    """Keep a record. One that would be larger than 50 kB keeps its means and says that its scores were left out."""
    path = path_of(record["seed"], record["study"])
    text = _text(record)
    if len(text.encode()) > MOST_BYTES:
        text = _text({**record, "scores": {}, "scores_left_out": True})
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(f"the record of '{record['study']}' has {len(text.encode())} bytes, at most {MOST_BYTES}")
    write_atomic(path, text)
    records.cache_clear()
    return path


def studied(status: str, version: int | None, record: dict[str, Any] | None) -> str:
    """The status of a seed with a study of this version (None: without one), given the status of its components.

    `studied` = verified, and a record of the current version at the default scale, its guards met and not for want of
    budget undecided; else `stale` or `underpowered` where a record says so.
    """
    if status != "verified" or version is None or record is None or record["scale"] != "default":
        return status
    if record["version"] != version:
        return "stale"
    if record["verdict"] in WANTS_BUDGET:
        return "underpowered"
    return "studied" if record["verdict"] != NO_VERDICT else status


def _text(record: dict[str, Any]) -> str:
    """JSON with a line for each top-level part, so that a change of one shows as such."""
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False, separators=(',', ':'))}"
                       for k, v in record.items())
    return "{\n" + lines + "\n}\n"
